"""Timestep <-> sigma of a pretrained model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import exp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepsampler.errors import UserError
from stepsampler.schedule import ModelSpec, Schedule


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise levels on which a variance-preserving model was trained.

    `alphas_cumprod[t]` is alpha-bar at the integer training timestep t; sigma = sqrt(1 / alpha-bar
    - 1) is the noise of x = x0 + sigma * noise. Between integers log sigma is linear in t.

    Raises:
        UserError: alpha-bar does not fall from below 1 to above 0.
    """

    alphas_cumprod: tuple[float, ...]

    def __post_init__(self) -> None:
        alphas = np.asarray(self.alphas_cumprod)
        if not (len(alphas) > 1 and np.all(np.diff(alphas) < 0) and 0 < alphas[-1] < alphas[0] < 1):
            raise UserError(
                "the model's alphas_cumprod must fall strictly inside (0, 1), "
                f"got {len(alphas)} values from {alphas[:1]} to {alphas[-1:]}"
            )

    @classmethod
    def scaled_linear(
        cls, beta_start: float = 0.00085, beta_end: float = 0.012, steps: int = 1000
    ) -> "NoiseSchedule":
        """The betas of Stable Diffusion 1.x, 2.x and XL: linear in their square root."""
        betas = np.linspace(beta_start**0.5, beta_end**0.5, steps) ** 2
        return cls(tuple(np.cumprod(1 - betas).tolist()))

    @classmethod
    def linear(cls, beta_start: float = 1e-4, beta_end: float = 0.02) -> "NoiseSchedule":
        """The betas of DDPM, DiT and PixArt."""
        return cls(tuple(np.cumprod(1 - np.linspace(beta_start, beta_end, 1000)).tolist()))

    @classmethod
    def from_scheduler_config(cls, config: Mapping[str, Any]) -> "NoiseSchedule":
        """Read the betas of any diffusers scheduler config of the DDPM kind."""
        from diffusers import DDPMScheduler  # which knows all kinds of betas

        wanted = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
        if "beta_schedule" not in config:
            raise UserError(
                "the model's scheduler has no betas; only variance-preserving and flow models "
                "are supported"
            )
        if config.get("rescale_betas_zero_snr"):
            raise UserError(
                "the model's scheduler rescales its betas to zero terminal SNR, where sigma is "
                "infinite; such models are not supported so far"
            )
        scheduler = DDPMScheduler(**{k: config[k] for k in wanted if config.get(k) is not None})
        return cls(tuple(scheduler.alphas_cumprod.double().tolist()))

    @property
    def count(self) -> int:
        """Training timesteps."""
        return len(self.alphas_cumprod)

    def snap(self, timesteps: NDArray[np.float64]) -> NDArray[np.float64]:
        """The nearest training timesteps."""
        return np.round(timesteps)

    @cached_property
    def log_sigmas(self) -> NDArray[np.float64]:
        alphas = np.asarray(self.alphas_cumprod)
        return np.asarray(np.log((1 - alphas) / alphas) / 2)

    @property
    def last(self) -> int:
        """The noisiest training timestep, 999 for Stable Diffusion."""
        return len(self.alphas_cumprod) - 1

    @property
    def sigma_min(self) -> float:
        return self.sigma(0)

    @property
    def sigma_max(self) -> float:
        return self.sigma(self.last)

    def sigma(self, timestep: float) -> float:
        """Sigma at a fractional timestep in [0, last]."""
        return float(np.exp(np.interp(timestep, np.arange(self.last + 1), self.log_sigmas)))

    def timestep(self, sigma: float) -> float:
        """Fractional timestep of a sigma; clamped to [0, last]."""
        if sigma <= 0:
            return 0.0
        return float(np.interp(np.log(sigma), self.log_sigmas, np.arange(self.last + 1)))

    def network_time(self, sigma: float) -> float:
        """What the network gets as its timestep."""
        return self.timestep(sigma)

    def sigma_by_alpha_bar(self, timestep: float) -> float:
        """Sigma with alpha-bar, not log sigma, linear in t: as the seed's grids have it."""
        alpha = np.interp(timestep, np.arange(self.last + 1), self.alphas_cumprod)
        return float(np.sqrt((1 - alpha) / alpha))

    def spec(self, family: str, prediction_type: str) -> ModelSpec:
        """What a schedule file records of the model.

        Digests of a model contain it; the last digits of a scheduler's alphas differ between
        processors, so they are left out.
        """
        quarters = [self.sigma(round(self.last * q / 4)) for q in range(5)]
        return ModelSpec(family, prediction_type, tuple(float(f"{s:.8g}") for s in quarters))

    def check_range(self, schedule: Schedule) -> None:
        """Refuse a schedule that starts beyond the noise on which the model was trained."""
        first = schedule.steps[0].sigma
        if first > self.sigma_max * 1.001:
            raise UserError(
                f"step 0: sigma {first:g} is above the model's highest, {self.sigma_max:g}"
            )
        for i, step in enumerate(schedule.steps):
            told = step.sigma * step.time_scale
            if step.time_scale != 1 and told > self.sigma_max * 1.001:
                raise UserError(
                    f"step {i}: the network is told sigma {told:g} (time_scale "
                    f"{step.time_scale:g}), above the model's highest, {self.sigma_max:g}"
                )


