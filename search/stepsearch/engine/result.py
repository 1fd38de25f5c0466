"""What a run ends with, and what can be claimed of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from stepsearch.engine.workers import Subject
from stepsearch.metrics.distance import Score, score
from stepsearch.metrics.protocol import Row
from stepsearch.rivals.baselines import Candidate, Kind


@dataclass(frozen=True, eq=False)
class Result:
    """What a run ends with."""

    subject: Subject
    teacher: Row[Candidate]  # on the first of the selection seeds
    screened: list[tuple[Candidate, int, float]]  # every baseline, the n it reached, its FD there
    selection: list[Row[Candidate]]  # best first
    # the found schedule, if any, then baselines, long rows and the teacher
    test: list[Row[Candidate]]
    winner: Candidate  # chosen by the selection: what is exported
    trials: int  # of them `pruned` ended on a lower rung
    pruned: int
    failed: int  # not of `trials`: their images are not finite, or did not fit into the memory
    passes: dict[str, int]  # network passes of every stage before the test
    stopped: str | None = None  # why the search ended before its budget did

    @property
    def search_passes(self) -> int:
        """What it cost to get here; the test only reports."""
        return sum(self.passes.values())

    @property
    def found(self) -> Row[Candidate] | None:
        return next(iter(self.of_kind("found")), None)

    def of_kind(self, kind: Kind) -> list[Row[Candidate]]:
        """Rows of the test."""
        return [row for row in self.test if row.candidate.kind == kind]

    @property
    def beaten(self) -> list[Row[Candidate]]:
        """Tested baselines that the found schedule beats by two standard errors."""
        found = self.found
        if found is None:
            return []
        pairs = [(row, *row.score.minus(found.score)) for row in self.of_kind("baseline")]
        return [row for row, difference, se in pairs if difference > 2 * se]

    @cached_property
    def unseen(self) -> Mapping[str, Sequence[Score]]:
        """Scores of the rows of the test under each ruler that the search did not see."""
        return {
            name: [score(row.measurement.rulers[name], reference.test) for row in self.test]
            for name, reference in self.subject.rulers.items()
        }

    @property
    def overtaken(self) -> dict[str, tuple[Row[Candidate], float, float] | None]:
        """By ruler: the baseline that it puts before the found schedule, by how much, its error.

        None where it puts none before it by more than two of that error.
        """
        found = self.found
        if found is None:
            return {}
        place = self.test.index(found)
        known = {}
        for name, scores in self.unseen.items():
            rows = zip(self.test, scores, strict=True)
            others = [(row, s) for row, s in rows if row.candidate.kind == "baseline"]
            row, best = min(others, key=lambda other: other[1].value)
            ahead, se = scores[place].minus(best)
            known[name] = (row, ahead, se) if ahead > 2 * se else None
        return known

    @property
    def gap_closed(self) -> float | None:
        """Share of the distance from the best baseline to the teacher that is gone.

        None without a teacher in the test, or where the best baseline is no worse than it.
        """
        teachers = self.of_kind("teacher")
        if self.found is None or not teachers:
            return None
        best = min(row.score.value for row in self.of_kind("baseline"))
        gap = best - teachers[0].score.value
        return (best - self.found.score.value) / gap if gap > 0 else None
