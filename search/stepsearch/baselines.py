"""Every well-known schedule at the study's budget."""

from dataclasses import dataclass
from typing import Literal

from stepsampler.grids import GRIDS, from_sigmas, make_schedule
from stepsampler.noise import Noise
from stepsampler.schedule import SOLVERS, ModelSpec, Schedule
from stepsearch.config import RIVALS, StudyConfig

Kind = Literal["found", "baseline", "long", "teacher"]


@dataclass(frozen=True)
class Candidate:
    """A schedule with the name under which tables show it.

    Only baselines spend the study's budget; "long" rows and the teacher spend more.
    """

    name: str
    schedule: Schedule
    kind: Kind
    grid: str = ""  # of `grids`, where its placement has a formula for any number of steps
    trial: int | None = None


Placements = dict[tuple[str, int], list[float]]  # (rival, number of steps) -> falling sigmas


def wanted(config: StudyConfig) -> dict[tuple[str, int], float]:
    """(rival, number of steps) of every placement that a study needs -> its guidance scale.

    That is the teacher's, or 1 where all the passes go into unguided steps.
    """
    space, scale = config.space, config.teacher.guidance_scale
    names: tuple[str, ...] = config.baselines.rivals
    found = {(name, n): scale for name in names for n, _ in shapes(config)}
    if space.baseline in RIVALS:
        found |= {(space.baseline, n): scale for n in range(space.num_steps, space.most_steps + 1)}
    return {(r, n): 1.0 if n == space.passes else w for (r, n), w in found.items()}


def shapes(config: StudyConfig) -> list[tuple[int, float]]:
    """(steps, guidance scale) of a baseline: all that the budget pays for in one way each."""
    passes = config.space.passes
    guided = min(config.space.num_steps, passes // 2)
    return [*((guided, w) for w in config.baselines.guidance_scales), (passes, 1.0)]


def baselines(
    config: StudyConfig, noise: Noise, model: ModelSpec, rivals: Placements
) -> list[Candidate]:
    """Each placement, solver and order, guided with `num_steps` and unguided with all passes."""
    kinds = [
        (solver, order)
        for solver in config.baselines.solvers
        for order in config.baselines.orders
        if order <= SOLVERS[solver]
    ]
    found = []
    for solver, order in kinds:
        rule = "" if solver == "dpmpp-midpoint" else f"{solver}, "
        for n, w in shapes(config):
            shape = f"{rule}order {order}, " + (f"w {w:g}" if w != 1 else f"{n} unguided steps")
            for grid in (*GRIDS, *config.baselines.rivals):
                *sigmas, final = GRIDS[grid](n, noise) if grid in GRIDS else rivals[grid, n]
                plan = from_sigmas(sigmas, final, [w] * n, order, solver, model)
                formula = grid if grid in GRIDS else ""
                found.append(Candidate(f"{grid}, {shape}", plan, "baseline", formula))
    return found


def long_baselines(config: StudyConfig, noise: Noise, model: ModelSpec) -> list[Candidate]:
    """DPM-Solver++(2M) on evenly spaced timesteps, with more steps than the budget pays for."""
    return [
        Candidate(
            f"DPM++(2M), {n} steps, w {w:g}",
            make_schedule("linspace", n, noise, order=2, guidance_scale=w, model=model),
            "long",
        )
        for n in config.baselines.long_steps
        for w in (1.0, *config.baselines.guidance_scales)
    ]


def teacher(config: StudyConfig, noise: Noise, model: ModelSpec) -> Candidate:
    """Many steps of DPM-Solver++(2M) on evenly spaced timesteps."""
    t = config.teacher
    schedule = make_schedule(
        "linspace", t.steps, noise, order=2, guidance_scale=t.guidance_scale, model=model
    )
    return Candidate(f"teacher, w {t.guidance_scale:g}", schedule, "teacher")
