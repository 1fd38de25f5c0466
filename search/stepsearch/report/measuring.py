"""What a page can say only after more images: a path of changes, and the sharpness of the optimum.

Both are scored on the test seeds of the run, and kept in its folder; images that the run's own test
has measured are recalled from its cache.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from stepsampler.errors import UserError, counted, percent
from stepsampler.schedule import Schedule
from stepsampler.support.checks import ScheduleError
from stepsearch.engine.claim import identity_of
from stepsearch.metrics.distance import Score
from stepsearch.metrics.evaluator import Evaluator, Measurement, objective_name
from stepsearch.metrics.protocol import Job, Row, held_out
from stepsearch.paths import write_whole
from stepsearch.report.cards import ablation, health
from stepsearch.report.hops import hops, jittered
from stepsearch.report.sources import Contender, Source

SHARES = (0.01, 0.02, 0.05)  # by which every number moves
DRAWS = 3  # of the signs


@dataclass(frozen=True, eq=False)
class Entrant:
    """A schedule with its place in what is measured."""

    name: str
    schedule: Schedule
    share: float = 0.0
    known: bool = False  # the run's own test has measured it


def wanted(source: Source, path: bool, jitter: bool) -> list[list[Entrant]]:
    """What is to be measured: the path, if asked for, and the jittered ones.

    Raises:
        UserError: there is no found schedule in a test, or an older version wrote the result.
    """
    base = source.base
    if base is None or base.schedule is None or source.config is None:
        raise UserError(
            f"{source.title}: --ablation and --jitter are of a found schedule in the test of a "
            "finished run; there is none, or an older version wrote it: the same stepsearch run "
            "writes it again"
        )
    found = Entrant(base.name, base.schedule, known=True)
    groups = []
    if path:
        nearest = _nearest(source)
        if nearest is None or nearest.schedule is None:
            raise UserError(f"{source.title}: --ablation: no baseline is in the test")
        known = Entrant(nearest.name, nearest.schedule, known=True)
        *between, _ = hops(nearest.schedule, base.schedule) or [("", base.schedule)]
        names = [name for name, _ in hops(nearest.schedule, base.schedule)]
        groups.append(
            [
                known,
                *(Entrant(name, plan) for name, plan in between),
                replace(found, name=names[-1] if names else "no change"),
            ]
        )
    if jitter:
        moved = [found]
        for share in SHARES:
            for seed in range(DRAWS):
                try:
                    plan = jittered(base.schedule, share, seed)
                except ScheduleError:
                    continue  # its levels lie nearer to one another than that
                moved.append(Entrant(f"{percent(share, '.0')}, draw {seed}", plan, share))
        groups.append(moved)
    return groups


def _nearest(source: Source) -> Contender | None:
    metric = source.metrics[0]
    known = [c for c in source.contenders if c.kind == "baseline" and metric in c.scores]
    return min(known, key=lambda c: c.scores[metric].value, default=None)


def cost(source: Source, groups: Sequence[Sequence[Entrant]]) -> str:
    """A sentence: what will be measured, in passes, and in minutes where the trials tell."""
    assert source.config is not None
    evaluation = source.config.evaluation
    n, versions = evaluation.test_images, len(evaluation.guidance_scales) or 1
    new = [e for group in groups for e in group if not e.known]
    passes = versions * n * sum(e.schedule.passes for e in new)
    each = source.seconds_per_pass
    time = f", about {passes * each / 60:.1f} minutes in one process" if each else ""
    return (
        f"{counted(len(new), 'schedule')} on {counted(n, 'test image')} each: "
        f"{counted(passes, 'pass')}{time}; what is measured once is kept"
    )


def measure(
    source: Source,
    groups: Sequence[Sequence[Entrant]],
    device: str,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> None:
    """Measure, and write `ablation.json` and `jitter.json` into the run's folder.

    Raises:
        UserError: model, reference or prompts are others than those of the run.
    """
    config, folder = source.config, source.folder
    assert config is not None
    assert folder is not None
    n = config.evaluation.test_images
    evaluator = Evaluator(config, folder / "cache", device)
    if evaluator.identity != identity_of(folder):
        raise UserError(
            f"{folder}: the run was of another model, reference or prompts than are here now"
        )

    def measured(jobs: Sequence[Job[Entrant]]) -> Iterator[tuple[int, Measurement]]:
        for place, (entrant, seeds) in enumerate(jobs):
            yield place, evaluator.measure(entrant.schedule, seeds)

    every = [entrant for group in groups for entrant in group]
    batch, lost = config.evaluation.batch, []
    rows = held_out(
        every, n, batch, evaluator.reference, measured, progress, lambda e: lost.append(e)
    )
    of = {id(row.candidate): row for row in rows}
    head = {"metric": objective_name(config.evaluation, evaluator.reference, n), "n": n}
    for group in groups:
        kept = [of[id(entrant)] for entrant in group if id(entrant) in of]
        jitter = any(entrant.share for entrant in group)
        data = {**head, "rows": _spread(kept) if jitter else _path(kept)}
        if jitter:
            data["gain"] = _gain(source)
        _write(folder / (health.JITTER if jitter else ablation.FILE), data)


def _path(rows: Sequence[Row[Entrant]]) -> list[dict[str, Any]]:
    """Each with its paired difference to the one above."""
    found = []
    for i, row in enumerate(rows):
        less, se = row.score.minus(rows[i - 1].score) if i else (None, None)
        share = row.measurement.alignment
        found.append(
            {
                "change": row.candidate.name,
                "steps": row.candidate.schedule.num_steps,
                "passes": row.candidate.schedule.passes,
                "value": row.score.value,
                "se": row.score.se,
                "minus_above": less,
                "minus_above_se": se,
                "alignment": share if isfinite(share) else None,
                "schedule": json.loads(row.candidate.schedule.to_json()),
            }
        )
    return found


def _spread(rows: Sequence[Row[Entrant]]) -> list[dict[str, Any]]:
    """For each share the mean over its draws, less the schedule itself."""
    still = next(row.score for row in rows if not row.candidate.share)
    found = []
    for share in SHARES:
        drawn = [row.score for row in rows if row.candidate.share == share]
        if not drawn:
            continue
        count = len(drawn)
        value = sum(score.value for score in drawn) / count
        mean = Score(value, np.mean([score.left_out for score in drawn], axis=0))
        less, se = mean.minus(still)
        worst = max(score.value for score in drawn)
        found.append(
            {"share": share, "draws": count, "value": value, "minus": less, "minus_se": se,
             "worst": worst}
        )  # fmt: skip
    return found


def _gain(source: Source) -> float | None:
    """Over the nearest baseline."""
    metric, nearest = source.metrics[0], _nearest(source)
    known = nearest and nearest.minus.get(metric)
    return known.value if known else None


def _write(path: Path, data: dict[str, Any]) -> None:
    text = json.dumps(data, indent=1, allow_nan=False)
    write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))
