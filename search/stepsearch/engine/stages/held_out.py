"""The test: what the selection chose, once, on fresh seeds."""

import numpy as np
from numpy.typing import NDArray

from stepsearch.engine.stages.selection import lost
from stepsearch.engine.stages.teacher import make_teacher
from stepsearch.engine.stages.tools import Tools, one_of_each_kind
from stepsearch.metrics.protocol import Row, held_out
from stepsearch.rivals.baselines import Candidate


def test_chosen(
    tools: Tools, selection: list[Row[Candidate]], teacher: NDArray[np.float32]
) -> tuple[list[Row[Candidate]], Candidate]:
    """Rows of the test, and which schedule of it is exported.

    That is the best of the selection that keeps the alignment, which `teacher` has there; found
    ones of the selection do, but baselines are tested whether they do or not.

    Raises:
        UserError: no schedule's images are finite.
    """
    config = tools.config
    ranked = [row.candidate for row in selection]
    found = [c for c in ranked if c.kind == "found"][:1]
    known = [c for c in ranked if c.kind == "baseline"]
    entrants = found + [c for c in ranked if c.kind == "front"]
    entrants = one_of_each_kind([*entrants, *known[: config.baselines.test]], known)
    long = [c for c in ranked if c.kind == "long"]
    for n in config.baselines.long_steps:
        entrants += [c for c in long if c.schedule.num_steps == n][:1]
    if config.teacher.test:
        entrants.append(make_teacher(tools))
    rows = held_out(
        entrants,
        config.evaluation.test_images,
        config.evaluation.batch,
        tools.subject.reference,
        tools.measure,
        lambda done, total: tools.go_on("test", done, total),
        lambda candidate: tools.dropped("test", candidate),
    )
    tested = {row.candidate.name for row in rows}
    usable = [
        row
        for row in selection
        if row.candidate.kind in ("found", "baseline") and row.candidate.name in tested
    ]
    if not usable:
        raise tools.not_finite("the images of all schedules are")
    most = config.search.alignment_drop
    aligned = [
        row
        for row in usable
        if row.candidate.kind == "found" or not lost(teacher, row.measurement.aligned, 0) > most
    ]
    return rows, (aligned or usable)[0].candidate
