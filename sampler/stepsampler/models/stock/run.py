"""What a stock pipeline does with its own scheduler: its own call, with the network left out."""

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import isfinite, sqrt
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from stepsampler.errors import UserError
from stepsampler.models import families, quiet
from stepsampler.models.conditions import told_scale
from stepsampler.models.loading import read_pipeline
from stepsampler.models.stock.known import hush, networks, packages, read_inputs
from stepsampler.noise import Noise, is_flow, read_noise
from stepsampler.support.options import ModelOptions
from stepsampler.support.scales import ALONE, Called, called, from_zero
from stepsampler.support.sizes import Size, sides

TIMES = ("timestep", "timesteps", "t")
PROMPT = "a photo"


@dataclass(frozen=True)
class StockStep:
    """One call of the scheduler's `step`.

    `sigma` and `lands_on` are levels of x0 + sigma noise, or of a flow; `exact` is the timestep of
    `sigma`, up to 1000, None where it is not known; `at` the timestep of the scheduler, `told` what
    the network gets; `passes` are those of the network for one image.
    """

    sigma: float
    lands_on: float
    exact: float | None
    at: float
    told: float
    passes: int


@dataclass(frozen=True)
class StockRun:
    """All steps of an image; `scale` is the pipeline's own number, None where it has none.

    From step `projected` on, where there is one, its guider guides by another rule. `beside` are
    defaults of its call by which it guides beside w, and their values.
    """

    pipeline: str
    scheduler: str
    flow: bool
    sigma_max: float | None
    scale_name: str
    scale: float | None
    less: float  # than w
    distilled: bool
    steps: tuple[StockStep, ...]
    projected: int | None = None
    beside: tuple[tuple[str, Any], ...] = ()

    @property
    def passes(self) -> int:
        return sum(step.passes for step in self.steps)

    def guidance(self, step: StockStep) -> float:
        """Our w of a step; 1 where its network is called once, unless the scale is distilled."""
        if self.scale is None or (step.passes == 1 and not self.distilled):
            return 1.0
        return self.scale + self.less


def stock_run(options: ModelOptions, steps: int, scheduler: str | None) -> StockRun:
    """Load a pipeline as `models.open_model` does, but of any class, and run it: `run_stock`.

    Raises:
        UserError: as for `read_pipeline` and `run_stock`.
    """
    quiet()
    return run_stock(read_pipeline(options), steps, scheduler, options.size)


def run_stock(
    pipeline: Any, steps: int, scheduler: str | None = None, size: Size | None = None
) -> StockRun:
    """Call a pipeline as its users do, with its defaults; the network answers zeros at no cost.

    `scheduler` names a class of diffusers that takes the place of the pipeline's, with its config.
    The pipeline is as before afterwards.

    Raises:
        UserError: no such scheduler, one for another kind of model, or a call that is refused.
    """
    own = pipeline.scheduler
    if scheduler is not None:
        pipeline.scheduler = _other(own, scheduler)
    try:
        return _run(pipeline, steps, size)
    finally:
        pipeline.scheduler = own


