"""EDM's preconditioning: Playground v2.5, CosXL."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log, nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepsampler.errors import UserError
from stepsampler.noise.scales import Scales, check_levels
from stepsampler.noise.variance_preserving import NoiseSchedule
from stepsampler.schedule import ModelSpec, Schedule

HIGHEST = 1_000_000  # sigma: squares of it are finite in float32, and no model knows half as much


def is_continuous(config: Mapping[str, Any]) -> bool:
    """Whether a config is of an EulerDiscreteScheduler whose network is told ln(sigma) / 4.

    Of other predictions than v diffusers tells it whole timesteps whatever `timestep_type` is.
    """
    said = config.get("timestep_type"), config.get("prediction_type")
    return said == ("continuous", "v_prediction") and not config.get("sigma_data")


def in_words_of_edm(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an EulerDiscreteScheduler with continuous timesteps, as an EDMEulerScheduler's.

    Its c_in, 1 / sqrt(1 + sigma^2), and its x0, x / (1 + sigma^2) - sigma F / sqrt(1 + sigma^2),
    are EDM's with a sigma_data of 1 (Karras et al. 2022, eq. 7, of -F). Ends that it does not say
    are those of its betas, as in its own grids.
    """
    kept = {k: v for k, v in config.items() if k != "timestep_type"}
    ends = {k: config.get(k) for k in ("sigma_min", "sigma_max")}
    if None in ends.values():
        betas = NoiseSchedule.from_scheduler_config(config)
        ends = {k: getattr(betas, k) if v is None else v for k, v in ends.items()}
    placed = "karras" if config.get("use_karras_sigmas") else "exponential"
    return {**kept, **ends, "sigma_data": 1.0, "sigma_schedule": placed, "rho": 7.0}


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
        """Read the config of diffusers' EDMEulerScheduler or EDMDPMSolverMultistepScheduler.

        Or of an EulerDiscreteScheduler with continuous timesteps: see `in_words_of_edm`.
        """
        config = in_words_of_edm(config) if is_continuous(config) else config
        given = [config[f"sigma_{k}"] for k in ("min", "max", "data")]
        numbers = [x for x in given if isinstance(x, int | float) and not isinstance(x, bool)]
        low, high, data = map(float, numbers if len(numbers) == 3 else (nan, nan, nan))
        if not (0 < low < high <= HIGHEST and 0 < data <= HIGHEST):
            found = ", ".join(map(str, given))
            raise UserError(
                f"0 < sigma_min < sigma_max <= {HIGHEST:,} and 0 < sigma_data <= {HIGHEST:,} must "
                f"hold of the model's scheduler, got {found}"
            )
        karras = config["sigma_schedule"] == "karras"
        return cls(low, high, data, float(config["rho"]) if karras else None)

    def stock_sigmas(self, n: int) -> list[float]:
        """The n levels of the stock schedulers, both ends among them; 0 follows."""
        return [self.sigma(t) for t in np.linspace(self.last, 0, n)]

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
        check_levels(schedule, self.sigma_max)
