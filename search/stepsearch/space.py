"""A fixed box of numbers <-> schedules.

Every point of the box is a valid schedule within the budget, and the box is the same in every
trial, so that no algorithm has to drop a parameter. «Off», «exactly zero», order and the number of
steps are thresholds on a float, not categories.

Placement and guidance are curves over the trajectory, given at `num_steps` knots. A schedule of
`num_steps` steps has one step at each knot; one of more steps (up to `max_steps`) interpolates.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import log

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution

from stepsampler.grids import GRIDS, from_sigmas
from stepsampler.noise import Noise
from stepsampler.schedule import ModelSpec, Schedule
from stepsearch.config import SpaceConfig

Params = dict[str, float]
SHORTEST_GAP = 0.02  # of an even gap: some grids end with a step from sigma_min to 0


@dataclass(frozen=True)
class SearchSpace:
    """Placement as log-factors on the gaps, in timesteps, of the grid at the centre of the box.

    0 everywhere, with the grid's own final sigma, is that grid at any number of steps.
    """

    config: SpaceConfig
    noise: Noise
    model: ModelSpec
    grid: str

    @property
    def distributions(self) -> dict[str, FloatDistribution]:
        """The box: name -> interval."""
        c = self.config
        box = {name: FloatDistribution(*c.log_gap) for name in self._names("log_gap")}
        box["final_sigma"] = FloatDistribution(*c.final_sigma, log=True)
        if c.guidance == "per-step":
            box |= {n: FloatDistribution(*c.guidance_scale) for n in self._names("guidance_scale")}
        else:
            box["guidance_scale"] = FloatDistribution(*c.guidance_scale)
        if c.guidance == "linear":
            reach = (c.guidance_scale[1] - c.guidance_scale[0]) / 2
            box["guidance_slope"] = FloatDistribution(-reach, reach)
        if c.max_order > 1:
            box["order"] = FloatDistribution(0.5, c.max_order + 0.5)
        if c.most_steps > c.num_steps:
            box["num_steps"] = FloatDistribution(c.num_steps - 0.5, c.most_steps + 0.5)
        return box

    def schedule(self, params: Params) -> Schedule:
        """The schedule at a point of the box."""
        c = self.config
        n = _whole(params.get("num_steps", c.num_steps), c.num_steps, c.most_steps)
        final_sigma = params["final_sigma"]
        if final_sigma < self.noise.sigma_min:
            final_sigma = 0.0
        at = _middles(n)
        curve = np.interp(at, _middles(c.num_steps), [params[k] for k in self._names("log_gap")])
        sigmas = GRIDS[self.grid](n, self.noise)
        gaps = self._gaps(sigmas) * np.exp(curve)
        first, final = self.noise.timestep(sigmas[0]), self.noise.timestep(final_sigma)
        timesteps = first - (first - final) * np.cumsum([0, *gaps[:-1]]) / gaps.sum()
        order = _whole(params.get("order", 1), 1, c.max_order)
        return from_sigmas(
            [self.noise.sigma(t) for t in timesteps],
            final_sigma,
            within_budget(self._guidance(params, at).tolist(), c.passes),
            order,
            c.solver,
            self.model,
        )

    def params(self, schedule: Schedule) -> tuple[Params, bool]:
        """The point nearest to a schedule, and whether it is that schedule."""
        c, n = self.config, schedule.num_steps
        point: Params = {"final_sigma": schedule.final_sigma}
        ours = self._gaps(GRIDS[self.grid](n, self.noise))
        ratios = np.log(self._gaps(schedule.sigmas) / ours)
        knots = np.interp(_middles(c.num_steps), _middles(n), ratios - ratios.mean())
        point |= zip(self._names("log_gap"), knots.tolist(), strict=True)
        off = max(c.guidance_scale[0], min(0.8, c.guidance_scale[1]))
        scales = [off if s.guidance_scale == 1 else s.guidance_scale for s in schedule.steps]
        at_knots = np.interp(_middles(c.num_steps), _middles(n), scales)
        point |= zip(self._names("guidance_scale"), at_knots.tolist(), strict=True)
        point |= {"guidance_scale": float(np.mean(scales)), "guidance_slope": 0.0}
        point |= {"order": float(max(s.order for s in schedule.steps)), "num_steps": float(n)}
        box = self.distributions
        point = {name: min(max(point[name], d.low), d.high) for name, d in box.items()}
        return point, _same(self.schedule(point), schedule)

    def _guidance(self, params: Params, at: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.config.guidance == "per-step":
            knots = [params[name] for name in self._names("guidance_scale")]
            return np.asarray(np.interp(at, _middles(self.config.num_steps), knots))
        return params["guidance_scale"] + params.get("guidance_slope", 0.0) * (2 * at - 1)

    def _names(self, stem: str) -> list[str]:
        return [f"{stem}_{i}" for i in range(self.config.num_steps)]

    def _gaps(self, sigmas: tuple[float, ...] | list[float]) -> NDArray[np.float64]:
        """In timesteps; none of them vanishes."""
        timesteps = [self.noise.timestep(s) for s in sigmas]
        shortest = SHORTEST_GAP * timesteps[0] / (len(sigmas) - 1)
        return np.array([max(start - end, shortest) for start, end in pairwise(timesteps)])


def within_budget(guidance: list[float], passes: int) -> list[float]:
    """Guidance below or at 1 is off; then the weakest guided steps go off until passes suffice."""
    scales = [w if w > 1 else 1.0 for w in guidance]
    guided = sorted((w, i) for i, w in enumerate(scales) if w > 1)
    for _, i in guided[: max(0, len(scales) + len(guided) - passes)]:
        scales[i] = 1.0
    return scales


def _middles(n: int) -> NDArray[np.float64]:
    """Where n steps lie in the trajectory, from 0 (noise) to 1 (image)."""
    return (np.arange(n) + 0.5) / n


def _whole(value: float, low: int, high: int) -> int:
    return min(max(round(value), low), high)


def _same(a: Schedule, b: Schedule) -> bool:
    if (a.solver, a.num_steps, a.final_sigma == 0) != (b.solver, b.num_steps, b.final_sigma == 0):
        return False
    close = [abs(log(s / t)) < 1e-3 for s, t in zip(a.sigmas, b.sigmas, strict=True) if s and t]
    return all(close) and all(
        s.order == t.order and abs(s.guidance_scale - t.guidance_scale) < 1e-9
        for s, t in zip(a.steps, b.steps, strict=True)
    )
