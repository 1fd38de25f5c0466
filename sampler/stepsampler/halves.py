"""What `guided` does at each call of a pipeline's network, and at each step of its scheduler."""

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import le
from typing import Any

import torch
from torch import Tensor

from stepsampler.denoiser import Combine, rescale
from stepsampler.errors import UserError
from stepsampler.schedule import Schedule, Step
from stepsampler.scheduler import StepScheduler

DIT_NULL = 1000  # the class that DiTPipeline takes for none
POSITIONS = ("rotary", "rope", "freqs")  # inputs with a row for each token of all images
FREE_U = ("s1", "s2", "b1", "b2")


class Network:
    """Stands for a network in its pipeline: calls go to the guide, all else to the network.

    No hook on the network itself: it may be compiled, offloaded or wrapped, and other pipelines
    that share it are left alone.
    """

    def __init__(self, net: Any, guide: "Guide") -> None:
        self.__dict__.update(_net=net, _guide=guide)

    def leave(self) -> None:
        """From now on only the network: pipelines that were made inside still hold this."""
        self.__dict__.update(_guide=None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        guide = self._guide
        return guide.call(self._net, args, kwargs) if guide else self._net(*args, **kwargs)

    def __deepcopy__(self, memo: Any) -> Any:
        return copy.deepcopy(self._net, memo)  # of a pipeline that is not guided

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # for isinstance
        return type(self._net)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._net, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._net, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._net, name)


@dataclass
class _Made:
    """What the network calls of one step were given and returned."""

    timesteps: Tensor  # of the pipeline's call: `set_timesteps` makes new ones
    x: Any
    output: Any
    prediction: Tensor  # what the scheduler must get, in one batch or once for each half
    guidable: bool  # a doubled batch, or both halves were called
    doubled: bool = False
    answered: int = 1


