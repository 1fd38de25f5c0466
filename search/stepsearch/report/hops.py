"""Schedules near others: a path from one to another, and one whose numbers have all moved a bit."""

from collections.abc import Callable
from dataclasses import fields, replace
from math import exp, log
from random import Random
from typing import Any

import numpy as np

from stepsampler.schedule import Schedule, Step
from stepsampler.support.checks import ScheduleError

Fields = dict[str, Any]  # of a schedule that may not be one yet
GUIDANCE = ("guidance_scale", "guidance_rescale", "guidance_reuse", "repeats")
TRIES = 100  # of a draw that would be no schedule: levels in another order


def hops(start: Schedule, end: Schedule) -> list[tuple[str, Schedule]]:
    """From one schedule to another: (what changed, schedule), a group of numbers at a time.

    The number of steps comes first: levels between those of `start` in log sigma, all else from its
    nearest step. A change that by itself is no schedule comes together with the next one; what
    changes nothing is left out. The last schedule is `end`.
    """
    groups: list[tuple[str, Callable[[Fields], Fields]]] = [
        ("number of steps", lambda plan: _resampled(plan, end)),
        ("placement", lambda plan: _of_end(plan, end, ("sigma",))),
        ("guidance", lambda plan: _of_end(plan, end, GUIDANCE) | {"guidance": end.guidance}),
        ("final sigma", lambda plan: _landing(plan, end)),
        ("gain", lambda plan: _of_end(plan, end, ("gain",))),
        ("solver, orders and the rest", lambda plan: _fields(end)),
    ]
    found: list[tuple[str, Schedule]] = []
    plan = moved = _fields(start)
    changes: list[str] = []
    for name, change in groups:
        moved = change(moved)
        changes.append(name)
        try:
            made = Schedule(**moved)
        except ScheduleError:
            continue
        if _bare(moved) != _bare(plan):
            found.append((" and ".join(changes), made))
        plan, changes = moved, []
    return found


def _fields(plan: Schedule) -> Fields:
    return {f.name: getattr(plan, f.name) for f in fields(plan)}


def _bare(plan: Fields) -> Fields:
    return plan | {"provenance": {}, "model": None}


def _resampled(plan: Fields, end: Schedule) -> Fields:
    known, n = plan["steps"], end.num_steps
    if n == len(known):
        return plan
    places = np.linspace(0, len(known) - 1, n)
    levels = np.interp(places, range(len(known)), [log(step.sigma) for step in known])
    steps: list[Step] = []
    for i, (place, level) in enumerate(zip(places, levels.tolist(), strict=True)):
        near = known[round(place)]
        last = i == n - 1 and plan["final_sigma"] == 0
        order = near.order if plan["solver"] == "heun" else min(near.order, 1 if last else i + 1)
        step = replace(near, sigma=exp(level), order=order, weights=None, analytic=None)
        step = replace(step, churn=near.churn if i else 0.0)
        if end.steps[i].analytic is not None:  # which costs no pass, and is only the first
            free = end.steps[i].analytic
            step = replace(step, analytic=free, guidance_scale=1.0, guidance_rescale=0.0, order=1)
            step = replace(step, repeats=0)
        steps.append(step)
    return plan | {"steps": tuple(steps)}


def _of_end(plan: Fields, end: Schedule, names: tuple[str, ...]) -> Fields:
    steps = tuple(
        replace(step, **{name: getattr(other, name) for name in names})
        for step, other in zip(plan["steps"], end.steps, strict=True)
    )
    return plan | {"steps": steps}


def _landing(plan: Fields, end: Schedule) -> Fields:
    """The final sigma, and with it the order of the step onto it: onto 0 that is 1."""
    *steps, last = plan["steps"]
    last = replace(last, order=end.steps[-1].order) if last.weights is None else last
    return plan | {"steps": (*steps, last), "final_sigma": end.final_sigma}


def jittered(plan: Schedule, share: float, seed: int) -> Schedule:
    """Every level, guidance scale and gain times 1 ± `share`, the signs drawn; a scale of 1 stays.

    The first level stays within what the model knows.

    Raises:
        ScheduleError: levels lie too near to one another for that.
    """
    draw = Random(f"{share} {seed}")

    def moved(value: float) -> float:
        return value * (1 + share * draw.choice((-1, 1)))

    highest = max(plan.model.noise) if plan.model else plan.steps[0].sigma
    for tried in range(TRIES):
        steps = []
        for step in plan.steps:
            w = step.guidance_scale
            sigma = min(moved(step.sigma), max(highest, step.sigma))
            gain = moved(step.gain) if step.gain != 1 else 1.0
            scale = w if w == 1 else moved(w)
            steps.append(replace(step, sigma=sigma, guidance_scale=scale, gain=gain))
        try:
            return replace(plan, steps=tuple(steps), final_sigma=moved(plan.final_sigma))
        except ScheduleError:
            if tried == TRIES - 1:
                raise
    raise AssertionError("unreachable")
