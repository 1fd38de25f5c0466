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
from stepsampler.halves import FREE_U, Guide, Network
from stepsampler.models import families
from stepsampler.models.networks import checked
from stepsampler.schedule import Schedule
from stepsampler.scheduler import StepScheduler, plan

# Packages of diffusers.pipelines that call the network apart for each half, the conditional one
# first, or for one half only. Everywhere else a batch of two equal halves is a doubled one.
# fmt: off
APART = frozenset({
    "bria_fibo2", "chroma", "chronoedit", "cogview4", "flux", "flux2",
    "glm_image", "helios", "hunyuan_video", "joyimage", "kandinsky5", "krea2",
    "longcat_image", "lucy", "lumina2", "nucleusmoe_image", "ovis_image", "qwenimage",
    "qwenimage21", "skyreels_v2", "wan",
})
# fmt: on
# Packages that double the batch with the conditional half first. Everywhere else it is the second.
COND_FIRST = frozenset({"dit", "omnigen", "z_image"})
# Packages that hand the doubled batch, and not one of its halves, to their scheduler.
WHOLE = frozenset({"dit"})
# Packages whose guidance is more than a combination of two predictions.
OWN_RULE = {
    "ace_step": "guides by a momentum of earlier steps",
    "anyflow": "tells its network where a step ends",
    "ideogram4": "has a network of its own for the unconditional half",
    "kandinsky6": "guides pictures and sound",
    "ltx2": "guides pictures and sound, each by up to three terms",
    "lumina": "guides three of its channels",
    "pag": "guides by perturbed attention too",
}


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
    nets = _networks(pipe)
    _check(schedule, pipe, nets)
    held, before = pipe.scheduler.config.get("schedule"), pipe.scheduler
    stock = {k: v for k, v in before.config.items() if k != "schedule"}
    scheduler = StepScheduler.from_config(stock)
    rows = plan(schedule, scheduler.config)
    with ExitStack() as stack:
        if not isinstance(before, StepScheduler) or held != rows:
            pipe.scheduler = StepScheduler.from_config(stock, schedule=rows)
            stack.callback(setattr, pipe, "scheduler", before)
        packages = _packages(pipe)
        family = families().get(type(pipe).__name__)
        rule = family.rule if family else classifier_free
        kinds = (bool(packages & kind) for kind in (APART, COND_FIRST, WHOLE))
        guide = Guide(pipe, schedule, rule, *kinds)
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


def _networks(pipe: Any) -> dict[str, Any]:
    """The networks that a step may call, by the names of the pipeline's components."""
    return {
        name: part if type(part) is Network else checked(part)
        for name, part in pipe.components.items()
        if part is not None and ("unet" in name or "transformer" in name)
    }


def _packages(pipe: Any) -> set[str]:
    """Of diffusers.pipelines: where the pipeline's class and those that it is made of live."""
    names = [cls.__module__.split(".") for cls in type(pipe).__mro__]
    return {n[2] for n in names if n[:2] == ["diffusers", "pipelines"] and len(n) > 3}


def _check(schedule: Schedule, pipe: Any, nets: dict[str, Any]) -> None:
    name = type(pipe).__name__
    guiders = [part for part in pipe.components if "guider" in part]
    if guiders:
        raise UserError(
            f"{name} guides by its component {guiders[0]!r}: such pipelines are not supported so "
            "far; StepScheduler runs the schedule's levels under that guidance"
        )
    if not nets:
        raise UserError(f"{name} has neither a U-Net nor a transformer to guide")
    if any(type(net) is Network for net in nets.values()):
        raise UserError("the pipeline is guided already: leave that context first")
    for package in sorted(_packages(pipe) & OWN_RULE.keys()):
        raise UserError(f"{name} {OWN_RULE[package]}, for which a schedule has no words")
    family = getattr(families().get(name), "family", None)
    if schedule.model and family and schedule.model.family != family:
        raise UserError(
            f"the schedule was made for family {schedule.model.family!r}, "
            f"but the pipeline is of {family!r}"
        )
    configs = [net.config for net in nets.values()]
    if any(config.get("time_cond_proj_dim") for config in configs):
        raise UserError(
            "the U-Net takes the guidance scale as an embedding (a latent consistency model), "
            "which is not supported"
        )
    if any(step.free_u for step in schedule.steps) and not all(
        hasattr(net, "enable_freeu") for net in nets.values()
    ):
        raise UserError("the schedule uses Free-U, which only U-Nets with skips have")
    embeds = any(config.get("guidance_embeds") for config in configs)
    if embeds != (schedule.guidance == "distilled"):
        raise UserError(
            f"the schedule's guidance is {schedule.guidance}, but the network's is "
            f"{'distilled' if embeds else 'not'}: their scales mean different things"
        )
