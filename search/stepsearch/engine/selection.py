"""Which of the measured finalists the selection keeps."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stepsearch.engine.pareto import dominated
from stepsearch.metrics.protocol import Row
from stepsearch.rivals.baselines import Candidate


def keeping(
    rows: Sequence[Row[Candidate]], teacher: NDArray[np.float32], most: float
) -> list[Row[Candidate]]:
    """Without the found ones that lose more than `most` of the teacher's alignment.

    `teacher` is its alignment on the first seeds of the rows. If that leaves none of them, one
    standard error of the paired difference is allowed for: finalists are chosen among many trials,
    so that on other seeds all of them can fall a little short.
    """
    kept: list[Row[Candidate]] = []
    for errors in (0, 1):
        kept = [
            row
            for row in rows
            if row.candidate.kind != "found"
            or not lost(teacher, row.measurement.aligned, errors) > most
        ]
        if any(row.candidate.kind == "found" for row in kept):
            break
    return kept


def with_front(rows: list[Row[Candidate]], kept: list[Row[Candidate]]) -> list[Row[Candidate]]:
    """The kept rows, and what else is on the front of FD and alignment, as "front" rows at the end.

    Both lists have the best first; the first found one of `kept` is the one to export.
    """
    chosen = next((row for row in kept if row.candidate.kind == "found"), None)
    found = [row for row in rows if row.candidate.kind == "found"]
    out = dominated([(row.score.value, -row.measurement.alignment) for row in found])
    front = [
        Row(replace(row.candidate, kind="front"), row.measurement, row.score)
        for row, worse in zip(found, out, strict=True)
        if row is not chosen and not worse
    ]
    return [row for row in kept if row is chosen or row.candidate.kind != "found"] + front


def lost(teacher: NDArray[np.float32], found: NDArray[np.float32], errors: int) -> float:
    """Alignment that is lost on common seeds, less so many standard errors; NaN where unknown."""
    n = min(len(teacher), len(found))
    less = np.asarray(teacher[:n] - found[:n], float)
    return float(less.mean() - errors * less.std(ddof=1) / np.sqrt(n))
