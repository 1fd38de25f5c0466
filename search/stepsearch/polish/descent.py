"""Descent with held-out checks: a schedule comes out no worse than it went in. Here by gradients.

`evolution` descends by values alone, where no gradient flows.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import inf, isinf, isnan
from pathlib import Path
from typing import ClassVar

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from stepsampler.errors import NotFiniteError, percent
from stepsampler.schedule import Schedule
from stepsampler.support.checks import ScheduleError
from stepsearch.config import StudyConfig
from stepsearch.metrics.distance import frechet_distance
from stepsearch.metrics.evaluator import SEARCH, SELECTION, Evaluator, seeds_of
from stepsearch.paths import recall, write_whole
from stepsearch.polish.knobs import Knobs
from stepsearch.polish.objective import Objective

# Images that have their gradient taken are one of so many. The others are cheap beside them, and
# say what the distance is: of few images FD is mostly bias, and so is its gradient.
SHARE = 4
BETAS = (0.8, 0.98)  # of Adam: a polish has few iterations
LAST = 0.1  # share of the first rate that the last iteration has; between them it falls evenly
BACK = 0.4  # of the rate after a check that is no better, from where the best one was


@dataclass(frozen=True)
class Settings:
    """How long, and with how many images."""

    iterations: int = 9
    images: int = 500  # of fresh seeds, an iteration
    check_every: int = 2
    check_images: int = 400  # of the selection's seeds, always the same
    drop: float = 0.01  # share of the start's alignment that may be lost

    @property
    def checks(self) -> list[int]:
        """Iterations before which it is checked; the start and the end are among them."""
        return [*range(0, self.iterations, self.check_every), self.iterations]

    @property
    def pulled(self) -> int:
        """Images of an iteration that the gradient goes through."""
        return -(-self.images // SHARE)

    @property
    def most_images(self) -> int:
        """At most, each counted by what it costs beside one that is only made.

        Forward 1, forward and backward 3, and 1 to see the effect of a level.
        """
        return self.iterations * self.an_iteration + len(self.checks) * self.check_images

    @property
    def an_iteration(self) -> int:
        """The same of one iteration, without the checks."""
        return self.images + 4 * self.pulled

    @classmethod
    def of_study(cls, config: StudyConfig) -> "Settings":
        """As a study has its finalists polished: each look sees twice the images of a trial."""
        images, search = config.evaluation, config.search
        return cls(
            search.polish_iterations, 2 * images.images, check_images=images.selection_images
        )


@dataclass(frozen=True)
class Check:
    """The held-out values after so many iterations."""

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
    show: Callable[[int, str], object] = lambda iteration, news: None,
    way: "type[State] | None" = None,
) -> Polished:
    """Descend, and return the best of the checked points whose alignment is kept.

    Each iteration has fresh seeds of the search's. `way` is how, by gradients (`Adam`) if not said.
    What was done of the same polish before is not done again: its state lies in the evaluator's
    cache. A point that cannot be sampled ends it; the best so far is returned.

    Raises:
        NotFiniteError: the schedule itself makes images that are not finite.
        UserError: what the way refuses, before the first image.
    """
    state = (way or Adam)(evaluator, knobs, settings)
    for iteration in range(state.done, settings.iterations + 1):
        if iteration in settings.checks and all(c.iteration != iteration for c in state.checks):
            state.check(_checked(evaluator, knobs, settings, state, iteration))
            show(iteration, _news(state.checks[-1], state.checks[0]))
        if isinf(state.checks[0].distance):
            raise NotFiniteError("the images of the schedule itself are not finite")
        if iteration == settings.iterations:
            break
        seeds = seeds_of(SEARCH + iteration * settings.images, settings.images)
        try:
            state.move(seeds)
            model = evaluator.model
            model.check(knobs.schedule(state.parameters))
        except (NotFiniteError, ScheduleError) as error:
            show(iteration, f"ends here: {error}")
            break
        show(iteration + 1, "")
    best = _best(state.checks, settings.drop)
    schedule = knobs.schedule(best.parameters) if best.iteration else knobs.start
    return Polished(schedule, best, state.checks, state.passes)


def _best(checks: list[Check], drop: float) -> Check:
    """Of those that keep the start's alignment; the start does."""
    floor = (1 - drop) * checks[0].alignment
    kept = [c for c in checks if isnan(floor) or c.alignment >= floor]
    return min(kept, key=lambda check: check.distance)


def _checked(
    evaluator: Evaluator, knobs: Knobs, settings: Settings, state: "State", iteration: int
) -> Check:
    schedule = knobs.schedule(state.parameters) if iteration else knobs.start
    seeds = seeds_of(SELECTION, settings.check_images)
    found = evaluator.measure(schedule, seeds)
    distance = frechet_distance(found.features, evaluator.reference.search) if found.finite else inf
    passes = state.passes + schedule.passes * settings.check_images
    return Check(iteration, state.parameters.tolist(), distance, found.alignment, passes)


