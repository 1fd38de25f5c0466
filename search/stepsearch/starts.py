"""The points with which a search begins."""

from stepsampler.grids import from_sigmas, is_guided
from stepsearch.baselines import CLASSIFIER_FREE, Candidate
from stepsearch.space import Params, SearchSpace

BEST = 6  # baselines among them


def first_points(space: SearchSpace, best: list[Candidate]) -> list[tuple[Params, str]]:
    """The best baselines as points of the box, or the nearest points to them; and `spread`."""
    points: dict[str, Params] = {}
    for candidate in best[:BEST] + spread(space, best):
        point, same = space.params(candidate.schedule)
        if point not in points.values():
            points[f"{'' if same else 'near '}{candidate.name}"] = point
    return [(point, name) for name, point in points.items()]


def spread(space: SearchSpace, best: list[Candidate]) -> list[Candidate]:
    """The same passes on more steps, of which the first or the last ones are guided.

    In their own part of the box, which an algorithm can be long in finding. Where guidance costs
    nothing, there are none.
    """
    if space.guidance != CLASSIFIER_FREE:
        return []
    config = space.config
    firsts = [c.schedule.steps[0] for c in best if any(map(is_guided, c.schedule.steps))]
    scale = firsts[0].guidance_scale if firsts else 1.0
    found = []
    for n in range(config.num_steps + 1, config.most_steps + 1):
        guided = config.passes - n
        *sigmas, final = space.centre(n)
        for place, scales in partly_guided(n, guided, scale).items():
            order, solver = min(2, config.max_order), config.solvers[0]
            plan = from_sigmas(sigmas, final, scales, order, solver, space.model)
            name = f"{space.grid}, {n} steps, the {place} {guided} guided"
            found.append(Candidate(name, plan, "found"))
    return found


def partly_guided(n: int, guided: int, scale: float) -> dict[str, list[float]]:
    """Guidance scales of n steps, of which the "first" or the "last" ones are guided.

    Nothing where all or none would be.
    """
    if not 0 < guided < n or scale <= 1:
        return {}
    on, off = [scale] * guided, [1.0] * (n - guided)
    return {"first": on + off, "last": off + on}
