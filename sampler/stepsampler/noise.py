"""The kinds of noise: timestep <-> sigma of a pretrained model, and what its network is told.

A network F gives x0 = c_skip x + c_out F(c_in x; c_noise) (Karras et al. 2022, eq. 7); `Scales` has
the first three numbers, `network_time` the last.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import exp, inf, log, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepsampler.errors import UserError
from stepsampler.schedule import PURE_NOISE, ModelSpec, Schedule

LAST_ALPHA_BAR = 2.0**-24  # of zero terminal SNR: diffusers' number in the place of 0; sigma 4,096


class Scales(NamedTuple):
    """x0 = c_skip x + c_out F(c_in x)."""

    c_in: float
    c_skip: float
    c_out: float


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
        noise = cls(tuple(scheduler.alphas_cumprod.double().tolist()))
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
            _check_levels(schedule, self.sigma_max)
        elif schedule.steps[0].analytic is not None:
            raise UserError("step 0: no gain of an analytic step is right in pure noise")


def _check_levels(schedule: Schedule, highest: float) -> None:
    first = schedule.steps[0].sigma
    if first > highest * 1.001:
        raise UserError(f"step 0: sigma {first:g} is above the model's highest, {highest:g}")
    for i, step in enumerate(schedule.steps):
        told = step.sigma * step.time_scale
        if step.time_scale != 1 and told > highest * 1.001:
            raise UserError(
                f"step {i}: the network is told sigma {told:g} (time_scale {step.time_scale:g}), "
                f"above the model's highest, {highest:g}"
            )


@dataclass(frozen=True)
class EDMSchedule:
    """Levels of x = x0 + sigma noise, and EDM's preconditioning (Karras et al. 2022, table 1).

    The data are taken to have the deviation `sigma_data`, the network is told ln(sigma) / 4. What
    diffusers calls a prediction of epsilon is F itself (Playground v2.5), v_prediction its negative
    (CosXL): with a sigma_data of 1 that is the v of a variance-preserving model. Timesteps only
    place: evenly spaced ones have Karras' sigmas (eq. 5), log-linear ones where `rho` is None.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    rho: float | None = 7.0
    last = count = 1000

    @classmethod
    def from_scheduler_config(cls, config: Mapping[str, Any]) -> "EDMSchedule":
        """Read the config of diffusers' EDMEulerScheduler or EDMDPMSolverMultistepScheduler."""
        low, high, data = (float(config[f"sigma_{k}"]) for k in ("min", "max", "data"))
        if not (0 < low < high < inf and 0 < data < inf):
            found = f"{low:g}, {high:g}, {data:g}"
            raise UserError(f"0 < sigma_min < sigma_max and 0 < sigma_data, got {found}")
        karras = config["sigma_schedule"] == "karras"
        return cls(low, high, data, float(config["rho"]) if karras else None)

    def stock_sigmas(self, n: int) -> list[float]:
        """The n levels of the stock schedulers, both ends among them; 0 follows."""
        return timesteps_to_sigmas(self, np.linspace(self.last, 0, n))

    def sigma(self, timestep: float) -> float:
        u = timestep / self.last
        if self.rho is None:
            return float(self.sigma_min * (self.sigma_max / self.sigma_min) ** u)
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return float((low + u * (high - low)) ** self.rho)

    def timestep(self, sigma: float) -> float:
        """Clamped to [0, last]."""
        sigma = min(max(sigma, self.sigma_min), self.sigma_max)
        levels = (sigma, self.sigma_min, self.sigma_max)
        at, low, high = (log(s) if self.rho is None else s ** (1 / self.rho) for s in levels)
        return float(self.last * (at - low) / (high - low))

    def snap(self, timesteps: NDArray[np.float64]) -> NDArray[np.float64]:
        """As they are: levels are continuous."""
        return timesteps

    def network_time(self, sigma: float) -> float:
        return log(sigma) / 4

    def sigma_by_alpha_bar(self, timestep: float) -> float:
        return self.sigma(timestep)

    def scales(self, sigma: float, prediction_type: str) -> Scales:
        total = sigma**2 + self.sigma_data**2
        sign = -1 if prediction_type == "v_prediction" else 1
        c_out = sign * sigma * self.sigma_data / sqrt(total)
        return Scales(1 / sqrt(total), self.sigma_data**2 / total, c_out)

    def spec(self, family: str, prediction_type: str) -> ModelSpec:
        noise = np.geomspace(self.sigma_min, self.sigma_max, 5)  # whatever the placement
        levels = tuple(float(f"{s:.8g}") for s in noise)
        return ModelSpec(family, prediction_type, levels, self.sigma_data)

    def check_range(self, schedule: Schedule) -> None:
        _check_levels(schedule, self.sigma_max)


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

    def scales(self, sigma: float, prediction_type: str) -> Scales:
        """The flow is noise - x0."""
        return Scales(1.0, 1.0, -sigma)

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