@dataclass(frozen=True)
class FlowSchedule:
    """Rectified flow, x = (1 - sigma) x0 + sigma noise with sigma from 1 to 0.

    The network gets 1000 sigma. Timesteps are a coordinate for placements: evenly spaced ones have
    the sigmas `shift * u / (1 + (shift - 1) * u)`, u = t / 1000 (Esser et al. 2024, eq. 23).

    `stock_sigmas` are those of a stock pipeline that hands even ones to its scheduler. The last may
    be `terminal`, to which the others are stretched (diffusers' `shift_terminal`); the logarithm of
    the shift may be linear in the number of steps, `log_shift` = (slope, intercept), and `shift`
    then is that of some number.
    """

    shift: float = 1.0
    terminal: float = 0.0
    log_shift: tuple[float, float] | None = None
    last = count = 1000
    sigma_min = 0.001
    sigma_max = 1.0

    @classmethod
    def from_scheduler_config(cls, config: Mapping[str, Any], tokens: int) -> "FlowSchedule":
        """Read the shift of a diffusers scheduler config; some depend on the number of patches.

        Such a one is mu, linear in `tokens`, or its exponential (FLUX.1; diffusers'
        `calculate_shift` and `FlowMatchEulerDiscreteScheduler.time_shift`).
        """
        terminal = float(config.get("shift_terminal") or 0.0)
        if not config.get("use_dynamic_shifting"):
            return cls(float(config.get("shift") or config.get("flow_shift") or 1.0), terminal)
        few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        mu = low + (high - low) * (tokens - few) / (many - few)
        return cls(mu if config.get("time_shift_type") == "linear" else exp(mu), terminal)

    def stock_sigmas(self, n: int) -> list[float]:
        """The n levels of the stock pipeline, shifted from evenly spaced ones; 0 follows them."""
        own = self
        if self.log_shift:
            slope, intercept = self.log_shift
            own = replace(self, shift=exp(slope * n + intercept))
        sigmas = timesteps_to_sigmas(own, np.linspace(self.last, 0, n + 1)[:-1])
        if not self.terminal:
            return sigmas
        stretch = (1 - self.terminal) / (1 - sigmas[-1]) if n > 1 else 1.0
        return [1 - stretch * (1 - sigma) for sigma in sigmas]

    def sigma(self, timestep: float) -> float:
        u = min(timestep / self.last, 1.0)
        return self.shift * u / (1 + (self.shift - 1) * u)

    def snap(self, timesteps: NDArray[np.float64]) -> NDArray[np.float64]:
        """As they are: a flow is trained on all times."""
        return timesteps

    def timestep(self, sigma: float) -> float:
        return self.last * sigma / (self.shift - (self.shift - 1) * sigma)

    def network_time(self, sigma: float) -> float:
        return 1000 * sigma

    def sigma_by_alpha_bar(self, timestep: float) -> float:
        return self.sigma(timestep)

    def spec(self, family: str, prediction_type: str = "flow_prediction") -> ModelSpec:
        """The levels are the same for every flow model; its shift only places steps."""
        return ModelSpec(family, prediction_type, (0.0, 0.25, 0.5, 0.75, 1.0))

    def check_range(self, schedule: Schedule) -> None:
        """Refuse a schedule with levels that a flow does not have."""
        first = schedule.steps[0].sigma
        if first > 1:
            raise UserError(f"step 0: sigma {first:g} is above 1, where a flow model starts")


Noise = NoiseSchedule | FlowSchedule


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a diffusers scheduler config is that of a flow model."""
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return True
    return "shift" in config and "beta_schedule" not in config


def noise_of(schedule: Schedule) -> Noise | None:
    """The noise levels of the model that a schedule was made for, if they are well-known ones.

    A schedule for no model in particular is taken as one for Stable Diffusion, if it can be.
    """
    if schedule.flow:
        return FlowSchedule()
    for noise in (NoiseSchedule.scaled_linear(), NoiseSchedule.linear()):
        if schedule.model is None:
            return noise if schedule.steps[0].sigma <= noise.sigma_max * 1.001 else None
        spec = noise.spec(schedule.model.family, schedule.model.prediction_type)
        if not schedule.model.mismatch(spec):
            return noise
    return None


def timesteps_to_sigmas(noise: Noise, timesteps: Iterable[float]) -> list[float]:
    return [noise.sigma(t) for t in timesteps]
