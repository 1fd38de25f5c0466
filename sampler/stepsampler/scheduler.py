"""A schedule as a diffusers scheduler, for stock pipelines.

    pipe.scheduler = StepScheduler.from_config(pipe.scheduler.config, schedule=load("best.json"))

Its config holds the rows of the tableau as plain numbers: a saved scheduler needs no solver, and
this file alone can be copied into the `scheduler` folder of a hub repository. A saved pipeline
reloads where this module was imported before; diffusers then looks here for `SchedulerMixin`.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, sqrt
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import ConfigMixin, DDPMScheduler, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from diffusers.utils import BaseOutput, logging
from torch import Tensor

FORMAT = "stepsearch.rows/1"

logger = logging.get_logger(__name__)


def plan(schedule: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that the scheduler executes, as plain JSON: see `stepsampler.rows`."""
    from stepsampler.rows import plain

    return {"format": FORMAT, **plain(schedule, config)}


# Options of diffusers' schedulers under which a level or a timestep means something else than here,
# or a prediction is changed, and the value that changes nothing
LEVELS = {
    "thresholding": False,
    "sigma_data": None,  # of a flow: Cosmos, whose levels are those of EDM
    "timestep_type": "discrete",  # else the network is told log sigma
    "stages": None,  # levels of several resolutions: Helios
    "num_policy_substeps": None,  # several steps of a policy for each of the network: pi-Flow
}
BETAS = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
EDM = ("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "rho")
LAST_ALPHA_BAR = 2.0**-24  # of zero terminal SNR, in the place of 0: as diffusers' Euler has it


def _is_edm(config: Mapping[str, Any]) -> bool:
    """Not CosineDPMSolverMultistepScheduler, of Stable Audio: its network is told an angle."""
    others = "solver_order" in config and "algorithm_type" not in config
    others |= config.get("prediction_type") == "flow_prediction"
    return all(config.get(key) for key in EDM) and not others


def _check_levels(config: Mapping[str, Any]) -> None:
    """Refuse a scheduler whose levels mean something else than those of a schedule."""
    kind, edm = config.get("prediction_type", "epsilon"), _is_edm(config)
    flow = not edm and ("beta_schedule" not in config or kind == "flow_prediction")
    if config.get("rescale_betas_zero_snr") and kind == "epsilon" and not edm:
        raise ValueError(
            "rescale_betas_zero_snr does not go with a prediction of epsilon, which in noise alone "
            "says nothing of x0; set prediction_type to v_prediction, or the option to False"
        )
    for option, harmless in LEVELS.items():
        value = config.get(option)
        if value and value != harmless and (flow or option != "sigma_data"):
            raise ValueError(f"{option} of the pipeline's scheduler is not supported, got {value}")
    if config.get("_class_name") == "FlowMapEulerDiscreteScheduler":
        raise ValueError("FlowMapEulerDiscreteScheduler: the network is told where a step ends")
    count = config.get("num_train_timesteps")
    if flow and count != 1000:
        raise ValueError(f"num_train_timesteps of a flow's scheduler must be 1000, got {count}")


@dataclass
class StepOutput(BaseOutput):  # type: ignore[misc]
    """The next sample, and the x0-prediction of this step."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class StepScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Executes the rows of a schedule; without one, order 1 on `num_inference_steps` steps.

    Samples have unit variance, x / sqrt(1 + sigma^2), and are a flow's own x = (1 - sigma) x0 +
    sigma noise, or EDM's x0 + sigma noise: what every stock pipeline expects. The guidance scale is
    the pipeline's; for one of each step see `stepsampler.guided`. A step whose past was never seen,
    as the first ones of image-to-image, has order 1.

    Args:
        num_train_timesteps: and the betas and `prediction_type` are those of diffusers' own
            schedulers. Their clipping of x0 is no part of a schedule.
        rescale_betas_zero_snr: the last level is pure noise, sigma 4,096 as in diffusers' Euler.
        shift: of a flow's default grid; a schedule's sigmas are never shifted.
        sigma_data: and the four beside it are those of diffusers' EDM schedulers.
        schedule: a `Schedule`, the parsed JSON of its file, or what `plan` made of one.

    Raises:
        ValueError: a schedule that the pipeline's model or a scheduler cannot execute.
    """

    _compatibles: ClassVar = [e.name for e in KarrasDiffusionSchedulers]
    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
        shift: float = 1.0,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma_data: float | None = None,
        sigma_schedule: str | None = None,
        rho: float | None = None,
        schedule: Any = None,
    ) -> None:
        config = self.config
        _check_levels(config)
        if schedule is not None:
            if not isinstance(schedule, Mapping) or schedule.get("format") != FORMAT:
                from stepsampler.rows import outside

                made = plan(schedule, config)
                left = outside(schedule)
                if left:
                    logger.warning(
                        f"The schedule {left}, which a scheduler alone cannot do: "
                        "run the pipeline inside `stepsampler.guided.guided(pipe, schedule)`."
                    )
                schedule = made
            if schedule["prediction_type"] != prediction_type:
                rows = f"the schedule's rows are for {schedule['prediction_type']}"
                raise ValueError(f"{rows}, the model's prediction type is {prediction_type}")
            self.register_to_config(schedule=schedule)
        self.flow = prediction_type == "flow_prediction"
        self.edm = _is_edm(config)
        if not self.flow and not self.edm:
            stock = DDPMScheduler(num_train_timesteps, **{k: config[k] for k in BETAS})
            self.betas, self.alphas_cumprod = stock.betas, stock.alphas_cumprod
            if rescale_betas_zero_snr:
                self.alphas_cumprod[-1] = min(LAST_ALPHA_BAR, float(self.alphas_cumprod[-2]) / 2)
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1, dtype=torch.float32)
        self._levels: Sequence[float] = ()
        self._step_index: int | None = None
        self._begin_index: int | None = None
        if schedule is not None:
            self.set_timesteps()

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Take over another scheduler's model: its betas, EDM's levels, or the shift of a flow.

        Raises:
            ValueError: a config of none of these kinds, or with an option that changes the model's
                levels or predictions and is not supported.
        """
        if config.get("snr_shift_scale") or config.get("timestep_type") == "continuous":
            from stepsampler.rows import reworded  # of CogVideoX, of CosXL

            config = reworded(config)
        betas = "beta_schedule" in config or _is_edm(config)
        if not betas and "shift" not in config:
            raise ValueError("the config has neither betas, nor EDM's levels, nor a flow's shift")
        _check_levels(config)
        if not betas or config.get("use_flow_sigmas"):
            kwargs.setdefault("prediction_type", "flow_prediction")
            kwargs.setdefault("shift", config.get("flow_shift", config.get("shift")))
        # Without this diffusers would put our defaults in place of the other class's
        config = {k: v for k, v in config.items() if k != "_use_default_values"}
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    @property
    def init_noise_sigma(self) -> float:
        """By this standard normal noise is multiplied: the sample then has x0 = 0.

        Pipelines of flow models, DiT and DDPM do not multiply; pass them scaled latents if the
        schedule starts far below the highest noise.
        """
        sigma = self._levels[0] if self._levels else 1.0
        return sigma if self.flow or not self._levels else sigma / self._scale(sigma)

    @property
    def step_index(self) -> int | None:
        """Of the step to come; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this step: image-to-image.

        Raises:
            ValueError: there is no such step.
        """
        n = self.num_inference_steps
        if n is not None and not 0 <= begin_index < n:
            raise ValueError(
                f"begin_index must be 0 to {n - 1}, got {begin_index}: the schedule has {n} steps, "
                f"so call the pipeline with num_inference_steps={n}, and with a strength or "
                "denoising_start that leaves a step of them"
            )
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Begin a new image. A held schedule takes none of the levels, which pipelines pass always.
        With `timesteps` the network is told the times from which sigmas were shifted.

        Without one, which EDM needs: trailing timesteps, or a flow's evenly spaced sigmas (or
        `sigmas`), shifted by `shift`, or by `mu` where the config has `use_dynamic_shifting`.

        Raises:
            ValueError: neither a schedule nor steps, timesteps alone, levels of another meaning.
        """
        _check_levels(self.config)  # which pipelines add to
        if timesteps is not None and (sigmas is None or not self.flow):
            raise ValueError("timesteps of a call's own are not supported")
        held = self.config.schedule
        if held:
            self._levels, told, self._rows = held["sigmas"], held["timesteps"], held["rows"]
            if num_inference_steps not in (None, len(told)):
                asked = f"num_inference_steps={num_inference_steps} is ignored"
                logger.warning(f"{asked}: the schedule has {len(told)} steps.")
        else:
            (told, self._levels), self._rows = self._grid(num_inference_steps, sigmas, mu), []
        if timesteps is not None:
            shift = self._shift(mu)
            told = [1000 * s / (shift - (shift - 1) * s) for s in self._levels[: len(told)]]
        told = [1000 - time for time in told] if self._inverted else told
        depth = max([len(u["x0"]) for row in self._rows for u in row.values()], default=1)
        self.num_inference_steps = len(told)
        self.timesteps = torch.tensor(told, dtype=torch.float32, device=device)
        self.sigmas = torch.tensor(self._levels, dtype=torch.float32)
        self._step_index, self._begin_index, self._taken = None, None, -1
        self._state: Tensor | None = None
        self._points: deque[Tensor] = deque(maxlen=depth)
        self._predictions: deque[Tensor] = deque(maxlen=depth)

    def _grid(
        self, count: int | None, sigmas: Any, mu: float | None
    ) -> tuple[list[float], list[float]]:
        """Timesteps, and sigmas with the last 0, where no schedule is held."""
        if sigmas is None and (count or 0) < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {count}: no schedule")
        count = count or 0
        if self.flow:
            even = np.linspace(1, 1 / count, count) if sigmas is None else np.asarray(sigmas, float)
            shift = self._shift(mu)
            shifted = shift * even / (1 + (shift - 1) * even)
            return (1000 * shifted).tolist(), [*shifted.tolist(), 0.0]
        if sigmas is not None or self.edm:
            raise ValueError("levels of a diffusion model come in a schedule only")
        total = len(self.alphas_cumprod)
        timesteps = np.round(np.arange(total, 0, -total / count))[:count] - 1
        return timesteps.tolist(), [*self._sigma(timesteps).tolist(), 0.0]

    def _shift(self, mu: float | None) -> float:
        if mu is None or not self.config.get("use_dynamic_shifting"):
            return float(self.config.shift)
        return mu if self.config.get("time_shift_type") == "linear" else exp(mu)

    @property
    def _inverted(self) -> bool:  # Mochi: time runs from 0, noise, to 1000; x0 - noise is predicted
        return self.flow and bool(self.config.get("invert_sigmas"))

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample: it has the scale that the network wants, but EDM's."""
        if not self.edm:
            return sample
        sigma = self._levels[self._index(timestep)]
        return sample / sqrt(sigma**2 + self.config.sigma_data**2)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[Tensor, Tensor]:
        """From the network's output at `sample` to the next sample.

        Steps follow one another; `timestep` says only where the first one is, and only where
        `set_begin_index` was not called. Channels beyond those of `sample`, a learned variance,
        are not used. Computed in float32 or better, returned in the dtype of `sample`.

        Raises:
            ValueError: `set_timesteps` was not called, or no step is left.
        """
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps before step")
        i = self._step_index = self._index(timestep)
        if i <= self._taken:  # as Cosmos does, to see its prediction first
            raise ValueError(f"step {i} is taken twice: a step needs those before it, once each")
        if i >= self.num_inference_steps:
            raise ValueError(f"all {i} steps are taken: call set_timesteps for another image")
        sigma, sigma_next = self._levels[i], self._levels[i + 1]
        dtype = torch.promote_types(sample.dtype, torch.float32)
        x = sample.to(dtype) * self._scale(sigma)
        x0 = self._x0(model_output[:, : sample.shape[1]].to(dtype), x, sigma)
        self._points.appendleft(x)
        self._predictions.appendleft(x0)

        row = self._rows[i] if self._rows else {}
        correct, advance = row.get("correct"), row.get("advance")
        state = x
        if correct and self._state is not None and self._seen(correct):
            state = self._apply(correct, self._state)
        if not (advance and self._seen(advance)):
            ratio = sigma_next / sigma  # order 1, whose weights are the levels themselves
            advance = {"state": ratio, "x0": [1 - ratio], "points": []}
        x = self._apply(advance, state)
        self._state, self._taken, self._step_index = state, i, i + 1
        if i + 1 < self.num_inference_steps or (self.config.schedule or {}).get("decode") != "x":
            x = x / self._scale(sigma_next)
        output = (x.to(sample.dtype), x0.to(sample.dtype))
        return StepOutput(*output) if return_dict else output

    def _scale(self, sigma: float) -> float:
        """x0 + sigma * noise, over a sample."""
        return 1.0 if self.flow or self.edm else sqrt(1 + sigma**2)

    def _seen(self, update: Mapping[str, Any]) -> bool:
        return len(update["x0"]) <= len(self._predictions)

    def _apply(self, update: Mapping[str, Any], state: Tensor) -> Tensor:
        x: Tensor = update["state"] * state
        for weight, x0 in zip(update["x0"], self._predictions, strict=False):
            x = x + weight * x0
        for weight, point in zip(update["points"], self._points, strict=False):
            x = x + weight * point
        return x

    def _x0(self, output: Tensor, x: Tensor, sigma: float) -> Tensor:
        kind = self.config.prediction_type
        if self.edm:  # Karras et al. 2022, eq. 7; diffusers' v_prediction is its negative
            data = float(self.config.sigma_data)
            total, sign = sigma**2 + data**2, -1 if kind == "v_prediction" else 1
            return data**2 / total * x + sign * sigma * data / sqrt(total) * output
        if kind == "epsilon" or self.flow:
            return x + (sigma if self._inverted else -sigma) * output
        if kind == "v_prediction":
            return x / (1 + sigma**2) - sigma / sqrt(1 + sigma**2) * output
        if kind == "sample":
            return output
        raise ValueError(
            "prediction_type must be epsilon, v_prediction, sample or flow_prediction, "
            f"got {kind!r}"
        )

    def _index(self, timestep: Any) -> int:
        """Of the step to come, which `timestep` tells only where nothing else does."""
        known = self._begin_index if self._step_index is None else self._step_index
        if known is not None:
            return known
        return int((self.timesteps.cpu() - float(timestep)).abs().argmin())

    def _sigma(self, timesteps: Any) -> Any:
        """Sigma at fractional timesteps; between training timesteps log sigma is linear."""
        if self.flow or self.edm:
            return np.exp(4 * timesteps) if self.edm else timesteps / 1000
        alphas = self.alphas_cumprod.double().numpy()
        logs = np.log((1 - alphas) / alphas) / 2
        return np.exp(np.interp(timesteps, np.arange(len(logs)), logs))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Samples at `timesteps`, one an image, fractional or not."""
        sigma = torch.as_tensor(self._sigma(timesteps.double().cpu().numpy()))
        alpha = 1 - sigma if self.flow else sigma**0 if self.edm else (1 + sigma**2) ** -0.5
        axes = (-1, *[1] * (original_samples.ndim - 1))
        share = sigma if self.flow else sigma * alpha
        alpha, share = (a.reshape(axes).to(original_samples) for a in (alpha, share))
        return alpha * original_samples + share * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` by the name that pipelines of flow models call."""
        return self.add_noise(sample, noise, timestep)
