"""Every well-known schedule at the study's budget."""

from dataclasses import dataclass
from typing import Literal

from stepsampler.grids import GRIDS, make_schedule
from stepsampler.noise import Noise
from stepsampler.schedule import ModelSpec, Schedule
from stepsearch.config import StudyConfig

Kind = Literal["found", "baseline", "long", "teacher"]


@dataclass(frozen=True)
class Candidate:
    """A schedule with the name under which tables show it.

    Only baselines spend the study's budget; "long" rows and the teacher spend more.
    """

    name: str
    schedule: Schedule
    kind: Kind
    grid: str = ""
    trial: int | None = None


def baselines(config: StudyConfig, noise: Noise, model: ModelSpec) -> list[Candidate]:
    """Each grid and order, at every guidance with `num_steps` and unguided with all passes."""
    passes, steps = config.space.passes, config.space.num_steps
    found = []
    for grid in GRIDS:
        for order in config.baselines.orders:
            guided = min(steps, passes // 2)  # as many as the budget pays for
            options = [(guided, w) for w in config.baselines.guidance_scales]
            for n, w in [*options, (passes, 1.0)]:
                schedule = make_schedule(grid, n, noise, order=order, guidance_scale=w, model=model)
                name = f"{grid}, order {order}, " + (
                    f"w {w:g}" if w != 1 else f"{n} unguided steps"
                )
                found.append(Candidate(name, schedule, "baseline", grid))
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
