"""Rectified flow, with the shifts of its placements."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import exp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepsampler.errors import UserError
from stepsampler.noise.scales import Scales
from stepsampler.schedule import ModelSpec, Schedule


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
        sigmas = [own.sigma(t) for t in np.linspace(self.last, 0, n + 1)[:-1]]
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
