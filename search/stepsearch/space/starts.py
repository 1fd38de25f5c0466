"""The points with which a search begins."""

from dataclasses import replace
from math import ceil

from stepsampler.grids import GRIDS, from_sigmas, is_guided
from stepsampler.schedule import SOLVERS
from stepsearch.rivals.baselines import CLASSIFIER_FREE, Candidate, gained
from stepsearch.space.box import Params, SearchSpace
from stepsearch.space.guidance import under

BEST = 4  # baselines among them
PLACES = 2  # placements of the schedules with more steps


def first_points(space: SearchSpace, best: list[Candidate]) -> list[tuple[Params, str]]:
    """The best baselines as points of the box, or the nearest points to them; and `spread`."""
    points: dict[str, Params] = {}
    for candidate in best[:BEST] + spread(space, best):
        point, same = space.params(candidate.schedule)
        if point not in points.values():
            points[f"{'' if same else 'near '}{candidate.name}"] = point
    return [(point, name) for name, point in points.items()]


def spread(space: SearchSpace, best: list[Candidate]) -> list[Candidate]:
    """The centre of the box under its other solvers, and the same passes on more steps.

    These have the solver, and with an axis of the gain all have the gain, of the best baseline;
    then there is also that one half-way from none to the highest gain.

    Of more steps the first or the middle ones are guided (an interval, as in Kynkaanniemi et al.
    2024), together as strongly as all steps of the best baseline, or each as strongly where gains
    give contrast, for which guidance need not; where guidance costs nothing, there are none of
    these. Where the first half of the steps can be guided with passes to spare, and the box has
    that, it too: one search at ten passes of the bundled model came further from there. They have
    the centre's placement or that of the next best baseline, since what is best for few steps can
    be bad for more. Each is in its own part of the box, which an algorithm can be long in finding;
    they are few, because they are paid for from the trials.
    """
    config = space.config
    guided = [c for c in best if any(map(is_guided, c.schedule.steps))]
    guided.sort(key=lambda c: c.grid != space.grid)  # the best of the centre's own in front
    strongest = [max(s.guidance_scale for s in c.schedule.steps) for c in guided]
    places = {space.grid: strongest[0] if guided else 1.0}  # with their guidance scales
    for candidate, scale in zip(guided, strongest, strict=True):
        if candidate.grid and len(places) < PLACES:
            places.setdefault(candidate.grid, scale)
    gain = best[0].schedule.steps[0].gain if config.gain and best else 1.0
    rule, highest = config.solvers[0], 2
    if best and best[0].schedule.solver in config.solvers:
        rule = best[0].schedule.solver
        highest = max(highest, *(step.order for step in best[0].schedule.steps))
    found = []

    def add(grid: str, solver: str, shape: str, scales: list[float]) -> None:
        usual, n = solver == config.solvers[0], len(scales)
        order = min(highest if solver == rule else SOLVERS[solver], config.max_order)
        name = ", ".join([grid, *([] if usual else [f"{solver}, order {order}"]), shape])
        *sigmas, final = space.centre(n) if grid == space.grid else GRIDS[grid](n, space.noise)
        statistics = space.statistics_of(solver)
        scales = under(statistics, scales)
        plan = from_sigmas(sigmas, final, scales, order, solver, space.model, statistics=statistics)
        plan = replace(plan, steps=tuple(replace(step, gain=gain) for step in plan.steps))
        found.append(Candidate(name, replace(plan, guidance=space.guidance), "found"))

    if config.gain and best:
        found += gained(best[:1], [(1 + config.gain[1]) / 2])
    for solver in config.solvers:
        if solver != rule:
            scale = places[space.grid]
            add(space.grid, solver, f"w {scale:g}", [scale] * config.num_steps)
    if space.guidance == CLASSIFIER_FREE:
        for n in range(config.num_steps + 1, config.most_steps + 1):
            on = config.passes - n
            for grid, scale in places.items():
                most = scale if config.gain else config.guidance_scale[1]
                for shape, scales in intervals(n, on, scale, most).items():
                    add(grid, rule, f"{n} steps, {shape}", scales)
        scale = places[space.grid]
        # one scale of all steps, or none that is off, would be all of them guided once more
        halves = config.guidance != "constant" and config.guidance_scale[0] < 1
        for n in range(config.num_steps, config.most_steps + 1):
            half = ceil(n / 2)
            if halves and half < config.passes - n:  # with passes to spare
                most = scale if config.gain else config.guidance_scale[1]
                for shape, scales in list(intervals(n, half, scale, most).items())[:1]:
                    add(space.grid, rule, f"{n} steps, {shape}", scales)
    return found


def intervals(n: int, guided: int, scale: float, most: float) -> dict[str, list[float]]:
    """Guidance scales of n steps, of which the "first" or "middle" ones are guided.

    Their mean over all n steps is `scale`, if that takes no more than `most`. Nothing where all or
    none would be guided.
    """
    off = n - guided
    if not 0 < guided < n or scale <= 1:
        return {}
    w = min(1 + (scale - 1) * n / guided, most)
    return {
        f"the {place} {guided} guided, w {w:.3g}": [
            *[1.0] * before,
            *[w] * guided,
            *[1.0] * (off - before),
        ]
        for place, before in (("first", 0), ("middle", off // 2))
    }
