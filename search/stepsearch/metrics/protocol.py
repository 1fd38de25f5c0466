"""Contenders on the same seeds -> scores that compare. Search, test and `evaluate` share it.

Three disjoint ranges of seeds: what the search sees, what chooses among its best, what reports.
Image k of a range has seed first + k and its prompt; all contenders get the same. Images are made
in parts of whole batches, so that workers can share them, a kill loses one part at most, and the
same command gives the same numbers.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from stepsampler.errors import UserError
from stepsearch.metrics.distance import Moments, Score, score
from stepsearch.metrics.evaluator import SEARCH, SELECTION, TEST, Measurement, seeds_of
from stepsearch.metrics.reference import Reference

PART = 100  # images a job, at least
RANGES = {"search": SEARCH, "selection": SELECTION, "test": TEST}


@dataclass(frozen=True)
class Seeds:
    """Seeds, and whose they are: that says which real images their images are compared with."""

    part: str  # search, selection or test
    range: range

    @classmethod
    def of(cls, part: str = "test", n: int = 1000, first: int | None = None) -> "Seeds":
        """The first n of a part, or n from `first` on.

        Raises:
            UserError: no such part, or seeds that reach into another one.
        """
        if part not in RANGES:
            raise UserError(f"--range must be one of {', '.join(RANGES)}, got {part!r}")
        start = RANGES[part]
        if first is None:
            return cls(part, seeds_of(start, n))
        others = [other for other in RANGES.values() if other > start]
        last = first + n - 1
        if others and not start <= first <= last < min(others):
            raise UserError(
                f"--first-seed: the seeds of --range {part} are {start} to {min(others) - 1}, "
                f"got {first} to {last}"
            )
        return cls(part, seeds_of(first, n))


C = TypeVar("C")
Job = tuple[C, range]
# Jobs -> (place, measurement), in any order.
Measure = Callable[[Sequence[Job[C]]], Iterable[tuple[int, Measurement]]]
Progress = Callable[[int, int], object]  # (done, total)


@dataclass(frozen=True, eq=False)
class Row(Generic[C]):
    """One line of a table: a contender with its measurement at one n on one range of seeds."""

    candidate: C
    measurement: Measurement
    score: Score


def measure_all(
    entrants: Sequence[C],
    seeds: range,
    batch_size: int,
    measure: Measure[C],
    progress: Progress = lambda done, total: None,
) -> list[Measurement]:
    """Measure every contender on the same seeds, in parts of whole batches."""
    parts = in_parts(seeds, part_of(batch_size))
    jobs = [(entrant, part) for entrant in entrants for part in parts]
    found: dict[int, Measurement] = {}
    progress(0, len(jobs))  # the first can take long
    for place, measurement in measure(jobs):
        found[place] = measurement
        progress(len(found), len(jobs))
    return [
        Measurement.join([found[i * len(parts) + k] for k in range(len(parts))])
        for i in range(len(entrants))
    ]


def part_of(batch_size: int) -> int:
    """Images of a job: whole batches."""
    return batch_size * -(-PART // batch_size)


def in_parts(seeds: range, size: int) -> list[range]:
    """Consecutive parts of so many seeds, the last one of what is left."""
    starts = range(seeds.start, seeds.stop, size)
    return [range(start, min(start + size, seeds.stop)) for start in starts]


def score_all(
    entrants: Sequence[C],
    seeds: range,
    batch_size: int,
    reference: Moments,
    measure: Measure[C],
    progress: Progress = lambda done, total: None,
    dropped: Callable[[C], object] = lambda entrant: None,
) -> list[Row[C]]:
    """Rows in the order of `entrants`; those whose images are not finite are dropped."""
    rows = []
    measured = measure_all(entrants, seeds, batch_size, measure, progress)
    for entrant, whole in zip(entrants, measured, strict=True):
        if whole.finite:
            rows.append(Row(entrant, whole, score(whole.features, reference)))
        else:
            dropped(entrant)
    return rows


def check_held_out(first_seed: int) -> None:
    """Refuse seeds that reach into the search's or the selection's."""
    if first_seed < TEST:
        raise UserError(f"held-out seeds start at {TEST}, got {first_seed}")


def held_out(
    entrants: Sequence[C],
    n: int,
    batch_size: int,
    reference: Reference,
    measure: Measure[C],
    progress: Progress = lambda done, total: None,
    dropped: Callable[[C], object] = lambda entrant: None,
    first_seed: int = TEST,
) -> list[Row[C]]:
    """The held-out protocol: n seeds and, where there are any, real images the search never saw.

    Raises:
        UserError: seeds that reach into the search's or the selection's.
    """
    check_held_out(first_seed)
    seeds = seeds_of(first_seed, n)
    return score_all(entrants, seeds, batch_size, reference.test, measure, progress, dropped)
