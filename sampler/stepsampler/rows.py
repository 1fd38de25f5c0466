"""A schedule as the plain numbers that `StepScheduler` holds and executes."""

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from stepsampler.noise import NoiseSchedule, read_noise
from stepsampler.noise.edm import in_words_of_edm, is_continuous
from stepsampler.schedule import Schedule
from stepsampler.solvers import tableau
from stepsampler.support.checks import ScheduleError


def plain(schedule: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that the scheduler executes, as plain JSON.

    `schedule` is a `Schedule` or the parsed JSON of its file, `config` that of a scheduler.

    Raises:
        ScheduleError (a ValueError): the schedule was made for another model, or needs more than
            one network call for each of the scheduler's steps.
    """
    if not isinstance(schedule, Schedule):
        schedule = Schedule.from_json(json.dumps(schedule))
    for needs, what in (
        (schedule.solver == "heun", "heun calls the network twice a step"),
        (schedule.raw_noise, "golden noise calls the network before the first step"),
        (schedule.npnet, "learned golden noise is made of the noise and the prompt"),
        (schedule.steps[0].analytic is not None, "an analytic first step calls no network"),
        (any(s.x0_reuse for s in schedule.steps), "a step that reuses x0 calls no network"),
        (any(s.repeats for s in schedule.steps), "repeats call the network more than once a step"),
        (any(s.churn for s in schedule.steps), "churn draws from a generator of each image"),
    ):
        if needs:
            raise ScheduleError(f"{what}, which a scheduler of a stock pipeline cannot do")
    prediction_type = config["prediction_type"]
    noise, _ = read_noise(config)
    if schedule.flow != (prediction_type == "flow_prediction"):
        raise ScheduleError(
            f"the pipeline's prediction type is {prediction_type}, but the schedule's `model` "
            f"names {schedule.model.prediction_type if schedule.model else 'none'}"
        )
    if schedule.model:
        difference = schedule.model.mismatch(noise.spec(schedule.model.family, prediction_type))
        if difference:
            raise ScheduleError(f"the schedule was made for {difference}")
    noise.check_range(schedule)
    rows = []
    for row in tableau(schedule):
        updates = {"advance": row.advance, "correct": row.correct}
        rows.append(
            {
                name: {"state": u.state, "x0": list(u.x0), "points": list(u.points)}
                for name, u in updates.items()
                if u
            }
        )
    return {
        "prediction_type": prediction_type,
        "sigmas": list(schedule.sigmas),
        "timesteps": [noise.network_time(s.sigma * s.time_scale) for s in schedule.steps],
        "decode": schedule.decode,
        "rows": rows,
    }


def reworded(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's config in StepScheduler's words: EDM's, or `snr_shift_scale` in the betas."""
    if is_continuous(config):
        return in_words_of_edm(config)
    if not config.get("snr_shift_scale"):
        return dict(config)
    kept = {k: v for k, v in config.items() if k not in ("snr_shift_scale", "beta_schedule")}
    bare = {**config, "rescale_betas_zero_snr": False}
    alphas = (1.0, *NoiseSchedule.from_scheduler_config(bare).alphas_cumprod)
    betas = [1 - after / before for before, after in pairwise(alphas)]
    return {**kept, "beta_schedule": "linear", "trained_betas": betas}


def outside(schedule: Any) -> str | None:
    """What of a schedule a scheduler leaves to the pipeline."""
    steps = (
        schedule["steps"] if isinstance(schedule, Mapping) else [vars(s) for s in schedule.steps]
    )
    if len({step["guidance_scale"] for step in steps}) > 1:
        return "varies the guidance scale"
    if any(step.get("guidance_reuse") for step in steps):
        return "reuses guidance"
    whole = schedule if isinstance(schedule, Mapping) else vars(schedule)
    if whole.get("boundary") is not None:
        return "changes the network at a sigma of its own (boundary)"
    if any(step.get("free_u") for step in steps):
        return "uses Free-U"
    if any(step.get("guidance_rescale") for step in steps):
        return "rescales guidance"
    return None