Noise = NoiseSchedule | FlowSchedule | EDMSchedule


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a diffusers scheduler config is that of a flow model."""
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return True
    return "shift" in config and "beta_schedule" not in config and not is_edm(config)


def is_edm(config: Mapping[str, Any]) -> bool:
    """Whether a diffusers scheduler config has EDM's preconditioning.

    CosineDPMSolverMultistepScheduler (Stable Audio) tells its network an angle; it has a solver's
    order and no choice of the algorithm.
    """
    edm = all(config.get(key) for key in ("sigma_data", "sigma_schedule", "rho"))
    return edm and ("solver_order" not in config or "algorithm_type" in config)


def read_noise(config: Mapping[str, Any], tokens: int = 0) -> tuple[Noise, str]:
    """Noise and prediction type of a diffusers scheduler config; `tokens`: see `FlowSchedule`.

    Raises:
        UserError: levels of another kind, or a prediction that does not go with them.
    """
    kind = str(config.get("prediction_type", "epsilon"))
    if is_flow(config):
        return FlowSchedule.from_scheduler_config(config, tokens), "flow_prediction"
    known, edm = PREDICTIONS, is_edm(config)
    noise: Noise
    if edm:
        noise, known = EDMSchedule.from_scheduler_config(config), PREDICTIONS[:2]
    elif "beta_schedule" in config:
        noise = NoiseSchedule.from_scheduler_config(config)
    else:
        name = config.get("_class_name")
        raise UserError(
            f"the model's scheduler{f' ({name})' if name else ''} has neither betas, nor EDM's "
            "preconditioning with a network that is told log sigma, nor the shift of a flow"
        )
    if kind not in known:
        raise UserError(f"prediction_type must be one of {', '.join(known)}, got {kind!r}")
    if config.get("rescale_betas_zero_snr") and kind == "epsilon" and not edm:
        raise UserError(ZERO_SNR_OF_EPSILON)
    for option, usual in (("timestep_type", "discrete"), ("snr_shift_scale", 1.0)):
        value = config.get(option, usual)
        if value not in (usual, None):
            raise UserError(f"{option} of the model's scheduler is not supported, got {value}")
    return noise, kind


PREDICTIONS: tuple[str, ...] = ("epsilon", "v_prediction", "sample")
ZERO_SNR_OF_EPSILON = (
    "zero terminal SNR does not go with a model that predicts epsilon, which in pure noise says "
    "nothing of x0: give --prediction-type v_prediction, or --no-zero-snr, as it was trained"
)


def noise_of(schedule: Schedule) -> Noise | None:
    """The noise levels of the model that a schedule was made for, if they are well-known.

    A schedule for no model in particular is taken as one for Stable Diffusion, if it can be.
    """
    model = schedule.model
    if schedule.flow:
        return FlowSchedule()
    if model and model.sigma_data:
        return EDMSchedule(min(model.noise), max(model.noise), model.sigma_data, None)
    for noise in WELL_KNOWN:
        if model is None:
            return noise if schedule.steps[0].sigma <= noise.sigma_max * 1.001 else None
        if not model.mismatch(noise.spec(model.family, model.prediction_type)):
            return noise
    return None


def timesteps_to_sigmas(noise: Noise, timesteps: Iterable[float]) -> list[float]:
    return [noise.sigma(t) for t in timesteps]


WELL_KNOWN: tuple[NoiseSchedule, ...] = (NoiseSchedule.scaled_linear(), NoiseSchedule.linear())
WELL_KNOWN += tuple(noise.zero_terminal_snr() for noise in WELL_KNOWN)
