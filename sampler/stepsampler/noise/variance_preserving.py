"""The betas of Stable Diffusion, DDPM and their kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepsampler.errors import UserError
from stepsampler.noise.scales import Scales, check_levels
from stepsampler.schedule import PURE_NOISE, ModelSpec, Schedule

LAST_ALPHA_BAR = 2.0**-24  # of zero terminal SNR: diffusers' number in the place of 0; sigma 4,096


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise levels on which a variance-preserving model was trained.

    `alphas_cumprod[t]` is alpha-bar at the integer training timestep t; sigma = sqrt(1 / alpha-bar
    - 1) is the noise of x = x0 + sigma * noise. Between integers log sigma is linear in t.

    Where its end is pure noise (zero terminal SNR), sigma is infinite. It is 4,096 here, as in
    diffusers' Euler, DPM++ and UniPC (ComfyUI: 4,519); any higher one is taken for the last level.

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
        scheduler = DDPMScheduler(**{k: config[k] for k in wanted if config.get(k) is not None})
        alphas = scheduler.alphas_cumprod.double()
        if shift := config.get("snr_shift_scale"):  # CogVideoX: the SNR over this (2403.03206)
            alphas = alphas / (shift + (1 - shift) * alphas)
        noise = cls(tuple(alphas.tolist()))
        return noise.zero_terminal_snr() if config.get("rescale_betas_zero_snr") else noise

    def zero_terminal_snr(self) -> "NoiseSchedule":
        """Amplitudes shifted so that the last is 0, and scaled so that the first stays.

        Lin et al. 2023 (arXiv 2305.08891), algorithm 1. In the place of the last alpha-bar, 0, is
        2^-24, or half of the level before where that is less.
        """
        roots = np.sqrt(np.asarray(self.alphas_cumprod))
        alphas = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
        alphas[-1] = min(LAST_ALPHA_BAR, alphas[-2] / 2)
        return NoiseSchedule(tuple(alphas.tolist()))

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
    def ends_in_noise(self) -> bool:
        return self.sigma_max > PURE_NOISE

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
        return self.timestep(sigma)

    def scales(self, sigma: float, prediction_type: str) -> Scales:
        """At unit variance: of noise, of v = alpha * noise - sigma_vp * x0, or of x0 itself."""
        alpha = 1 / sqrt(1 + sigma**2)
        kinds = {
            "epsilon": (1.0, -sigma),
            "v_prediction": (alpha**2, -(alpha * sigma)),
            "sample": (0.0, 1.0),
        }
        return Scales(alpha, *kinds[prediction_type])

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
        """Refuse a start beyond the noise on which the model was trained."""
        if not self.ends_in_noise:
            check_levels(schedule, self.sigma_max)
        elif schedule.steps[0].analytic is not None:
            raise UserError("step 0: no gain of an analytic step is right in pure noise")
