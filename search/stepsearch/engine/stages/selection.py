"""Which trials are measured again, on seeds the search never saw, and which of them are kept."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial

from stepsearch.config.measuring import SearchConfig
from stepsearch.engine.pareto import dominated
from stepsearch.engine.stages.tools import Tools, one_of_each_kind
from stepsearch.engine.study import schedule_of
from stepsearch.metrics.evaluator import SELECTION, seeds_of
from stepsearch.metrics.protocol import Row
from stepsearch.rivals.baselines import Candidate, long_baselines
from stepsearch.space.likeness import same


def finalists(
    trials: Sequence[FrozenTrial], options: SearchConfig, floor: float, whole: float
) -> list[FrozenTrial]:
    """The best trials that keep the alignment; of two objectives an even part of the front.

    `trials` have the best first. They keep it above `floor`; half of them have `whole`, the
    teacher's on the search seeds: those near the floor can all lose it on other seeds.
    """
    most = options.finalists
    aligned = [t for t in trials if not t.user_attrs["alignment"] < floor]
    if not options.both:
        safe = [t for t in aligned if not t.user_attrs["alignment"] < whole]
        chosen = aligned[: most - most // 2]
        chosen += [t for t in safe if t not in chosen][: most // 2]
        return chosen + [t for t in aligned if t not in chosen][: most - len(chosen)]
    out = dominated([(t.values[0], -t.values[1]) for t in trials])
    front = [t for t, worse in zip(trials, out, strict=True) if not worse]
    best = aligned[:1]
    others = [t for t in front if t not in best]
    places = np.linspace(0, len(others) - 1, min(len(others), most - len(best)))
    return best + [others[round(place)] for place in places]


def found(trial: FrozenTrial) -> Candidate:
    return Candidate(
        f"found, trial {trial.number}", schedule_of(trial), "found", trial=trial.number
    )


def select(
    tools: Tools,
    trials: Sequence[Candidate],
    best: Sequence[Candidate],
    teacher: NDArray[np.float32],
    known: Sequence[Candidate] = (),
) -> tuple[list[Row[Candidate]], int]:
    """Rows of the found ones, the best baselines and long ones on the selection seeds; passes.

    Best first; `known` are baselines of which some were polished. Finalists that lose too much of
    the teacher's alignment, which `teacher` has for the first of these seeds, are left out, or only
    kept as members of the Pareto front. A trial of the very schedule of a baseline, as searches
    begin with, was not found: the baseline enters.
    """
    config, subject = tools.config, tools.subject
    own = [c for c in trials if not any(same(c.schedule, b.schedule) for b in best)]
    entrants = [*own, *best[: config.baselines.test + 2]]
    entrants += [b for b in known if b not in entrants]
    copied = [b for b in best if any(same(c.schedule, b.schedule) for c in trials)]
    entrants = one_of_each_kind([*entrants, *(b for b in copied if b not in entrants)], best)
    entrants += long_baselines(config, subject.noise, subject.spec, subject.guidance)
    return ranked(tools, entrants, teacher, "selection", config.search.both)


def ranked(
    tools: Tools,
    entrants: Sequence[Candidate],
    teacher: NDArray[np.float32],
    stage: str,
    front: bool = False,
) -> tuple[list[Row[Candidate]], int]:
    """Rows on selection seeds, the best first, of those that are kept; and their passes."""
    config = tools.config
    seeds = seeds_of(SELECTION, config.evaluation.selection_images)
    rows, passes = tools.score(entrants, seeds, stage)
    rows.sort(key=lambda row: row.score.value)
    kept = keeping(rows, teacher, config.search.alignment_drop)
    return (with_front(rows, kept) if front else kept), passes


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
