"""Which steps are guided best, of more steps: tried before the search, polished after it."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

from stepsampler.grids import GRIDS
from stepsearch.config import StudyConfig
from stepsearch.engine.stages.tools import Tools, is_guided
from stepsearch.metrics.distance import Average
from stepsearch.metrics.evaluator import SEARCH, seeds_of
from stepsearch.metrics.protocol import Row
from stepsearch.polish.linear import objective
from stepsearch.rivals.baselines import CLASSIFIER_FREE, Candidate
from stepsearch.space.box import SearchSpace
from stepsearch.space.patterns import Mask, lengths, masks, opening, patterned

STAGE = "patterns"  # one of all rungs: its time and its share are of the same images
PLACES = 2  # grids of each number of steps under which all masks are tried


def try_patterns(
    tools: Tools, space: SearchSpace, best: list[Candidate], alignment: float
) -> tuple[list[Candidate], int]:
    """The best of each of some masks, the best first, and the passes of all that were tried.

    Successive halving on the search seeds, with the rungs of the baselines: first all grids with
    the first steps guided, then all masks under the best two of each number of steps. What counts
    is log FD and how much of `alignment`, the teacher's, is lost, as in a polish.
    """
    options, most = tools.config.baselines, tools.config.search.patterns
    if not most:
        return [], 0
    guided = [c.schedule for c in best if is_guided(c)]
    if space.guidance != CLASSIFIER_FREE or not guided:
        why = "guidance costs this model no pass" if guided else "no baseline is guided"
        tools.report(STAGE, 1, 1, f"none are tried: {why}")
        return [], 0

    passes, looked, at, total = 0, 0, 0, images_at_most(tools.config)

    def ranked(entrants: Sequence[Candidate], images: int) -> list[Candidate]:
        nonlocal passes, looked

        def show(stage: str, done: int, parts: int, news: str) -> None:
            """Of all rungs together; what is said beside is no step."""
            nonlocal at
            at = at if news else looked + len(entrants) * images * done // max(1, parts)
            tools.report(stage, at, total, news)

        def value(row: Row[Candidate]) -> float:
            if isinstance(tools.subject.reference.search, Average):
                return row.score.value  # on a scale that nobody knows, as in a polish
            kept = row.measurement.alignment / alignment if alignment else float("nan")
            return objective(row.score.value, kept)

        rows, spent = replace(tools, report=show).score(entrants, seeds_of(SEARCH, images), STAGE)
        passes, looked = passes + spent, looked + len(entrants) * images
        rows.sort(key=value)
        if rows:
            name, score = rows[0].candidate.name, rows[0].score.value
            news = f"{images} images, the best of {len(entrants)}: {name}: {score:.3f}"
            tools.report(STAGE, looked, total, news)
        return [row.candidate for row in rows]

    alive: list[Candidate] = []
    for n in lengths(space.config):
        on = tools.config.space.passes - n
        first = [patterned(space, guided[0], grid, opening(n, on)) for grid in GRIDS]
        grids = [c.grid for c in ranked(first, options.rungs[0])[:PLACES]]
        alive += [
            patterned(space, guided[0], grid, mask) for grid in grids for mask in masks(n, on)
        ]
    for images in options.rungs:
        if images != options.rungs[0]:
            alive = alive[: _kept(tools.config, len(alive))]
        alive = ranked(alive, images)
    kept: dict[Mask, Candidate] = {}
    for candidate in alive:
        kept.setdefault(tuple(s.guidance_scale != 1 for s in candidate.schedule.steps), candidate)
    return list(kept.values())[:most], passes


def images_at_most(config: StudyConfig) -> int:
    """Of all that is tried, each rung's from the first image on, though parts are recalled."""
    if not config.search.patterns:
        return 0
    box, rungs = config.space, config.baselines.rungs
    count, images = 0, 0
    for n in lengths(box):
        images += len(GRIDS) * rungs[0]
        count += PLACES * len(masks(n, box.passes - n))
    for rung in rungs:
        count = _kept(config, count) if rung != rungs[0] else count
        images += count * rung
    return images


def _kept(config: StudyConfig, count: int) -> int:
    """After a rung; twice as many as are wanted, since two can have the same mask."""
    return min(count, max(PLACES * config.search.patterns, ceil(count * config.baselines.keep)))
