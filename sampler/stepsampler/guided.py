"""Guidance and Free-U of each step on a stock pipeline.

    with guided(pipe, schedule):
        images = pipe("a fox", num_inference_steps=schedule.num_steps).images

The pipeline combines a conditional and an unconditional prediction by its own rule: u + w0 (c - u),
c + w0 (c - u), either of them at the norm of c. It is given the schedule's combination g for both:
whatever the rule and w0 are, it then makes g of them. Most pipelines call their network once, with
a doubled batch. Others call it twice; then g is also written into what the first call returned,
which the pipeline still holds, and where w = 1 the second call is answered with the first one's
output, at no cost. What the pipeline hands its scheduler must be g again: one that makes something
else of its predictions is refused in its first step.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

from stepsampler.denoiser import classifier_free
from stepsampler.errors import UserError
from stepsampler.experts import Experts
from stepsampler.halves import FREE_U, Guide, Network
from stepsampler.models import families
from stepsampler.models.conditions import embedded_scale, told_scale
from stepsampler.models.stock.known import (
    APART,
    COND_FIRST,
    NOT,
    THOUSANDS,
    UNSTEPPED,
    WHOLE,
    networks,
    own_rule,
    packages,
)
from stepsampler.schedule import Schedule
from stepsampler.scheduler import StepScheduler, plan


@contextmanager
def guided(pipe: Any, schedule: Schedule) -> Iterator[Any]:
    """Inside, calls of `pipe` run `schedule`: its levels, solver, guidance and Free-U.

    Call it with any `guidance_scale` above 1; most pipelines have such a default. (With any
    `true_cfg_scale` above 1 and a `negative_prompt`, where it is called so.) Where guidance is
    distilled, the scale is an input of the network, which is replaced. On the way out the pipeline
    is as it was before, also after an exception.

    Raises:
        UserError: at once, for a pipeline or schedule that cannot be guided; in the first step of a
            call that leaves nothing to guide, that asks for `guidance_rescale` of its own, or whose
            pipeline makes something else of its predictions than a combination of two.
        ValueError: at once, for a pipeline whose scheduler `StepScheduler` cannot replace.
    """
    nets = networks(pipe)
    _check(schedule, pipe, nets)
    held, before = pipe.scheduler.config.get("schedule"), pipe.scheduler
    stock = {k: v for k, v in before.config.items() if k != "schedule"}
    scheduler = StepScheduler.from_config(stock)
    rows = plan(schedule, scheduler.config)
    ratio = Experts.of(pipe).ratio(schedule, rows["timesteps"])
    with ExitStack() as stack:
        if ratio is not None:
            stack.callback(pipe.register_to_config, boundary_ratio=pipe.config.boundary_ratio)
            pipe.register_to_config(boundary_ratio=ratio)
        if not isinstance(before, StepScheduler) or held != rows:
            pipe.scheduler = StepScheduler.from_config(stock, schedule=rows)
            stack.callback(setattr, pipe, "scheduler", before)
        own = packages(type(pipe))
        family = families().get(type(pipe).__name__)
        rule = family.rule if family else classifier_free
        apart, cond_first, whole = (bool(own & kind) for kind in (APART, COND_FIRST, WHOLE))
        if _guiders(pipe):
            distilled = schedule.guidance == "distilled"
            for name in _guiders(pipe):
                stack.callback(object.__setattr__, pipe, name, getattr(pipe, name))
                object.__setattr__(pipe, name, _guider(schedule, not distilled))
            if not distilled:  # diffusers' own guider does the rest
                yield pipe
                return
        unit = 1000.0 if own & THOUSANDS else 1.0
        guide = Guide(pipe, schedule, rule, apart, cond_first, whole, unit, embedded_scale)
        pipe.scheduler.step = MethodType(guide.checked_step, pipe.scheduler)
        stack.callback(delattr, pipe.scheduler, "step")
        for name, net in nets.items():
            # not setattr: it would rewrite the pipeline's config
            network = Network(net, guide)
            object.__setattr__(pipe, name, network)
            stack.callback(object.__setattr__, pipe, name, net)
            stack.callback(network.leave)
            for block in net.up_blocks if hasattr(net, "enable_freeu") else ():
                for key in FREE_U:
                    stack.callback(setattr, block, key, getattr(block, key, None))
        yield pipe


def _guiders(pipe: Any) -> list[str]:
    return [name for name in pipe.components if "guider" in name]


def _guider(schedule: Schedule, enabled: bool) -> Any:
    """Classifier-free guidance with the scale of each step; one of 1 costs one pass."""
    from diffusers import ClassifierFreeGuidance

    first = max(schedule.steps, key=lambda step: abs(step.guidance_scale - 1))
    guider = ClassifierFreeGuidance(guidance_scale=first.guidance_scale, enabled=enabled)
    set_state = guider.set_state

    def of_step(step: int, *args: Any, **kwargs: Any) -> None:
        guider.guidance_scale = schedule.steps[step].guidance_scale
        guider.guidance_rescale = schedule.steps[step].guidance_rescale
        set_state(step, *args, **kwargs)

    guider.set_state = of_step
    return guider


def _check(schedule: Schedule, pipe: Any, nets: dict[str, Any]) -> None:
    name = type(pipe).__name__
    if not nets:
        raise UserError(f"{name} has neither a U-Net nor a transformer to guide")
    if any(type(net) is Network for net in nets.values()):
        raise UserError("the pipeline is guided already: leave that context first")
    if name in UNSTEPPED:
        raise UserError(f"{name} cannot run a schedule by itself: {NOT[name]}")
    rule = own_rule(type(pipe))
    if rule:
        raise UserError(f"{name} {rule}, for which a schedule has no words")
    family = getattr(families().get(name), "family", None)
    if schedule.model and family and schedule.model.family != family:
        raise UserError(
            f"the schedule was made for family {schedule.model.family!r}, "
            f"but the pipeline is of {family!r}"
        )
    if any(step.free_u for step in schedule.steps) and not all(
        hasattr(net, "enable_freeu") for net in nets.values()
    ):
        raise UserError("the schedule uses Free-U, which only U-Nets with skips have")
    Experts.of(pipe).check(schedule)
    embeds = any(map(told_scale, nets.values()))
    if embeds != (schedule.guidance == "distilled"):
        raise UserError(
            f"the schedule's guidance is {schedule.guidance}, but the network's is "
            f"{'distilled' if embeds else 'not'}: their scales mean different things"
        )
