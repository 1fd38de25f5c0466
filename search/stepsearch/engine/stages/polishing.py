"""The best finalists polished, which then stand in the selection beside what they were."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from numpy.typing import NDArray

from stepsampler.errors import counted
from stepsearch.engine.stages.selection import lost, ranked
from stepsearch.engine.stages.stage import RANKING
from stepsearch.engine.stages.tools import Tools
from stepsearch.metrics.distance import Moments
from stepsearch.metrics.protocol import Row, in_parts, part_of
from stepsearch.polish.descent import Room, Settings, StuckError, polish
from stepsearch.polish.knobs import Knobs, numbers_of
from stepsearch.polish.looking import Heard, Seen, Sides, joined
from stepsearch.rivals.baselines import Candidate

PART = "polish_part"  # attribute of the study: images of a job of many plans, at most


def part_of_looks(tools: Tools, study: optuna.Study) -> int:
    """Images of a job of many plans: a batch, or fewer so that each worker of the run has one.

    Noted with the trials when the first polish begins, as what has been measured is recalled in
    the same parts alone: a run that goes on with other workers takes those of its beginning.
    """
    if PART not in study.user_attrs:
        evaluation = tools.config.evaluation
        each = -(-evaluation.images // tools.workers.sharing)
        study.set_user_attr(PART, min(evaluation.batch, each))
    return int(study.user_attrs[PART])


def polish_best(
    tools: Tools,
    finalists: Sequence[Candidate],
    teacher: NDArray[np.float32],
    part: int | None = None,
) -> tuple[list[Candidate], int]:
    """The best of the finalists, made better where they can be, and the passes of that.

    The best on selection seeds, where they keep the alignment that `teacher` has there, as the
    selection will rank them: the best trial of many was lucky too. What that measures is the
    selection's, which recalls it. One that cannot be moved, or that no check finds better, has
    none. `part` is of `SharedLooks`.
    """
    if not tools.config.search.polish:
        return [], 0
    rows, _ = ranked(tools, finalists, teacher, RANKING)
    rows = rows[: tools.config.search.polish]
    if not rows:
        return [], 0
    settings, numbers = Settings.of_study(tools.config), numbers_of(tools.config)
    knobs = [Knobs(row.candidate.schedule, **numbers) for row in rows]
    images = [one.start.passes * settings.most_images(len(one.names)) for one in knobs]
    total = 100 * settings.iterations * len(rows)
    cost = f"at most {tools.versions * sum(images):,} network passes"
    tools.report("polish", 0, total, f"{counted(len(rows), 'schedule')}, {cost}")
    better, spent = [], 0
    for place, (row, one) in enumerate(zip(rows, knobs, strict=True)):
        start = row.candidate

        def show(done: float, _: str = "", place: int = place) -> None:
            tools.report("polish", round(100 * (place * settings.iterations + done)), total, "")

        try:
            looks, room = SharedLooks(tools, part), room_of(tools, row, teacher)
            came = polish(looks, one, settings, show, room)
        except StuckError as error:
            news, spent = f"{error}", spent + error.passes
        else:
            spent += came.passes
            first, best = came.checks[0].distance, came.best.distance
            news = f"{first:.3f} -> {best:.3f} on selection seeds"
            if came.best.iteration:
                name = f"{start.name}, polished"
                better.append(Candidate(name, came.schedule, "found", trial=start.trial))
            else:
                news = "no check was better and kept the alignment"
        done = 100 * settings.iterations * (place + 1)
        tools.report("polish", done, total, f"{start.name}: {news}")
    return better, spent


def room_of(tools: Tools, start: Row[Candidate], teacher: NDArray[np.float32]) -> Room:
    """As much alignment may be lost as the selection allows, or the start has lost already."""
    most = max(tools.config.search.alignment_drop, lost(teacher, start.measurement.aligned, 0))
    return lambda aligned: most - lost(teacher, aligned, 0)


@dataclass(frozen=True)
class SharedLooks:
    """Looks whose images the workers of a run share, `part` of them a job, without it a batch."""

    tools: Tools
    part: int | None = None

    @property
    def reference(self) -> Moments:
        return self.tools.subject.reference.search

    @property
    def versions(self) -> int:
        return self.tools.versions

    def __call__(self, plans: Sequence[Sides], seeds: range, heard: Heard) -> list[Seen | str]:
        """A batch at a time at most where there are many plans, whose first calls are the same; of
        one, parts as the selection measures them, which recalls them."""
        batch = self.tools.config.evaluation.batch
        parts = in_parts(seeds, (self.part or batch) if len(plans) > 1 else part_of(batch))
        found: dict[int, list[Seen | str]] = {}
        for place, seen in self.tools.workers.look(plans, parts):
            found[place] = seen
            heard(len(found) / len(parts))
        return joined([found[place] for place in range(len(parts))])
