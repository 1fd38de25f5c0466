"""A fixed box of numbers <-> schedules.

Every point of the box is a valid schedule within the budget, and the box is the same in every
trial, so that no algorithm has to drop a parameter. «Off», «exactly zero», order, solver and the
number of steps are thresholds on a float, not categories.

An interval whose ends are equal fixes what it bounds: then it is no axis.

What varies along the trajectory is a curve given at `num_steps` knots. A schedule of `num_steps`
steps has one step at each knot; one of more steps (up to `max_steps`) interpolates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution
from scipy.optimize import minimize_scalar

from stepsampler.errors import UserError
from stepsampler.grids import GRIDS, from_sigmas, power, whole_timesteps
from stepsampler.noise import Noise
from stepsampler.schedule import (
    BY_STATISTICS,
    SOLVERS,
    FreeU,
    ModelSpec,
    Schedule,
    StatisticsSpec,
)
from stepsearch.config.space import NO_ANALYTIC, OFF, SpaceConfig
from stepsearch.space.curves import curve, knots_of, middles, names_of
from stepsearch.space.golden import golden_noise, kind_of
from stepsearch.space.guidance import (
    guidance_of,
    iterated,
    iterations,
    statistics_for,
    under,
    within_budget,
)
from stepsearch.space.likeness import chosen_form, form, same

Params = dict[str, float]
SHORTEST_GAP = 0.02  # of an even gap: some grids end with a step from sigma_min to 0
FREE_U_SETS = (("b1", "b2", "s1", "s2"), ("b1_second", "b2_second", "s1_second", "s2_second"))


@dataclass(frozen=True)
class SearchSpace:
    """The axes that a study switches on, around the grid at the centre of the box.

    Placement is log-factors on the gaps of that grid in timesteps: 0 everywhere, with the grid's
    own final sigma, is that grid at any number of steps. Or it is a power law.

    Raises:
        UserError: an axis that the model cannot have.
    """

    config: SpaceConfig
    noise: Noise
    model: ModelSpec
    grid: str
    guidance: str = "classifier-free"  # distilled: a guided step costs one pass as well
    placements: Mapping[int, list[float]] = field(default_factory=dict)  # of a grid without formula
    boundary: float | None = None  # the model's own, where it changes its network
    known: Sequence[StatisticsSpec] = ()  # statistics of the model

    def __post_init__(self) -> None:
        for name, used in (("reuse", self.config.reuse > 1), ("repeats", self.config.repeats)):
            if used and self.guidance == "distilled":
                raise UserError(
                    f"space.{name} is for classifier-free guidance, the model's is distilled"
                )
        self._statistics  # noqa: B018 - refused here, if at all
        if self.model.prediction_type == "flow_prediction":
            for name in ("analytic", "churn", "decode", "whole_timesteps"):
                if getattr(self.config, name):
                    raise UserError(f"space.{name} is not for a flow model")
            if self.config.golden_noise != (OFF,):
                raise UserError("space.golden_noise is not for a flow model")

    @cached_property
    def _statistics(self) -> StatisticsSpec | None:
        return statistics_for(self.config, self.known)

    def statistics_of(self, solver: str) -> StatisticsSpec | None:
        """Those by which a solver of the box goes, if it goes by any."""
        return self._statistics if solver == BY_STATISTICS else None

    def centre(self, n: int) -> list[float]:
        """The n + 1 falling sigmas of the grid.

        Where it has neither formula nor placement for n, as the nearest number of steps has them.
        """
        if n in self.placements:
            return self.placements[n]
        if self.grid in GRIDS:
            return GRIDS[self.grid](n, self.noise)
        nearest = self.placements[min(self.placements, key=lambda known: abs(known - n))]
        known = np.linspace(0, 1, len(nearest))
        times = [self.noise.timestep(sigma) for sigma in nearest]
        *between, _ = np.interp(np.linspace(0, 1, n + 1), known, times)
        return [*map(self.noise.sigma, between), nearest[-1]]

    @property
    def distributions(self) -> dict[str, FloatDistribution]:
        """The box: name -> interval."""
        return {name: d for name, d in self._intervals.items() if not d.single()}

    @cached_property
    def _intervals(self) -> dict[str, FloatDistribution]:
        """Those that fix a value too."""
        c = self.config
        box: dict[str, FloatDistribution] = {}
        if c.placement == "curve":
            box |= {name: FloatDistribution(*c.log_gap) for name in self._names("log_gap")}
        else:
            box["rho"] = FloatDistribution(*c.rho)
        if c.first_sigma:
            box["first_sigma"] = FloatDistribution(*c.first_sigma, log=True)
        box["final_sigma"] = FloatDistribution(*c.final_sigma, log=True)
        if c.sigma_min:
            box["sigma_min"] = FloatDistribution(*c.sigma_min, log=True)
        if c.guidance == "per-step":
            box |= {n: FloatDistribution(*c.guidance_scale) for n in self._names("guidance_scale")}
        elif c.guidance != "off":
            box["guidance_scale"] = FloatDistribution(*c.guidance_scale)
        if c.guidance == "linear":
            reach = (c.guidance_scale[1] - c.guidance_scale[0]) / 2
            box["guidance_slope"] = FloatDistribution(-reach, reach)
        if c.guidance == "interval":
            box |= {name: FloatDistribution(0.0, 1.0) for name in ("guided_from", "guided_to")}
        if c.reuse > 1:
            box["reuse"] = FloatDistribution(0.5, c.reuse + 0.5)
        if c.repeats:
            box["repeats"] = FloatDistribution(-0.5, c.repeats + 0.5)
        if c.guidance_rescale:
            box["guidance_rescale"] = FloatDistribution(*c.guidance_rescale)
        if c.max_order > 1:
            axes = self._names("order") if c.order == "per-step" else ["order"]
            box |= {name: FloatDistribution(0.5, c.max_order + 0.5) for name in axes}
        if c.most_steps > c.num_steps:
            box["num_steps"] = FloatDistribution(c.num_steps - 0.5, c.most_steps + 0.5)
        if len(c.solvers) > 1:
            box["solver"] = FloatDistribution(-0.5, len(c.solvers) - 0.5)
        if len(c.golden_noise) > 1:
            box["golden_noise"] = FloatDistribution(-0.5, len(c.golden_noise) - 0.5)
        if c.corrector:
            box["corrector"] = FloatDistribution(0.0, 1.0)
        if c.prediction:
            box["prediction"] = FloatDistribution(0.0, 1.0)
        for name, interval in (
            ("analytic", c.analytic),
            ("analytic_at", c.analytic_at),
            ("gain", c.gain),
            ("boundary", c.boundary),
        ):
            if interval:
                box[name] = FloatDistribution(*interval)
        if c.churn:
            axes = self._names("churn") if c.fresh_noise == "per-step" else ["churn"]
            box |= {name: FloatDistribution(*c.churn) for name in axes}
        if c.decode:
            box["decode"] = FloatDistribution(0.0, 1.0)
        if c.free_u:
            box |= {name: FloatDistribution(0.0, 1.0) for name in self._names("free_u")}
            for b1, b2, s1, s2 in FREE_U_SETS[: c.free_u_sets]:
                box |= {name: FloatDistribution(*c.free_u_b) for name in (b1, b2)}
                box |= {name: FloatDistribution(*c.free_u_s) for name in (s1, s2)}
        return box

    def schedule(self, params: Params) -> Schedule:
        """The schedule at a point of the box."""
        c = self.config
        fixed = {name: d.low for name, d in self._intervals.items() if d.single()}
        params = fixed | params
        n = _whole(params.get("num_steps", c.num_steps), c.num_steps, c.most_steps)
        at = middles(n)
        *sigmas, final_sigma = self._sigmas(params, n)
        scales = guidance_of(c, params, at, self._curve("guidance_scale", params, at)).tolist()
        every = _whole(params.get("reuse", 1.0), 1, c.reuse)
        kind = c.golden_noise[_whole(params.get("golden_noise", 0.0), 0, len(c.golden_noise) - 1)]
        golden, cost = golden_noise(
            kind, sigmas[1], max(scales), c.passes - n, self.guidance == "distilled"
        )
        times = iterations(c, params, c.passes - cost - n)
        left = c.passes - cost - 3 * times
        scales = within_budget(scales, 2 * n if self.guidance == "distilled" else left, every)
        solver = c.solvers[_whole(params.get("solver", 0.0), 0, len(c.solvers) - 1)]
        statistics = self.statistics_of(solver)
        scales = under(statistics, scales)
        orders = [_whole(value, 1, SOLVERS[solver]) for value in self._curve("order", params, at)]
        free_u = self._free_u(params, at)
        churns = self._curve("churn", params, at, missing=0.0).tolist()
        first_gain = params.get("analytic", 0.0)
        analytic = first_gain >= NO_ANALYTIC
        if analytic:  # an interval more: up to a point inside of it, no network call is needed
            share = params.get("analytic_at", 0.5)
            sigmas.insert(1, self._between(sigmas[0], [*sigmas, final_sigma][1], share))
            scales, orders, free_u = [1.0, *scales], [1, *orders], [None, *free_u]
            churns.insert(0, 0.0)
        most = SOLVERS[solver]
        plan = from_sigmas(
            sigmas, final_sigma, scales, most, solver, self.model, statistics=statistics
        )
        steps = [
            replace(
                step,
                order=min(step.order, order),
                corrector=step.corrector and params.get("corrector", 1.0) >= 0.5,
                prediction=step.prediction or chosen_form(params, solver),
                guidance_rescale=max(0.0, params.get("guidance_rescale", 0.0)) * (w != 1),
                free_u=gains,
                gain=params.get("gain", 1.0),
            )
            for step, order, w, gains in zip(plan.steps, orders, scales, free_u, strict=True)
        ]
        if analytic:
            steps[0] = replace(steps[0], analytic=first_gain)
        guided = [i for i, step in enumerate(steps) if step.guidance_scale != 1]
        for i in sorted({*guided} - {*guided[::every]}):
            steps[i] = replace(steps[i], guidance_reuse=True)
        steps = iterated(steps, times, final_sigma)
        for i in range(1, len(steps)):
            if not steps[i - 1].corrector:  # after one there is no fresh noise
                steps[i] = replace(steps[i], churn=max(0.0, churns[i]))
        decode = "alpha-x" if params.get("decode", 0.0) >= 0.5 else "x"
        plan = replace(
            plan,
            steps=tuple(steps),
            guidance=self.guidance,
            decode=decode,
            golden_noise=golden,
            boundary=params.get("boundary"),
        )
        return whole_timesteps(plan, self.noise, spread=True) if c.whole_timesteps else plan

    def params(self, schedule: Schedule) -> tuple[Params, bool]:
        """The point nearest to a schedule, and whether it is that schedule."""
        c = self.config
        steps, sigmas = list(schedule.steps), list(schedule.sigmas)
        point: Params = {"analytic": steps[0].analytic or 0.0}
        if steps[0].analytic is not None:
            start, there, end = (self.noise.timestep(sigma) for sigma in sigmas[:3])
            point["analytic_at"] = (start - there) / (start - end)
            steps, sigmas = steps[1:], [sigmas[0], *sigmas[2:]]
        n = len(steps)
        point |= {"first_sigma": sigmas[0], "final_sigma": sigmas[-1], "num_steps": float(n)}
        point["sigma_min"] = sigmas[-1] or sigmas[-2]
        if c.placement == "curve":
            ratios = np.log(self._gaps(sigmas) / self._gaps(self.centre(n)))
            low, high = c.log_gap  # only differences count: what fits into the box is moved there
            shift = np.clip(ratios.mean(), ratios.max() - high, ratios.min() - low)
            point |= self._knots("log_gap", ratios - shift)
        else:
            ends = {k: v for k, v in point.items() if k in self._intervals}
            point["rho"] = self._fitted_rho(ends, sigmas)
        off = max(c.guidance_scale[0], min(0.8, c.guidance_scale[1]))
        scales = [off if s.guidance_scale == 1 else s.guidance_scale for s in steps]
        point |= self._knots("guidance_scale", scales)
        on = [at for at, s in zip(middles(n), steps, strict=True) if s.guidance_scale != 1]
        if c.guidance == "interval" and on:
            scales = [s.guidance_scale for s in steps if s.guidance_scale != 1]
            point |= {"guided_from": on[0] - 0.25 / n, "guided_to": on[-1] + 0.25 / n}
        point["guidance_scale"] = float(np.mean(scales))
        place = 2 * middles(len(scales)) - 1
        point["guidance_slope"] = float(place @ np.asarray(scales) / (place @ place or 1.0))
        both = [s for s in steps if s.guidance_scale != 1 and not s.guidance_reuse]
        point["reuse"] = float(ceil(len(on) / max(len(both), 1)))
        point["repeats"] = float(max(s.repeats for s in steps))
        point["guidance_rescale"] = max(s.guidance_rescale for s in steps)
        point |= self._knots("order", [float(s.order) for s in steps])
        point["order"] = float(max(s.order for s in steps))
        if schedule.solver in c.solvers:
            point["solver"] = float(c.solvers.index(schedule.solver))
        if (kind := kind_of(schedule)) in c.golden_noise:
            point["golden_noise"] = float(c.golden_noise.index(kind))
        point["corrector"] = float(any(s.corrector for s in steps))
        point["prediction"] = float(form(steps[-1], schedule.solver) == "noise")
        point["churn"] = max(s.churn for s in steps)
        churns = [s.churn for s in steps]
        if schedule.steps[0].analytic is None:  # the first has none: there the curve goes on
            churns[:1] = churns[1:2] or [0.0]
        point |= self._knots("churn", churns)
        point["gain"] = float(np.mean([s.gain for s in schedule.steps]))
        point["decode"] = float(schedule.decode == "alpha-x")
        point["boundary"] = self._place_of(schedule) or 0.0
        point |= self._free_u_point([s.free_u for s in steps])
        box = self._intervals
        point = {k: min(max(point.get(k, d.low), d.low), d.high) for k, d in box.items()}
        point = {k: value for k, value in point.items() if not box[k].single()}
        found = self.schedule(point)
        experts = [
            [step.sigma >= (self._place_of(plan) or 0.0) for step in plan.steps]
            for plan in (found, schedule)
        ]
        return point, same(found, schedule) and experts[0] == experts[1]

    def _place_of(self, schedule: Schedule) -> float | None:
        """Where a schedule changes the network."""
        return self.boundary if schedule.boundary is None else schedule.boundary

    def _sigmas(self, params: Params, n: int) -> list[float]:
        """n + 1 falling sigmas."""
        c = self.config
        final_sigma = self._final(params["final_sigma"])
        final = self.noise.timestep(final_sigma)
        highest = self.noise.sigma_max
        if c.placement == "power":
            first_sigma = min(params.get("first_sigma", highest), highest)
            _, *sigmas, _ = power(n, self.noise, final, params["rho"], first_sigma)
            return [first_sigma, *sigmas, final_sigma]
        baseline = self.centre(n)
        first_sigma = min(params.get("first_sigma", baseline[0]), highest)
        if c.placement == "karras":
            lowest = final_sigma or max(params.get("sigma_min", 0.0), self.noise.sigma_min)
            exponent = 1 / params["rho"]
            count = n + 1 if final_sigma else n
            ramp = np.linspace(first_sigma**exponent, lowest**exponent, count) ** params["rho"]
            return [*ramp.tolist()[:n], final_sigma]
        first = self.noise.timestep(first_sigma)
        gaps = self._gaps(baseline) * np.exp(self._curve("log_gap", params, middles(n)))
        timesteps = first - (first - final) * np.cumsum([0, *gaps[:-1]]) / gaps.sum()
        return [*(self.noise.sigma(t) for t in timesteps), final_sigma]

    def _final(self, value: float) -> float:
        """0 or the model's lowest level below that, divided at the middle in logarithm.

        Known schedules end at either, and what is tried near one must not jump to the other.
        """
        lowest = self.noise.sigma_min
        return 0.0 if value < sqrt(self.config.final_sigma[0] * lowest) else max(value, lowest)

    def _fitted_rho(self, point: Params, sigmas: list[float]) -> float:
        """The exponent whose power law is nearest to `sigmas`, in log sigma."""

        def distance(rho: float) -> float:
            ours = self._sigmas({**point, "rho": rho}, len(sigmas) - 1)
            return float(np.sum(np.log(np.divide(ours[:-1], sigmas[:-1])) ** 2))

        bounds = self.config.rho
        if bounds[0] == bounds[1]:
            return bounds[0]
        fit = minimize_scalar(distance, bounds=bounds, method="bounded", options={"xatol": 1e-6})
        return float(fit.x)

    def _between(self, sigma: float, sigma_next: float, share: float) -> float:
        """That share of the way in timesteps."""
        start, end = self.noise.timestep(sigma), self.noise.timestep(sigma_next)
        return self.noise.sigma(start + share * (end - start))

    def _free_u(self, params: Params, at: NDArray[np.float64]) -> list[FreeU | None]:
        """None or one of the sets at each step: as many equal parts of [0, 1]."""
        if not self.config.free_u:
            return [None] * len(at)
        used = FREE_U_SETS[: self.config.free_u_sets]
        choices = [None, *(FreeU(*(params[k] for k in names)) for names in used)]
        places = self._curve("free_u", params, at) * len(choices)
        return [choices[min(int(place), len(choices) - 1)] for place in places]

    def _free_u_point(self, gains: Sequence[FreeU | None]) -> Params:
        """Its inverse; sets beyond those of the box count as the last one."""
        sets = list(dict.fromkeys(g for g in gains if g))
        most = self.config.free_u_sets
        chosen = [min(sets.index(g) + 1, most) / most if g else 0.0 for g in gains]
        point = self._knots("free_u", chosen)
        for k, names in enumerate(FREE_U_SETS[:most]):
            known = sets[k] if k < len(sets) else FreeU(1.1, 1.1, 0.9, 0.2)
            point |= dict(zip(names, vars(known).values(), strict=True))
        return point

    def _curve(
        self, stem: str, params: Params, at: NDArray[np.float64], missing: float = 1.0
    ) -> NDArray[np.float64]:
        """Values at positions of the trajectory: of the knots, of the one number, or `missing`."""
        return curve(stem, params, at, self.config.num_steps, missing)

    def _knots(self, stem: str, values: Sequence[float] | NDArray[np.float64]) -> Params:
        """The knots of the curve that is nearest to the values of the steps."""
        return knots_of(stem, values, self.config.num_steps)

    def _names(self, stem: str) -> list[str]:
        return names_of(stem, self.config.num_steps)

    def _gaps(self, sigmas: Sequence[float]) -> NDArray[np.float64]:
        """In timesteps; none of them vanishes."""
        timesteps = [self.noise.timestep(s) for s in sigmas]
        shortest = SHORTEST_GAP * timesteps[0] / (len(sigmas) - 1)
        return np.array([max(start - end, shortest) for start, end in pairwise(timesteps)])


def _whole(value: float, low: int, high: int) -> int:
    return min(max(round(value), low), high)
