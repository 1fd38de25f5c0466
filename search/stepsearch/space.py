"""A fixed box of numbers <-> schedules.

Every point of the box is a valid schedule within the budget, and the box is the same in every
trial, so that no algorithm has to drop a parameter. «Off» and «exactly zero» are thresholds on a
float, not categories.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import exp, log

from optuna.distributions import FloatDistribution

from stepsampler.grids import from_sigmas
from stepsampler.noise import NoiseSchedule
from stepsampler.schedule import ModelSpec, Schedule
from stepsearch.config import SpaceConfig

Params = dict[str, float]


@dataclass(frozen=True)
class SearchSpace:
    """Placement as log-factors on the gaps of a baseline grid (0 everywhere is the baseline).

    `baseline` holds the num_steps + 1 sigmas of the grid at the centre of the box.
    """

    config: SpaceConfig
    noise: NoiseSchedule
    model: ModelSpec
    baseline: tuple[float, ...]

    @property
    def distributions(self) -> dict[str, FloatDistribution]:
        """The box: name -> interval."""
        c, n = self.config, self.config.num_steps
        box = {f"log_gap_{i}": FloatDistribution(*c.log_gap) for i in range(n - 1)}
        box["final_sigma"] = FloatDistribution(*c.final_sigma, log=True)
        for name in self._guidance_names:
            box[name] = FloatDistribution(*c.guidance_scale)
        if c.max_order > 1:
            box["order"] = FloatDistribution(0.5, c.max_order + 0.5)
        return box

    @property
    def _guidance_names(self) -> list[str]:
        if self.config.guidance == "constant":
            return ["guidance_scale"]
        return [f"guidance_scale_{i}" for i in range(self.config.num_steps)]

    def schedule(self, params: Params) -> Schedule:
        """The schedule at a point of the box."""
        n = self.config.num_steps
        final_sigma = params["final_sigma"]
        if final_sigma < self.noise.sigma_min:
            final_sigma = 0.0
        gaps = list(self._baseline_gaps)
        for i in range(n - 1):  # only ratios matter: the last gap stays
            gaps[i] *= exp(params[f"log_gap_{i}"])
        first, final = self.noise.timestep(self.baseline[0]), self.noise.timestep(final_sigma)
        unit = (first - final) / sum(gaps)
        timesteps, t = [], first
        for gap in gaps:
            timesteps.append(t)
            t -= unit * gap
        guidance = [params[name] for name in self._guidance_names]
        if len(guidance) == 1:
            guidance *= n
        order = 1
        if "order" in params:
            order = min(max(round(params["order"]), 1), self.config.max_order)
        return from_sigmas(
            [self.noise.sigma(t) for t in timesteps],
            final_sigma,
            within_budget(guidance, self.config.passes),
            order,
            self.config.solver,
            self.model,
        )

    def params(self, schedule: Schedule) -> tuple[Params, bool]:
        """The point nearest to a schedule of `num_steps` steps, and whether it is that schedule."""
        c, n = self.config, self.config.num_steps
        low, high = c.final_sigma
        final = schedule.final_sigma
        point = {"final_sigma": min(max(final, low), high)}
        ratios = [
            log(gap / ours)
            for gap, ours in zip(self._gaps(schedule.sigmas), self._baseline_gaps, strict=True)
        ]
        for i in range(n - 1):
            point[f"log_gap_{i}"] = min(max(ratios[i] - ratios[-1], c.log_gap[0]), c.log_gap[1])
        weakest, strongest = c.guidance_scale
        off = max(weakest, min(0.8, strongest))
        scales = [
            off if s.guidance_scale == 1 else min(max(s.guidance_scale, weakest), strongest)
            for s in schedule.steps
        ]
        if c.guidance == "constant":
            point["guidance_scale"] = sum(scales) / n
        else:
            point |= {f"guidance_scale_{i}": w for i, w in enumerate(scales)}
        if c.max_order > 1:
            point["order"] = float(max(s.order for s in schedule.steps))
        again = self.schedule(point)
        same = again.solver == schedule.solver and all(
            a.order == b.order
            and abs(a.sigma - b.sigma) <= 1e-3 * b.sigma
            and abs(a.guidance_scale - b.guidance_scale) < 1e-9
            for a, b in zip(again.steps, schedule.steps, strict=True)
        )
        return point, same and abs(again.final_sigma - final) <= 1e-3 * final

    @property
    def _baseline_gaps(self) -> list[float]:
        return self._gaps(self.baseline)

    def _gaps(self, sigmas: tuple[float, ...]) -> list[float]:
        """In timesteps, at least 1: some grids end with a step from sigma_min to 0."""
        timesteps = [self.noise.timestep(s) for s in sigmas]
        return [max(start - end, 1.0) for start, end in pairwise(timesteps)]


def within_budget(guidance: list[float], passes: int) -> list[float]:
    """Guidance below or at 1 is off; then the weakest guided steps go off until passes suffice."""
    scales = [w if w > 1 else 1.0 for w in guidance]
    guided = sorted((w, i) for i, w in enumerate(scales) if w > 1)
    for _, i in guided[: max(0, len(scales) + len(guided) - passes)]:
        scales[i] = 1.0
    return scales
