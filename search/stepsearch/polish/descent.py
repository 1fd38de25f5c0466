"""Descent with held-out checks: a schedule comes out no worse than it went in."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, isfinite, isinf, isnan

import numpy as np
from numpy.typing import NDArray

from stepsampler.errors import NotFiniteError, UserError, percent
from stepsampler.schedule import Schedule
from stepsearch.config import StudyConfig
from stepsearch.metrics.distance import frechet_distance
from stepsearch.metrics.evaluator import SEARCH, SELECTION, Evaluator, Measurement, seeds_of
from stepsearch.polish.knobs import Knobs
from stepsearch.polish.linear import Linear

Array = NDArray[np.float64]

# How far each number may move at first, in rates of `Knobs`; and of that after a check that is
# better, and after one that is not.
FARTHEST, ON, BACK = 8.0, 1.3, 0.4
TRIES = 3  # checks of an iteration


@dataclass(frozen=True)
class Settings:
    """How long, and with how many images."""

    iterations: int = 3
    images: int = 250  # an iteration, for each of the numbers and once more
    check_images: int = 400  # of the selection's seeds, always the same
    drop: float = 0.01  # share of the start's alignment that may be lost

    def most_images(self, numbers: int) -> int:
        """Images at most of a schedule that has so many numbers to turn."""
        iteration = (numbers + 1) * self.images + TRIES * self.check_images
        return self.iterations * iteration + self.check_images

    @classmethod
    def of_study(cls, config: StudyConfig) -> "Settings":
        """As a study has its finalists polished."""
        images = config.evaluation
        return cls(
            config.search.polish_iterations,
            images.images,
            check_images=images.selection_images,
        )


@dataclass(frozen=True)
class Check:
    """The held-out values in an iteration; of the start in iteration 0."""

    iteration: int
    parameters: list[float]
    distance: float
    alignment: float  # share of images that show what was asked; NaN if nothing judges it
    passes: int  # spent until then, this check included


@dataclass
class Polished:
    """What came out: the schedule at the best check, all of them, and what it cost."""

    schedule: Schedule
    best: Check
    checks: list[Check]
    passes: int


def polish(
    evaluator: Evaluator,
    knobs: Knobs,
    settings: Settings,
    show: Callable[[float, str], object] = lambda done, news: None,
) -> Polished:
    """Descend, and return the best of the checked points whose alignment is kept.

    An iteration sees what each number does to images of seeds of its own (`Linear`), and checks the
    move that should be best by that; where it is not better, shorter ones. `show` gets the
    iterations that are done, parts of one too. What was measured before lies in the evaluator's
    cache: a killed polish goes on. Numbers that the model does not take otherwise stay: a pipeline
    with one scale for all steps keeps its scale.

    Raises:
        NotFiniteError: the schedule itself makes images that are not finite.
        UserError: the model takes none of the numbers otherwise.
    """
    return _Descent(evaluator, knobs, settings, show).run()


@dataclass
class _Descent:
    evaluator: Evaluator
    knobs: Knobs
    settings: Settings
    show: Callable[[float, str], object]
    passes: int = 0
    checks: list[Check] = field(default_factory=list)

    def run(self) -> Polished:
        units = self._units()
        start = self._check(0, np.zeros(len(self.knobs.names)))
        if start is None or isinf(start.distance):
            raise NotFiniteError("the images of the schedule itself are not finite")
        self.show(0, self._news(start))
        farthest, known = FARTHEST, None
        for iteration in range(1, self.settings.iterations + 1):
            best = self.best
            seen = self._look(iteration, np.array(best.parameters), units)
            if seen is None:
                self.show(iteration, "ends here: the images are not finite")
                break
            # about a point that no check was better than, all looks count
            known = seen if known is None else known.beside(seen)
            farthest = self._tried(iteration, np.array(best.parameters), units, known, farthest)
            if self.best is not best:
                known = None
        best = self.best
        schedule = self.knobs.schedule(best.parameters) if best.iteration else self.knobs.start
        return Polished(schedule, best, self.checks, self.passes)

    @property
    def best(self) -> Check:
        """Of those that keep the start's alignment; the start does."""
        floor = (1 - self.settings.drop) * self.checks[0].alignment
        kept = [c for c in self.checks if isnan(floor) or c.alignment >= floor]
        return min(kept, key=lambda check: check.distance)

    def _tried(
        self, iteration: int, at: Array, units: Array, known: Linear, radius: float
    ) -> float:
        """Check moves until one is better; the radius up to which the next may be tried."""
        for back in range(TRIES):
            tried = radius * BACK**back
            check = self._check(iteration, at + known.best(tried) @ units)
            if check is not None:
                self.show(iteration, self._news(check))
            if check is not None and self.best is check:
                return tried * ON
        return radius * BACK  # with more images known, once more as far as the second was

    def _look(self, iteration: int, at: Array, units: Array) -> Linear | None:
        """What each number does about a point; None if images are not finite."""
        images, count = self.settings.images, len(units)
        seeds = seeds_of(SEARCH + (iteration - 1) * images, images)
        first = self.checks[0].alignment
        share = first if isfinite(first) and first > 0 else 1.0
        model = self.evaluator.model
        with model.beginning_alike(first=True):
            here = self._measure(self.knobs.schedule(at.tolist()), seeds)
        if not here.finite:
            return None
        features = np.asarray(here.features, np.float64)
        slopes, aligned = np.zeros((count, *features.shape)), np.zeros((count, images))
        with model.beginning_alike(first=False):
            for k, unit in enumerate(units):
                self.show(iteration - 1 + (k + 1) / (count + 1), "")
                sign, plan = self._moved(at, unit)
                there = self._measure(plan, seeds) if plan else here
                if there.finite:
                    slopes[k] = sign * (there.features - features)
                    aligned[k] = sign * (there.aligned - here.aligned) / share
        reference = self.evaluator.reference.search
        kept = np.asarray(here.aligned / share, np.float64)
        return Linear(reference, features, slopes, kept, aligned)

    def _check(self, iteration: int, parameters: Array) -> Check | None:
        """None where there is no such schedule."""
        schedule = self._taken(parameters) if iteration else self.knobs.start
        if schedule is None:
            return None
        found = self._measure(schedule, seeds_of(SELECTION, self.settings.check_images))
        reference = self.evaluator.reference.search
        distance = frechet_distance(found.features, reference) if found.finite else inf
        check = Check(iteration, parameters.tolist(), distance, found.alignment, self.passes)
        self.checks.append(check)
        return check

    def _measure(self, schedule: Schedule, seeds: range) -> Measurement:
        self.passes += schedule.passes * len(seeds) * max(1, len(self.evaluator.scales))
        return self.evaluator.measure(schedule, seeds)

    def _units(self) -> Array:
        """A row for each number of which the model takes another value, as long as its rate."""
        rows = np.diag(self.knobs.rates.numpy())
        free = [row for row in rows if self._moved(np.zeros(len(rows)), row)[1]]
        if not free:
            raise UserError(
                "the model takes no schedule beside this one: there is nothing to polish"
            )
        return np.array(free)

    def _moved(self, at: Array, unit: Array) -> tuple[int, Schedule | None]:
        """To one side of a point, or the other; and the schedule there, if the model takes it."""
        tried = ((sign, self._taken(at + sign * unit)) for sign in (1, -1))
        return next(((sign, plan) for sign, plan in tried if plan), (1, None))

    def _taken(self, parameters: Array) -> Schedule | None:
        """The schedule there, if it is one that the model takes."""
        try:
            schedule = self.knobs.schedule(parameters.tolist())
            self.evaluator.model.check(schedule)
        except UserError:  # a ScheduleError is one
            return None
        return schedule

    def _news(self, now: Check) -> str:
        start = self.checks[0]
        share = "" if isnan(now.alignment) else f", alignment {percent(now.alignment)}"
        # of a metric of the user's, whose scale nobody knows, shares say nothing
        known = now is not start and start.distance > 0
        change = f" ({percent(now.distance / start.distance - 1, '+.1')})" if known else ""
        return f"held out {now.distance:.3f}{change}{share}, {now.passes:,} passes so far"
