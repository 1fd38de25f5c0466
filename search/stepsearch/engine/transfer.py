"""The best schedules of an earlier run as first points of another study's box.

The other study may have more steps, another guidance range, another placement or another model of
the same kind: what is carried over is the schedule as a curve along the trajectory.
"""

from pathlib import Path

from stepsampler.errors import UserError
from stepsampler.schedule import Schedule
from stepsearch.engine.claim import claimed
from stepsearch.engine.ladder import infeasible
from stepsearch.engine.store.journal import JOURNAL
from stepsearch.engine.study import distance_of, finished, read_study, schedule_of
from stepsearch.paths import find_runs, read_json
from stepsearch.space.box import Params, SearchSpace

# Attribute of a study: the run whose trials it has queued, which is not needed any more.
STARTED = "started_from"


def earlier_best(given: Path, count: int) -> list[tuple[str, Schedule, int]]:
    """The `count` best trials of a finished run: name, schedule, the run's num_steps.

    `given` is its folder, or its study file. Its finalists come first, in the order of its
    selection, then other feasible trials by distance.

    Raises:
        UserError: no finished run is there.
    """
    try:
        folder = find_runs(given, "result.json")[0]
    except UserError as error:
        raise UserError(f"search.start_from: {error}") from error
    if not (folder / JOURNAL).exists():
        raise UserError(f"search.start_from: {folder} has no {JOURNAL} any more")
    config = claimed(folder)
    trials = {t.number: t for t in finished(read_study(folder, config))}
    path = folder / "result.json"
    try:
        result = read_json(path)
        chosen = [row["trial"] for row in result["selection"] if row["trial"] in trials]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"search.start_from: {path} is damaged; the same stepsearch run writes it again"
        ) from error
    ranked = sorted(trials.values(), key=distance_of)
    others = [t.number for t in ranked if not infeasible(t) and t.number not in chosen]
    return [
        (f"trial {number} of {folder.name}", schedule_of(trials[number]), config.space.num_steps)
        for number in (chosen + others)[:count]
    ]


def start_points(folder: Path, space: SearchSpace, count: int) -> list[tuple[Params, str]]:
    """What `earlier_best` finds, as points of this box with the name of their origin.

    The box reads a schedule's curves at its own knots and clips what it does not reach. A schedule
    gets as many steps more as this study's `num_steps` is larger.

    Raises:
        UserError: the folder holds no finished run, or that of a model with other noise levels.
    """
    found: list[tuple[Params, str]] = []
    for name, schedule, num_steps in earlier_best(folder, count):
        if schedule.flow != (space.model.prediction_type == "flow_prediction"):
            raise UserError(
                f"search.start_from: {folder} searched for a model of the other kind, flow or not"
            )
        point, _ = space.params(schedule)
        if "num_steps" in point:
            steps = sum(step.calls for step in schedule.steps)
            wanted = float(steps + space.config.num_steps - num_steps)
            box = space.distributions["num_steps"]
            point["num_steps"] = min(max(wanted, box.low), box.high)
        if point not in [known for known, _ in found]:
            found.append((point, name))
    return found