def _other(own: Any, name: str) -> Any:
    import diffusers

    cls: Any = getattr(diffusers, name, None)
    if diffusers.SchedulerMixin not in getattr(cls, "__mro__", ()):
        raise UserError(f"--scheduler must be a scheduler of diffusers, got {name!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = cls.from_config(own.config)
    flow = is_flow(made.config) or is_flow(cls().config)  # what it does not know, it keeps
    if is_flow(own.config) != flow:
        kind = "a flow model" if is_flow(own.config) else "a model with betas"
        raise UserError(f"--scheduler: with this model's config {name} is not for {kind}")
    return made


def _run(pipeline: Any, steps: int, size: Size | None) -> StockRun:
    calls: list[tuple[float, int]] = []  # since the last step: time and rows
    taken: list[tuple[float, float, int]] = []  # of each step: at, told, passes
    inputs = read_inputs(pipeline)
    name = type(pipeline).__name__
    nets = list(networks(pipeline).values())
    if not nets:
        raise UserError(f"the {name} has neither a U-Net nor a transformer")
    given = _arguments(pipeline, inputs, steps, size)
    hush(pipeline)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for network in nets:
            stack.enter_context(_answering(network, calls))
        stack.enter_context(_counting(pipeline.scheduler, calls, taken))
        try:
            pipeline(**given)
        except (ValueError, TypeError, RuntimeError, LookupError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"the {name} refuses {steps} steps of this call: {reason}") from error
    scheduler = pipeline.scheduler
    flow = is_flow(scheduler.config)
    noise = _noise(scheduler.config)
    sigmas = _sigmas(scheduler, [at for at, _, _ in taken])
    distilled = told_scale(nets[0])
    scale_name, less = _scale(pipeline, distilled)
    scale = inputs.get(scale_name)
    guider = getattr(pipeline, "guider", None)
    if guider is not None and not distilled:
        on = guider._enabled and hasattr(guider, "guidance_scale")
        scale = guider.guidance_scale if on else None
        if name not in families():
            scale_name, less = "the guider's guidance_scale", 0.0
    after = guider and guider.config.get("adaptive_projected_guidance_start_step")
    return StockRun(
        name,
        type(scheduler).__name__,
        flow,
        noise.sigma_max if noise else None,
        scale_name,
        None if scale is None else float(scale),
        less,
        distilled,
        tuple(
            StockStep(
                sigmas[i],
                sigmas[i + 1],
                noise.network_time(sigmas[i]) if noise and isfinite(sigmas[i]) else None,
                at,
                told,
                rows,
            )
            for i, (at, told, rows) in enumerate(taken)
        ),
        None if after is None or distilled or after + 1 >= len(taken) else after + 1,
        _beside(name, inputs),
    )


def _beside(name: str, inputs: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    known = families().get(name)
    without = ALONE.get(known.family, {}) if known else {}
    return tuple((key, inputs[key]) for key, value in without.items() if inputs[key] != value)


def _scale(pipeline: Any, distilled: bool) -> Called:
    cls = type(pipeline)
    known = families().get(cls.__name__)
    if known:
        return called(known.family, "distilled" if distilled else "")
    return Called("guidance_scale", 1.0 if from_zero(packages(cls)) else 0.0)


def _noise(config: Any) -> Noise | None:
    try:
        return read_noise(config)[0]
    except UserError:  # none that our own loop samples
        return None


def _arguments(
    pipeline: Any, inputs: dict[str, Any], steps: int, size: Size | None
) -> dict[str, Any]:
    given: dict[str, Any] = {"num_inference_steps": steps}
    if "prompt" in inputs:
        given["prompt"] = PROMPT
    if "class_labels" in inputs:
        given["class_labels"] = [0]
    if "output_type" in inputs:
        given["output_type"] = "latent"
    if size is not None:
        if "height" not in inputs:
            raise UserError(f"--size: the {type(pipeline).__name__} makes images of one size")
        width, height = sides(size)
        given |= {"height": height, "width": width}
        if "use_resolution_binning" in inputs:
            given["use_resolution_binning"] = False
    return given


class _Answer(tuple[Any, ...]):
    """Of a network, with and without `return_dict`."""

    __slots__ = ()

    @property
    def sample(self) -> Any:
        return self[0]


@contextmanager
def _answering(network: Any, calls: list[tuple[float, int]]) -> Iterator[None]:
    """Zeros of the shape of the input instead of a network's outputs."""
    signature = inspect.signature(type(network).forward)
    wide = network.config.get("out_channels") or getattr(network, "out_channels", None)

    def answer(*args: Any, **options: Any) -> _Answer:
        bound = signature.bind(network, *args, **options).arguments
        x = list(bound.values())[1]
        time = next((bound[key] for key in TIMES if key in bound), None)
        told = float("nan") if time is None else float(torch.as_tensor(time).flatten()[0])
        calls.append((told, len(x)))
        if not isinstance(x, Tensor):  # an image each
            return _Answer([[torch.zeros_like(image) for image in x]])
        shape = list(x.shape)
        if x.ndim == 4 and wide:
            shape[1] = wide
        sound = options.get("audio_hidden_states")
        more = [] if sound is None else [torch.zeros_like(sound)]
        return _Answer([x.new_zeros(shape), *more])

    network.forward = answer
    try:
        yield
    finally:
        del network.forward


@contextmanager
def _counting(
    scheduler: Any, calls: list[tuple[float, int]], taken: list[tuple[float, float, int]]
) -> Iterator[None]:
    step: Callable[..., Any] = type(scheduler).step

    @functools.wraps(step)
    def counted(self: Any, output: Any, timestep: Any, *args: Any, **options: Any) -> Any:
        if self is scheduler:  # and not a copy, as LTX-2 has one for sound
            told = calls[0][0] if calls else float("nan")
            taken.append((float(timestep), told, sum(rows for _, rows in calls)))
            calls.clear()
        return step(self, output, timestep, *args, **options)

    scheduler.step = MethodType(counted, scheduler)
    try:
        yield
    finally:
        del scheduler.step


def _sigmas(scheduler: Any, times: list[float]) -> list[float]:
    """One more than steps; by alpha-bar where the scheduler keeps no sigmas."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) > len(times):
        return [float(sigma) for sigma in sigmas[: len(times) + 1]]
    alphas = scheduler.alphas_cumprod
    last = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
    found = [float(alphas[round(t)]) for t in times]
    return [sqrt((1 - a) / a) if a else float("inf") for a in (*found, last)]