class Guide:
    """Answers the network calls of one pipeline, and checks what comes of the answers."""

    def __init__(
        self,
        pipe: Any,
        schedule: Schedule,
        rule: Combine,
        apart: bool,
        cond_first: bool,
        whole: bool,
        unit: float = 1.0,
        embed: Callable[..., dict[str, Tensor]] | None = None,
    ) -> None:
        self.pipe, self.schedule, self.name = pipe, schedule, type(pipe).__name__
        self.apart, self.cond_first, self.whole, self.rule = apart, cond_first, whole, rule
        self.distilled, self.unit = schedule.guidance == "distilled", unit
        self.embed = embed  # a scale, where a U-Net takes it so
        self.made: _Made | None = None  # in the step at hand
        # cond - uncond of the last step that had both, and the timesteps of the call that it is of
        self.difference: tuple[Tensor, Tensor] | None = None
        self.wrong: Tensor | None = None  # whether a step of this call was; on its device

    @property
    def index(self) -> int:
        scheduler = self.pipe.scheduler
        if not isinstance(scheduler, StepScheduler):
            raise UserError(
                f"{self.name} has put a {type(scheduler).__name__} in place of the schedule's "
                "scheduler: it cannot run a schedule"
            )
        index = scheduler.step_index
        index = (scheduler.begin_index or 0) if index is None else index
        if index >= self.schedule.num_steps:
            raise UserError(
                "all steps are taken: inside `guided` only the pipeline calls its network"
            )
        return index

    def call(self, net: Any, args: Any, kwargs: Any) -> Any:
        """One call of a network by the pipeline."""
        step = self.schedule.steps[self.index]
        if hasattr(net, "enable_freeu"):
            if step.free_u:
                net.enable_freeu(*(getattr(step.free_u, name) for name in FREE_U))
            else:
                net.disable_freeu()
        if self.distilled and kwargs.get("guidance") is not None:
            scale = torch.full_like(kwargs["guidance"], self.unit * step.guidance_scale)
            kwargs = {**kwargs, "guidance": scale}
        if self.distilled and self.embed and kwargs.get("timestep_cond") is not None:
            scale = torch.full((len(kwargs["timestep_cond"]),), step.guidance_scale)
            told = self.embed(self.pipe, net, {"guidance": scale})["timestep_cond"]
            kwargs = {**kwargs, "timestep_cond": told.to(kwargs["timestep_cond"])}
        x, timesteps = _latents(args, kwargs), self.pipe.scheduler.timesteps
        self._refuse_leftover(x, kwargs)
        made = self.made
        if made is None or made.timesteps is not timesteps:
            self.made = self._first(step, x, net, args, kwargs)
            return self.made.output
        made.answered += 1
        if self.distilled or not self.apart or made.answered > 2 or not _equal(x, made.x):
            raise UserError(
                f"{self.name} calls its network more than once in a step, "
                + (
                    "for guidance beside the distilled one: call it without a negative prompt"
                    if self.distilled
                    else "for other halves than `guided` knows: it is not supported"
                )
            )
        made.guidable = True
        if step.guidance_scale != 1:
            self._refuse_rescaling()
            reused = step.guidance_reuse
            other = self._reused(made.prediction) if reused else _stacked(net(*args, **kwargs))
            if other.shape != made.prediction.shape:
                raise UserError(
                    f"{self.name} gets predictions of two shapes, {tuple(made.prediction.shape)} "
                    f"and {tuple(other.shape)}, from its network: it is not supported"
                )
            guided = self._combined(step, other, made.prediction, x)
            made.prediction.copy_(guided)
        return made.output

    def _first(self, step: Step, x: Any, net: Any, args: Any, kwargs: Any) -> _Made:
        timesteps = self.pipe.scheduler.timesteps
        doubled = not self.distilled and self._doubled(x, kwargs)
        if doubled and (step.guidance_scale == 1 or step.guidance_reuse):  # one half will do
            self._refuse_rescaling()
            place = 0 if self.cond_first else 1
            output = net(*_half(args, len(x), place), **_half(kwargs, len(x), place))
            cond = _stacked(output)
            if step.guidance_reuse:
                cond = self._combined(step, self._reused(cond), cond, x)
            both = torch.cat([cond] * 2)
            return _Made(timesteps, x, _with(output, both), both, True, doubled=not self.whole)
        output = net(*args, **kwargs)
        stacked = _stacked(output)
        if self.distilled:
            return _Made(timesteps, x, output, stacked, True)
        if not doubled:  # the copy is ours to write into
            stacked = stacked.clone()
            return _Made(timesteps, x, _with(output, stacked), stacked, False)
        self._refuse_rescaling()
        first, second = stacked.chunk(2)
        uncond, cond = (second, first) if self.cond_first else (first, second)
        both = torch.cat([self._combined(step, uncond, cond, x)] * 2)
        return _Made(timesteps, x, _with(output, both), both, True, doubled=not self.whole)

    def _combined(self, step: Step, uncond: Tensor, cond: Tensor, x: Any) -> Tensor:
        if not step.guidance_reuse:
            self.difference = self.pipe.scheduler.timesteps, cond - uncond
        return _combine(self.rule, step, uncond, cond, _channels(x))

    def _reused(self, cond: Tensor) -> Tensor:
        """The unconditional prediction, if the difference is still that of an earlier step."""
        timesteps, difference = self.difference or (None, cond)
        if timesteps is not self.pipe.scheduler.timesteps or difference.shape != cond.shape:
            raise UserError(
                f"step {self.index}: it reuses the guidance of a step before it, which this call "
                "did not run: start at a step with both predictions"
            )
        return cond - difference

    def _doubled(self, x: Any, kwargs: Any) -> bool:
        """Pipelines that double the batch give the network the same latents in both halves.

        So do several images of the same noise: `_settle` sees whether one of two halves is left.
        """
        if self.apart or not getattr(self.pipe, "do_classifier_free_guidance", True):
            return False
        if self.whole and not kwargs["class_labels"].chunk(2)[-1].eq(DIT_NULL).all():
            return False
        half, odd = divmod(len(x), 2)
        return not odd and _equal(x[:half], x[half:])

    def _refuse_leftover(self, x: Any, kwargs: Any) -> None:
        texts = kwargs.get("encoder_hidden_states")
        off = not getattr(self.pipe, "do_classifier_free_guidance", True)
        if off and isinstance(x, Tensor) and isinstance(texts, Tensor) and len(texts) == 2 * len(x):
            raise UserError(
                f"step {self.index}: guidance is off, but the embeddings of texts have both halves "
                "still: a callback that turns it off must cut them; a step with a guidance scale "
                "of 1 in the schedule needs no callback"
            )

    def _refuse_rescaling(self) -> None:
        if getattr(self.pipe, "guidance_rescale", 0):
            raise UserError(
                "guidance_rescale is a part of the schedule's steps: call the pipeline with 0, "
                f"got {self.pipe.guidance_rescale:g}"
            )

    @property
    def checked_step(self) -> Any:
        """In place of the scheduler's `step`."""

        @functools.wraps(StepScheduler.step)
        def step(scheduler: Any, model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
            if scheduler is not self.pipe.scheduler:
                raise UserError(
                    f"{self.name} runs a copy of its scheduler beside it: it is not supported"
                )
            self._settle(self.index, model_output)
            return type(scheduler).step(scheduler, model_output, *args, **kwargs)

        return step

    def _settle(self, index: int, got: Tensor) -> None:
        """Refuse a step of the scheduler whose input is not what the step's calls came to."""
        made, self.made = self.made, None
        first = self.wrong is None or index == (self.pipe.scheduler.begin_index or 0)
        if made is None or made.timesteps is not self.pipe.scheduler.timesteps:
            raise UserError(
                f"{self.name} calls no network that `guided` knows before it takes a step: "
                "it is not supported"
            )
        to_come = self.schedule.steps[index:] if first else self.schedule.steps[index : index + 1]
        one = made.doubled and got.ndim == made.prediction.ndim and len(got) == len(made.prediction)
        if one or (not made.guidable and any(step.guidance_scale != 1 for step in to_come)):
            raise UserError(
                f"step {index}: the pipeline calls its network without an unconditional half: "
                "pass it a guidance_scale above 1 (where it is called so, a true_cfg_scale above 1 "
                "and a negative_prompt), and no truncation of guidance"
            )
        wrong = _differs(got, made.prediction)
        self.wrong = wrong if first or self.wrong is None else self.wrong | wrong
        # On an accelerator a look at the result waits for it: one at the first and the last step
        if (first or index + 1 == self.schedule.num_steps) and bool(self.wrong):
            raise UserError(
                f"{self.name} makes something else of its network's predictions than a combination "
                "of two, so that `guided` cannot say what it runs: it is not supported, or an "
                "option of the call changes its guidance"
            )


def first_input(args: Any, kwargs: Any) -> Any:
    """What a network is called with first: one row for each of its images."""
    return args[0] if args else next(iter(kwargs.values()))


def _latents(args: Any, kwargs: Any) -> Any:
    if args:
        return args[0]
    for name in ("hidden_states", "sample", "x", "image_latent"):
        if name in kwargs:
            return kwargs[name]
    raise UserError(f"the network is called without latents: with {', '.join(kwargs) or 'nothing'}")


def _half(value: Any, rows: int, place: int, name: str = "") -> Any:
    """Of a call's inputs the first or second half, where they have one row an image."""
    if isinstance(value, dict):
        return {key: _half(each, rows, place, key) for key, each in value.items()}
    if any(word in name for word in POSITIONS):
        return value
    per_image = isinstance(value, Tensor | list) and not (
        isinstance(value, Tensor) and value.ndim == 0
    )
    if per_image and len(value) == rows:
        return value[: rows // 2] if place == 0 else value[rows // 2 :]
    if isinstance(value, list | tuple):
        return type(value)(_half(each, rows, place) for each in value)
    return value


def _channels(x: Any) -> int:
    return int(x.shape[1]) if isinstance(x, Tensor) else len(x[0])


def _equal(a: Any, b: Any) -> bool:
    """Of tensors or of lists of them."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return len(a) == len(b) and all(map(torch.equal, a, b))


def _stacked(output: Any) -> Tensor:
    """The prediction of a network: a tensor, or a list of one an image, alone or as the first."""
    if isinstance(output, dict | tuple):
        output = output[0]
    return torch.stack(output) if isinstance(output, list) else output


def _with(output: Any, prediction: Tensor) -> Any:
    """The network's output with another prediction."""
    if isinstance(output, dict):
        name = next(iter(output))
        return type(output)(**{**output, name: _with(output[name], prediction)})
    if isinstance(output, tuple):
        return (_with(output[0], prediction), *output[1:])
    return list(prediction) if isinstance(output, list) else prediction


def _combine(rule: Combine, step: Step, uncond: Tensor, cond: Tensor, channels: int) -> Tensor:
    if step.guidance_scale == 1:
        return cond
    u, c = uncond.float(), cond.float()
    guided = rule(u, c, step.guidance_scale)
    if step.guidance_rescale:  # a learned variance in further channels has no share in it
        phi = step.guidance_rescale
        head = rescale(guided[:, :channels], c[:, :channels], phi)
        guided = torch.cat([head, guided[:, channels:]], 1)
    return guided.to(cond.dtype)


def _differs(got: Tensor, prediction: Tensor) -> Tensor:
    """Whether `got` is neither the prediction nor its negative, as a tensor on its device.

    It may be one of two equal halves, a part that was cut from the front or the end (latents from
    a longer sequence, a learned variance), of another shape or another order, or of another dtype.
    """
    dtype = max(got.dtype, prediction.dtype, key=lambda d: torch.finfo(d).eps)
    tolerance = 4 * torch.finfo(dtype).eps
    wholes = [prediction] if len(prediction) % 2 else [prediction, prediction.chunk(2)[0]]
    wholes = [whole for whole in wholes if whole.shape == got.shape] or wholes
    found = torch.zeros((), dtype=torch.bool, device=got.device)
    for whole in wholes:
        for a, b in _pairs(got, whole):
            a, b = a.to(dtype).float(), b.to(got.device, dtype).float()
            for sign in (1, -1):
                found = found | torch.isclose(a, sign * b, tolerance, 0, equal_nan=True).all()
                if found.device.type == "cpu" and found:  # elsewhere a look would wait
                    return ~found
    return ~found


def _pairs(got: Tensor, whole: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Ways in which `got` may be `whole` or a part of it."""
    if got.shape == whole.shape:
        yield got, whole
    elif got.numel() == whole.numel():
        yield got, whole.reshape(got.shape)
        yield got.abs().flatten().sort().values, whole.abs().flatten().sort().values
    elif got.ndim == whole.ndim and all(map(le, got.shape, whole.shape)):
        yield got, whole[tuple(slice(g) for g in got.shape)]
        yield (
            got,
            whole[tuple(slice(w - g, None) for g, w in zip(got.shape, whole.shape, strict=True))],
        )
