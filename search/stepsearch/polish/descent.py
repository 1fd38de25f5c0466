"""Descent with held-out checks: a schedule comes out no worse than it went in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, isinf, isnan

import numpy as np
from numpy.typing import NDArray

from stepsampler.errors import UserError, percent
from stepsampler.schedule import Schedule
from stepsampler.support.checks import ScheduleError
from stepsearch.config import StudyConfig
from stepsearch.metrics.distance import frechet_distance
from stepsearch.metrics.evaluator import SEARCH, SELECTION, seeds_of
from stepsearch.polish.knobs import Knobs
from stepsearch.polish.linear import Linear
from stepsearch.polish.looking import Looks, Seen, judged_by

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
    room: float = inf  # of alignment that may be lost still; below 0 it is no result


@dataclass
class Polished:
    """What came out: the schedule at the best check, all of them, and what it cost."""

    schedule: Schedule
    best: Check
    checks: list[Check]
    passes: int


# Of each image's alignment how much of its mean may be lost, of a start's below 0 too
Room = Callable[[NDArray[np.float32]], float]


class StuckError(UserError):
    """A schedule that cannot be polished; `passes` were spent until that was known."""

    def __init__(self, why: str, passes: int = 0) -> None:
        super().__init__(why)
        self.passes = passes


def polish(
    looks: Looks,
    knobs: Knobs,
    settings: Settings,
    show: Callable[[float, str], object] = lambda done, news: None,
    room: Room | None = None,
) -> Polished:
    """Descend, and return the best of the checked points whose alignment is kept.

    It is where `room` is not below 0, or by itself where no more than `settings.drop` is lost.

    An iteration sees what each number does to images of seeds of its own (`Linear`), and checks the
    move that should be best by that; where it is not better, shorter ones. `show` gets the
    iterations that are done, parts of one too. What was measured before lies in the cache of
    whoever measures: a killed polish goes on. Numbers that the model does not take otherwise stay:
    a pipeline with one scale for all steps keeps its scale.

    Raises:
        StuckError: nothing is free, the model does not take the schedule, or any of its numbers
            otherwise, or its images are not finite.
    """
    return _Descent(looks, knobs, settings, show, room).run()


@dataclass
class _Descent:
    looks: Looks
    knobs: Knobs
    settings: Settings
    show: Callable[[float, str], object]
    room: Room | None = None
    passes: int = 0
    checks: list[Check] = field(default_factory=list)

    def run(self) -> Polished:
        if not self.knobs.names:
            raise StuckError("nothing of it is free")
        start = self._check(0, np.zeros(len(self.knobs.names)))
        if isinstance(start, str):
            raise StuckError(start)
        if isinf(start.distance):
            raise StuckError("the images of the schedule itself are not finite", self.passes)
        self.show(0, self._news(start))
        farthest, known = FARTHEST, None
        for iteration in range(1, self.settings.iterations + 1):
            best = self.best
            seen = self._look(iteration, np.array(best.parameters), best.room)
            if seen is None:
                self.show(iteration, "ends here: the images are not finite")
                break
            # about a point that no check was better than, all looks count
            known = seen if known is None else known.beside(seen)
            farthest = self._tried(iteration, np.array(best.parameters), known, farthest)
            if self.best is not best:
                known = None
        best = self.best
        schedule = self.knobs.schedule(best.parameters) if best.iteration else self.knobs.start
        return Polished(schedule, best, self.checks, self.passes)

    @property
    def best(self) -> Check:
        """Of those that keep the alignment; the start does."""
        start, *others = self.checks
        kept = [check for check in others if not check.room < 0]
        return min([start, *kept], key=lambda check: check.distance)

    def _tried(self, iteration: int, at: Array, known: Linear, radius: float) -> float:
        """Check moves until one is better; the radius up to which the next may be tried."""
        for back in range(TRIES):
            tried = radius * BACK**back
            check = self._check(iteration, at + known.best(tried) * self._rates)
            if isinstance(check, str):
                continue
            self.show(iteration, self._news(check))
            if self.best is check:
                return tried * ON
        return radius * BACK  # with more images known, once more as far as the second was

    @property
    def _rates(self) -> Array:
        return np.asarray(self.knobs.rates.numpy(), np.float64)

    def _look(self, iteration: int, at: Array, room: float) -> Linear | None:
        """What each number does about a point; None if images are not finite."""
        images, units = self.settings.images, np.diag(self._rates)
        seeds = seeds_of(SEARCH + (iteration - 1) * images, images)
        first = self.checks[0].alignment
        share = first if isfinite(first) and first > 0 else 1.0
        moved = [self._sides(at, unit) for unit in units]
        # the start again is the start but for rounding, which not every model takes
        base = self._there(at) + ([] if at.any() else [self.knobs.start])
        plans = [base, *([plan for _, plan in sides] for sides in moved)]
        here, *others = self._seen(
            plans, seeds, lambda done: self.show(iteration - 1 + 0.9 * done, "")
        )
        if isinstance(here, str) or not here.measurement.finite:
            return None
        if not any(isinstance(there, Seen) for there in others):
            raise StuckError(
                "the model takes no schedule beside this one: there is nothing to polish",
                self.passes,
            )
        features = np.asarray(here.measurement.features, np.float64)
        finite = [s.measurement for s in others if isinstance(s, Seen) and s.measurement.finite]
        judged = judged_by([here.measurement, *finite])
        kept = np.asarray(judged(here.measurement) / share, np.float64)
        slopes = np.zeros((len(units), *features.shape))
        aligned = np.zeros((len(units), images))
        for k, there in enumerate(others):
            if isinstance(there, Seen) and there.measurement.finite:
                sign, found = moved[k][there.side][0], there.measurement
                slopes[k] = sign * (found.features - features)
                aligned[k] = sign * (judged(found) / share - kept)
        may = inf if isnan(room) else max(0.0, room) / share
        return Linear(self.looks.reference, features, slopes, kept, aligned, may)

    def _check(self, iteration: int, parameters: Array) -> Check | str:
        """Or why there is no such schedule."""
        plans = self._there(parameters) if iteration else [self.knobs.start]
        seeds = seeds_of(SELECTION, self.settings.check_images)
        (seen,) = self._seen([plans], seeds)
        if isinstance(seen, str):
            return seen
        found, reference = seen.measurement, self.looks.reference
        distance = frechet_distance(found.features, reference) if found.finite else inf
        share = found.alignment
        if self.room:
            room = self.room(found.aligned)
        else:
            first = self.checks[0].alignment if self.checks else share
            room = share - (1 - self.settings.drop) * first
        check = Check(iteration, parameters.tolist(), distance, share, self.passes, room)
        self.checks.append(check)
        return check

    def _seen(
        self,
        plans: Sequence[Sequence[Schedule]],
        seeds: range,
        heard: Callable[[float], object] = lambda share: None,
    ) -> list[Seen | str]:
        found = self.looks(plans, seeds, heard)
        made = [p[s.side].passes for p, s in zip(plans, found, strict=True) if isinstance(s, Seen)]
        self.passes += sum(made) * len(seeds) * self.looks.versions
        return found

    def _sides(self, at: Array, unit: Array) -> list[tuple[int, Schedule]]:
        """To one side of a point, and to the other."""
        return [(sign, plan) for sign in (1, -1) for plan in self._there(at + sign * unit)]

    def _there(self, parameters: Array) -> list[Schedule]:
        """The schedule at a point, if there is one."""
        try:
            return [self.knobs.schedule(parameters.tolist())]
        except ScheduleError:
            return []

    def _news(self, now: Check) -> str:
        start = self.checks[0]
        share = "" if isnan(now.alignment) else f", alignment {percent(now.alignment)}"
        # of a metric of the user's, whose scale nobody knows, shares say nothing
        known = now is not start and start.distance > 0
        change = f" ({percent(now.distance / start.distance - 1, '+.1')})" if known else ""
        return f"held out {now.distance:.3f}{change}{share}, {now.passes:,} passes so far"
