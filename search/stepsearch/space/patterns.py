"""Patterns of guidance: which of more steps than the box has at least are guided.

A box follows guidance through as many knots as it has steps at least, and its search stays near its
best point; which steps of a longer schedule are best guided neither of them tells.
"""

from dataclasses import replace
from statistics import mean

from stepsampler.grids import GRIDS, from_sigmas
from stepsampler.schedule import Schedule
from stepsearch.config.space import SpaceConfig
from stepsearch.rivals.baselines import Candidate
from stepsearch.space.box import SearchSpace

Mask = tuple[bool, ...]  # of each step, whether it is guided


def masks(n: int, guided: int) -> list[Mask]:
    """Those of n steps, of which so many are guided, in at most two stretches without a gap.

    All masks would be hundreds.
    """
    off = n - guided
    found = {
        (False,) * before
        + (True,) * first
        + (False,) * gap
        + (True,) * (guided - first)
        + (False,) * (off - before - gap)
        for first in range(1, guided + 1)
        for before in range(off + 1)
        for gap in range(off - before + 1)
    }
    return sorted(found, reverse=True)


def lengths(box: SpaceConfig) -> range:
    """Numbers of steps of which the budget lets some be guided, but not all."""
    first = max(box.num_steps, box.passes // 2) + 1
    return range(first, box.most_steps + 1)


def opening(n: int, guided: int) -> Mask:
    return (True,) * guided + (False,) * (n - guided)


def patterned(space: SearchSpace, model: Schedule, grid: str, mask: Mask) -> Candidate:
    """A grid's schedule with such guidance, in the mean as strong as that of `model`.

    Stronger than the box has it is no step; solver and order are that one's, if the box has them.
    """
    config, n, on = space.config, len(mask), sum(mask)
    strength = mean(step.guidance_scale - 1 for step in model.steps)
    w = min(1 + strength * n / on, config.guidance_scale[1])
    known = model.solver in config.solvers
    solver = model.solver if known else config.solvers[0]
    order = min(max(s.order for s in model.steps) if known else 2, config.max_order)
    *sigmas, final = GRIDS[grid](n, space.noise)
    guidance = [w if guided else 1.0 for guided in mask]
    statistics = space.statistics_of(solver)
    plan = from_sigmas(sigmas, final, guidance, order, solver, space.model, statistics=statistics)
    places = ", ".join(f"{i + 1}" for i, guided in enumerate(mask) if guided)
    name = f"{grid}, {n} steps, {places} guided, w {w:.3g}"
    return Candidate(name, replace(plan, guidance=space.guidance), "found", grid)
