"""What every stage works with."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from stepsampler.errors import UserError
from stepsampler.schedule import Schedule
from stepsearch.config import StudyConfig
from stepsearch.engine.tracking import Tracker
from stepsearch.engine.workers import Subject, Workers
from stepsearch.metrics.evaluator import Measurement
from stepsearch.metrics.protocol import Row, score_all
from stepsearch.rivals.baselines import Candidate

# (stage, done, total, news); what a stage's name has in brackets may change
Report = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Tools:
    """The study, its subject, and who measures, reports and tracks."""

    config: StudyConfig
    subject: Subject
    workers: Workers
    tracker: Tracker
    report: Report
    _at: dict[str, tuple[int, int]] = field(default_factory=dict, init=False)  # how far stages are

    @property
    def versions(self) -> int:
        """How often a schedule is measured, each time with other guidance."""
        return len(self.config.evaluation.guidance_scales) or 1

    def passes(self, jobs: Sequence[tuple[Schedule, range]]) -> int:
        """Network passes of images, also of those that are in the cache."""
        return self.versions * sum(schedule.passes * len(seeds) for schedule, seeds in jobs)

    def score(
        self, entrants: Sequence[Candidate], seeds: range, stage: str
    ) -> tuple[list[Row[Candidate]], int]:
        """Rows of the same seeds against the reference of the search, and their passes.

        Entrants whose images are not finite have no row, but are paid for.
        """
        rows = score_all(
            entrants,
            seeds,
            self.config.evaluation.batch,
            self.subject.reference.search,
            self.measure,
            lambda done, total: self.go_on(stage, done, total),
            lambda candidate: self.dropped(stage, candidate),
        )
        return rows, self.passes([(c.schedule, seeds) for c in entrants])

    def measure(self, jobs: Sequence[tuple[Candidate, range]]) -> Iterator[tuple[int, Measurement]]:
        """(place, measurement) of each job, in any order."""
        return self.workers.measure([(candidate.schedule, part) for candidate, part in jobs])

    def go_on(self, stage: str, done: int, total: int) -> None:
        """So many of its parts are done."""
        self._at[stage] = done, total
        self.report(stage, done, total, "")

    def say(self, stage: str, news: str) -> None:
        """News of a stage that stays as far as `go_on` has it."""
        self.report(stage, *self._at.get(stage, (1, 1)), news)

    def dropped(self, stage: str, candidate: Candidate) -> None:
        self.say(stage, f"{candidate.name}: images are not finite, left out")

    def not_finite(self, what: str) -> UserError:
        return UserError(f"{what} not finite in {self.config.model.dtype}: try another model.dtype")


def one_of_each_kind(entrants: Sequence[Candidate], ranked: Sequence[Candidate]) -> list[Candidate]:
    """The entrants, and the best guided and the best unguided one of `ranked` if they lack it."""
    found = list(entrants)
    for guided in (True, False):
        found += [c for c in ranked if is_guided(c) == guided and c not in found][:1]
    return found


def is_guided(candidate: Candidate) -> bool:
    return any(step.guidance_scale != 1 for step in candidate.schedule.steps)