def _news(now: Check, start: Check) -> str:
    share = "" if isnan(now.alignment) else f", alignment {percent(now.alignment)}"
    change = "" if now is start else f" ({percent(now.distance / start.distance - 1, '+.1')})"
    return f"held out {now.distance:.3f}{change}{share}, {now.passes:,} passes so far"


class State(ABC):
    """Parameters, what moves them, and the checks so far, as they lie in a file.

    Of each tensor there is one by its name in `NAMES`; `kind` tells ways of the same polish apart.
    """

    NAMES: ClassVar[tuple[str, ...]]
    NUMBERS: ClassVar[tuple[str, ...]] = ("done", "passes")
    kind: ClassVar[str] = ""

    def __init__(self, evaluator: Evaluator, knobs: Knobs, settings: Settings) -> None:
        what = [
            replace(knobs.start, provenance={}).to_json(),
            f"{knobs.freedom} {knobs.levels} {knobs.rates.tolist()} {asdict(settings)} {BACK}",
            evaluator.identity,
        ]
        what += [self.kind] if self.kind else []
        key = hashlib.sha256("\n".join(what).encode()).hexdigest()[:24]
        self.path = evaluator.cache / f"polish-{key}.safetensors"
        self.knobs, self.settings, self.rates = knobs, settings, knobs.rates
        self.tensors = self.zero()
        self.done, self.passes, self.checks = 0, 0, list[Check]()
        recall(self.path, self._read)

    def zero(self) -> dict[str, Tensor]:
        """The tensors before the first iteration."""
        return {name: self.knobs.zero() for name in self.NAMES}

    @abstractmethod
    def move(self, seeds: range) -> None:
        """One iteration, which looks at images of `seeds`.

        Raises:
            NotFiniteError: they are not finite.
        """

    def _read(self, path: Path) -> None:
        if not path.exists():  # of a file that is not there safetensors says other things
            raise FileNotFoundError(path)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in self.NAMES}
            known = json.loads(file.metadata()["state"])
        checks = [Check(**check) for check in known["checks"]]
        for name in self.NUMBERS:
            setattr(self, name, known[name])
        self.tensors, self.checks = tensors, checks

    @property
    def parameters(self) -> Tensor:
        return self.tensors["parameters"]

    def check(self, check: Check) -> None:
        self.checks.append(check)
        self.passes = check.passes
        self._save()

    def moved(self, parameters: Tensor, passes: int) -> None:
        """Where an iteration led, and what it took."""
        self.tensors["parameters"] = parameters
        self.done += 1
        self.passes += passes
        self._save()

    def _save(self) -> None:
        known = {name: getattr(self, name) for name in self.NUMBERS}
        state = json.dumps({**known, "checks": [asdict(check) for check in self.checks]})
        write_whole(self.path, lambda path: save_file(self.tensors, path, {"state": state}))


class Adam(State):
    """Along gradients (Kingma and Ba 2015), in units of each parameter's rate."""

    NAMES = ("parameters", "mean", "square")
    NUMBERS = (*State.NUMBERS, "since", "rate")

    def __init__(self, evaluator: Evaluator, knobs: Knobs, settings: Settings) -> None:
        self.objective = Objective(evaluator)
        self.since, self.rate = 0, 1.0  # iterations of these moments; what going back left of rates
        super().__init__(evaluator, knobs, settings)

    def check(self, check: Check) -> None:
        """One more; after one that is not the best, what follows starts at the best, and slower."""
        best = _best([*self.checks, check], self.settings.drop)
        if best is not check:
            self.tensors = self.zero()
            self.parameters.copy_(self.parameters.new_tensor(best.parameters))
            self.since, self.rate = 0, BACK * self.rate
        super().check(check)

    def move(self, seeds: range) -> None:
        look = self.objective(self.knobs, self.parameters, seeds, self.settings.pulled)
        share = self.done / max(1, self.settings.iterations - 1)
        rate = self.rate * (1 - (1 - LAST) * share)
        self.since += 1
        moments = []
        for name, beta, value in zip(
            ("mean", "square"), BETAS, (look.gradient, look.gradient**2), strict=True
        ):
            self.tensors[name] = beta * self.tensors[name] + (1 - beta) * value
            moments.append(self.tensors[name] / (1 - beta**self.since))
        mean, square = moments
        move = rate * self.rates * mean / (square.sqrt() + 1e-12)
        self.moved(self.parameters - move, look.passes)
