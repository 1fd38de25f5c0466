"""Guidance and Free-U of each step on a stock pipeline.

    with guided(pipe, schedule):
        images = pipe("a fox", num_inference_steps=schedule.num_steps).images

The pipeline combines the two halves of a doubled batch as u + w0 (c - u). A hook on the network
puts the schedule's combination g into both halves: whatever w0 > 1 is, the pipeline then makes
g + w0 (g - g) = g of them. A step with w = 1 still costs two passes here: unguided steps save time
only in `stepsampler.generate`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from stepsampler.denoiser import rescale
from stepsampler.errors import UserError
from stepsampler.models import families
from stepsampler.schedule import FreeU, Schedule, Step
from stepsampler.scheduler import StepScheduler, plan

COND_FIRST = ("DiTPipeline",)  # every other pipeline has the unconditional half first
FREE_U = ("s1", "s2", "b1", "b2")
MARK = "_stepsampler_guided"  # on a network that has our hooks


@contextmanager
def guided(pipe: Any, schedule: Schedule) -> Iterator[Any]:
    """Inside, calls of `pipe` run `schedule`: its levels, solver, guidance and Free-U.

    Call it with any `guidance_scale` above 1; most pipelines have such a default. Where guidance is
    distilled, the scale is an input of the network, which is replaced. On the way out the pipeline
    is as it was before, also after an exception.

    Raises:
        UserError: at once, for a schedule that this pipeline cannot run; in a call that leaves the
            hook nothing to guide, or that asks for `guidance_rescale` of its own.
        ValueError: at once, for a pipeline whose scheduler `StepScheduler` cannot replace.
    """
    net = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if net is None:
        raise UserError(f"{type(pipe).__name__} has neither a U-Net nor a transformer to guide")
    _check(schedule, pipe, net)
    held, before = pipe.scheduler.config.get("schedule"), pipe.scheduler
    stock = {k: v for k, v in before.config.items() if k != "schedule"}
    scheduler = StepScheduler.from_config(stock)
    rows = plan(schedule, scheduler.config)
    with ExitStack() as stack:
        if not isinstance(before, StepScheduler) or held != rows:
            pipe.scheduler = StepScheduler.from_config(stock, schedule=rows)
            stack.callback(setattr, pipe, "scheduler", before)
        hooks = _Hooks(pipe, schedule)
        setattr(net, MARK, True)
        stack.callback(delattr, net, MARK)
        if hasattr(net, "enable_freeu"):
            for block in net.up_blocks:
                for name in FREE_U:
                    stack.callback(setattr, block, name, getattr(block, name, None))
        for handle in (
            net.register_forward_pre_hook(hooks.before, with_kwargs=True),
            net.register_forward_hook(hooks.after, with_kwargs=True),
        ):
            stack.callback(handle.remove)
        yield pipe


def _check(schedule: Schedule, pipe: Any, net: Any) -> None:
    if hasattr(net, MARK):
        raise UserError("the pipeline is guided already: leave that context first")
    family = getattr(families().get(type(pipe).__name__), "family", None)
    if schedule.model and family and schedule.model.family != family:
        raise UserError(
            f"the schedule was made for family {schedule.model.family!r}, "
            f"but the pipeline is of {family!r}"
        )
    if any(step.free_u for step in schedule.steps) and not hasattr(net, "enable_freeu"):
        raise UserError("the schedule uses Free-U, which only U-Nets with skips have")
    embeds = bool(net.config.get("guidance_embeds"))
    if embeds != (schedule.guidance == "distilled"):
        raise UserError(
            f"the schedule's guidance is {schedule.guidance}, but the network's is "
            f"{'distilled' if embeds else 'not'}: their scales mean different things"
        )


class _Hooks:
    """Called before and after each call of the network."""

    def __init__(self, pipe: Any, schedule: Schedule) -> None:
        self.pipe, self.schedule = pipe, schedule
        self.free_u: FreeU | None = None
        self.cond_first = type(pipe).__name__ in COND_FIRST
        self.unguided = all(step.guidance_scale == 1 for step in schedule.steps)

    @property
    def step(self) -> Step:
        scheduler = self.pipe.scheduler
        index = scheduler.step_index
        index = (scheduler.begin_index or 0) if index is None else index
        if index >= self.schedule.num_steps:
            raise UserError(
                "all steps are taken: inside `guided` only the pipeline calls its network"
            )
        return self.schedule.steps[index]

    def before(self, net: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        step = self.step
        if hasattr(net, "enable_freeu"):
            if step.free_u:
                net.enable_freeu(*(getattr(step.free_u, name) for name in FREE_U))
            else:
                net.disable_freeu()
        if self.schedule.guidance == "distilled":
            scale = torch.full_like(kwargs["guidance"], step.guidance_scale)
            kwargs = {**kwargs, "guidance": scale}
        return args, kwargs

    def after(self, net: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if self.schedule.guidance == "distilled":
            return output
        x = args[0] if args else kwargs["hidden_states"]
        if not self._doubled(x):
            if self.unguided:
                return output
            raise UserError(
                "the pipeline calls its network without an unconditional half: pass it a "
                "guidance_scale above 1 (one that calls it apart for each half cannot be guided)"
            )
        if getattr(self.pipe, "guidance_rescale", 0):
            raise UserError(
                "guidance_rescale is a part of the schedule's steps: call the pipeline with 0, "
                f"got {self.pipe.guidance_rescale:g}"
            )
        first, second = (output[0] if isinstance(output, tuple) else output.sample).chunk(2)
        uncond, cond = (second, first) if self.cond_first else (first, second)
        both = torch.cat([self._combine(uncond, cond, x.shape[1])] * 2)
        return (both, *output[1:]) if isinstance(output, tuple) else type(output)(sample=both)

    def _doubled(self, x: Tensor) -> bool:
        """Pipelines that double the batch give the network the same latents in both halves."""
        if not getattr(self.pipe, "do_classifier_free_guidance", True) or len(x) % 2:
            return False
        return torch.equal(*x.chunk(2))

    def _combine(self, uncond: Tensor, cond: Tensor, channels: int) -> Tensor:
        step = self.step
        if step.guidance_scale == 1:
            return cond
        u, c = uncond.float(), cond.float()
        guided = u + step.guidance_scale * (c - u)
        if step.guidance_rescale:  # a learned variance in further channels has no share in it
            phi = step.guidance_rescale
            head = rescale(guided[:, :channels], c[:, :channels], phi)
            guided = torch.cat([head, guided[:, channels:]], 1)
        return guided.to(cond.dtype)
