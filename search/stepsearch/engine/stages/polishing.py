"""The best finalists polished, which then stand in the selection beside what they were."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stepsampler.errors import counted
from stepsearch.engine.stages.selection import ranked
from stepsearch.engine.stages.tools import Tools
from stepsearch.polish.descent import Settings
from stepsearch.polish.knobs import Knobs, numbers_of
from stepsearch.rivals.baselines import Candidate


def polish_best(
    tools: Tools, finalists: Sequence[Candidate], teacher: NDArray[np.float32]
) -> tuple[list[Candidate], int]:
    """The best of the finalists, made better where they can be, and the passes of that.

    The best on selection seeds, where they keep the alignment that `teacher` has there, as the
    selection will rank them: the best trial of many was lucky too. What that measures is the
    selection's, which recalls it. One that cannot be moved, or that no check finds better, has
    none.
    """
    if not tools.config.search.polish:
        return [], 0
    rows, _ = ranked(tools, finalists, teacher, "polish (finalists are ranked)")
    starts = [row.candidate for row in rows[: tools.config.search.polish]]
    if not starts:
        return [], 0
    settings = Settings.of_study(tools.config)
    plans = [start.schedule for start in starts]
    numbers = numbers_of(tools.config.space)
    images = [settings.most_images(len(Knobs(plan, **numbers).names)) for plan in plans]
    versions = len(tools.config.evaluation.guidance_scales) or 1
    most = versions * sum(plan.passes * n for plan, n in zip(plans, images, strict=True))
    cost = f"{counted(len(starts), 'schedule')}, at most {most:,} network passes"
    tools.report("polish", 0, len(starts), cost)
    better, spent = {}, 0
    jobs = tools.workers.polish(plans, settings)
    for done, (place, came) in enumerate(jobs, 1):
        name = starts[place].name
        if isinstance(came, str):
            tools.report("polish", done, len(starts), f"{name}: {came}")
            continue
        spent += came.passes
        first, best = came.checks[0].distance, came.best.distance
        news = f"{name}: {first:.3f} -> {best:.3f} on selection seeds"
        if came.best.iteration:
            better[place] = Candidate(
                f"{name}, polished", came.schedule, "found", trial=starts[place].trial
            )
        else:
            news = f"{name}: no check was better and kept the alignment"
        tools.report("polish", done, len(starts), news)
    return [better[place] for place in sorted(better)], spent
