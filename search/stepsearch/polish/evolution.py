"""Descent by values alone: CMA-ES over the same numbers, for where no gradient flows.

An iteration is a generation: as many schedules as CMA-ES tries at once, all with the same seeds,
as their differences count, and together with as many network passes as an iteration by gradients.
"""

from collections.abc import Callable
from math import inf, isfinite, isinf, log

import numpy as np
import torch
from cmaes import CMA
from numpy.typing import NDArray
from torch import Tensor

from stepsampler.errors import NotFiniteError, UserError
from stepsampler.schedule import Schedule
from stepsearch.metrics.distance import Average, frechet_distance
from stepsearch.metrics.evaluator import Evaluator
from stepsearch.polish import descent
from stepsearch.polish.descent import Polished, Settings, State
from stepsearch.polish.knobs import Knobs
from stepsearch.polish.objective import PENALTY, check_gradients

SPREAD = 2.0  # of the first generation, in rates of `Knobs`
FEWEST = 2  # images that have a covariance


def polish(
    evaluator: Evaluator,
    knobs: Knobs,
    settings: Settings,
    show: Callable[[int, str], object] = lambda iteration, news: None,
) -> Polished:
    """`descent.polish`, by gradients where they flow and by CMA-ES elsewhere."""
    way = Evolution if values_alone(evaluator) else None
    return descent.polish(evaluator, knobs, settings, show, way)


def values_alone(evaluator: Evaluator) -> str | None:
    """A sentence of why a polish goes by values, if it does."""
    try:
        check_gradients(evaluator)
    except UserError as error:
        return by_values(str(error))
    return None


def by_values(why: str) -> str:
    return f"polished by values alone (CMA-ES): {why}"


class Evolution(State):
    """CMA-ES (Hansen 2016) with its default population; a check is of its mean.

    What falls is that of `Objective`: log FD, and the share of the start's alignment that is lost,
    by whatever judges it. Of a metric of the user's, whose scale nobody knows, it is the metric
    alone. Numbers that the model does not take otherwise stay: a pipeline with one scale for all
    steps keeps its scale.

    Raises:
        UserError: the model takes none of the numbers otherwise, or an iteration has too few
            images for a generation.
    """

    NAMES = ("parameters", "told")  # (generations, population, 1 + free): a value and its point
    kind = "values"

    def __init__(self, evaluator: Evaluator, knobs: Knobs, settings: Settings) -> None:
        self.evaluator, self.free = evaluator, _free(evaluator, knobs)
        self.search = CMA(np.zeros(len(self.free)), SPREAD)
        size = self.search.population_size
        self.images = settings.an_iteration // size  # of each schedule
        if self.images < FEWEST:
            raise UserError(
                f"a polish by values tries {size} schedules an iteration: its images must be at "
                f"least {size * FEWEST // 2}, got {settings.images}"
            )
        super().__init__(evaluator, knobs, settings)
        for generation in self.tensors["told"]:
            self._tell(generation)

    def zero(self) -> dict[str, Tensor]:
        told = torch.zeros(0, self.search.population_size, 1 + len(self.free), dtype=torch.float64)
        return {"parameters": self.knobs.zero(), "told": told}

    def move(self, seeds: range) -> None:
        """A generation; what of it was measured before it was cut off lies in the cache."""
        self.search.reseed_rng(self.done)  # so that one that goes on draws the same
        points = [self.search.ask() for _ in range(self.search.population_size)]
        tried = [self._schedule(point) for point in points]
        values = [self._value(schedule, seeds[: self.images]) for schedule in tried]
        if all(map(isinf, values)):
            raise NotFiniteError("no schedule of a generation makes images that are finite")
        rows = np.column_stack([values, points])
        generation = torch.from_numpy(rows)
        self.tensors["told"] = torch.cat([self.tensors["told"], generation[None]])
        self._tell(generation)
        passes = self.knobs.start.passes * self.images * sum(s is not None for s in tried)
        self.moved(self._parameters(self.search.mean), passes)

    def _tell(self, generation: Tensor) -> None:
        self.search.tell([(row[1:], float(row[0])) for row in generation.numpy()])

    def _parameters(self, point: NDArray[np.float64]) -> Tensor:
        found = self.knobs.zero()
        found[self.free] = self.rates[self.free] * torch.from_numpy(point)
        return found

    def _schedule(self, point: NDArray[np.float64]) -> Schedule | None:
        return _taken(self.evaluator, self.knobs, self._parameters(point))

    def _value(self, schedule: Schedule | None, seeds: range) -> float:
        """Lower is better; infinite without such a schedule, or of images that are not finite."""
        found = schedule and self.evaluator.measure(schedule, seeds)
        if not found or not found.finite:
            return inf
        reference = self.evaluator.reference.search
        distance = frechet_distance(found.features, reference)
        if isinstance(reference, Average):
            return distance
        first = self.checks[0].alignment
        kept = found.alignment / first if isfinite(first) and first > 0 else 1.0
        return log(max(distance, np.finfo(float).tiny)) + PENALTY * (1 - kept)


def _free(evaluator: Evaluator, knobs: Knobs) -> list[int]:
    """Places of the numbers of which the model takes another value."""
    rates = torch.diag(knobs.rates)
    found = [
        place
        for place, step in enumerate(rates)
        if any(_taken(evaluator, knobs, sign * step) for sign in (1, -1))
    ]
    if not found:
        raise UserError("the model takes no schedule beside this one: there is nothing to polish")
    return found


def _taken(evaluator: Evaluator, knobs: Knobs, parameters: Tensor) -> Schedule | None:
    """The schedule there, if it is one that the model takes."""
    try:
        schedule = knobs.schedule(parameters)
        evaluator.model.check(schedule)
    except UserError:  # a ScheduleError is one
        return None
    return schedule
