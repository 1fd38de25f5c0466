"""How far a run is, as plain data: what the live view shows and `stepsearch status --json` prints.

All of it is read where the trials are: in the journal or the database, from any machine.
"""

import json
from collections import Counter
from datetime import datetime
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from stepsampler.errors import UserError
from stepsampler.schedule import Schedule, load
from stepsampler.support.checks import ScheduleError
from stepsearch.config import StudyConfig
from stepsearch.engine.claim import BEST, has_ended
from stepsearch.engine.ladder import infeasible, passes_spent
from stepsearch.engine.stages.costs import Costs
from stepsearch.engine.stages.stage import RANKING, Stage, noted_stage
from stepsearch.engine.store.locks import machine, named, runs_now
from stepsearch.engine.store.presence import WORKER
from stepsearch.engine.study import distance_of, failed, finished, pruned
from stepsearch.metrics.distance import Score
from stepsearch.report.cards import Data, NotYet, verdict
from stepsearch.report.cards.history import trail
from stepsearch.report.cards.schedules import plain
from stepsearch.report.sources import DAMAGED, of_run, seconds_of_a_pass

UNDER_WAY, FINISHED, STOPPED, AWAY = "under way", "finished", "not running", "not known"
SEARCH, LOADING, LAST = "search", "loading", "pictures"  # as stages are reported
NOT_KNOWN = ("near ", "trial ")  # begin the names of points that are no known schedule itself
SURE = 0.02  # of a stage from which its speed says something


def snapshot(folder: Path, config: StudyConfig, study: Study, most: Costs) -> Data:
    """`stage`, `trials`, `workers`, `passes`, `best` against `baseline`, `history`, and of a
    finished run its `verdict` and the schedule that is `exported`. What is not known (yet) is None.

    `most` is what the study costs at most.

    Raises:
        UserError: what is noted of a trial is damaged.
    """
    try:
        return _snapshot(folder, config, study, most)
    except UserError:
        raise
    except DAMAGED as error:
        raise UserError(f"{folder}: what is noted of its trials is damaged ({error})") from error


def _snapshot(folder: Path, config: StudyConfig, study: Study, most: Costs) -> Data:
    every = study.get_trials(deepcopy=False)
    ended = has_ended(folder, config)
    stage = noted_stage(study)
    done, cut = finished(study), pruned(study)
    running = [t for t in every if t.state == TrialState.RUNNING]
    data: Data = {
        "study": config.name,
        "folder": str(folder),
        "state": _state(folder, ended, stage),
        "stage": None if stage is None or ended else _told(stage),
        "trials": {
            "budget": config.search.trials,
            "finished": len(done),
            "pruned": len(cut),
            "failed": len(failed(study)),
            "running": len(running),
            "waiting": sum(t.state == TrialState.WAITING for t in every),
        },
        "workers": _workers(running, [*done, *cut]),
        "images": config.evaluation.images,
    }
    data |= _time(config, stage, ended, every, most, data)
    data |= _standing(done)
    if data["stage"] and data["stage"]["name"].startswith(SEARCH):  # which the trials tell best
        data["stage"] |= {"done": len(done) + len(cut), "total": config.search.trials}
    data["history"] = [[e["passes"], e["best"]] for e in trail(study, done, config)]
    data["file"] = str(folder / BEST) if (folder / BEST).exists() else None
    data["exported"] = _exported(folder) if ended else None
    data["verdict"] = _verdict(folder) if ended else None
    return data


def _told(stage: Stage) -> Data:
    return {"name": stage.name, "done": stage.done, "total": stage.total, "seconds": stage.seconds}


def _state(folder: Path, ended: bool, stage: Stage | None) -> str:
    if (alive := runs_now(folder)) is not False:
        here = alive or (stage is not None and stage.process[2:3] == (machine(),))
        return UNDER_WAY if here else AWAY
    if ended:
        return FINISHED
    elsewhere = stage is not None and stage.process[2:3] != (machine(),)
    return AWAY if elsewhere else STOPPED


def _workers(running: list[FrozenTrial], ended: list[FrozenTrial]) -> list[Data]:
    """Who is at which trial, and how many each has behind it."""
    behind = Counter(tuple(t.user_attrs.get(WORKER, ())) for t in ended)
    found = []
    for trial in running:
        who = trial.user_attrs.get(WORKER, [])
        began = trial.datetime_start if list(who[2:3]) == [machine()] else None  # its own clock
        found.append(
            {
                "worker": named(who),
                "trial": trial.number,
                "seconds": began and max(0.0, (datetime.now() - began).total_seconds()),
                "done": behind[tuple(who)],
            }
        )
    return found


def _time(
    config: StudyConfig,
    stage: Stage | None,
    ended: bool,
    every: list[FrozenTrial],
    most: Costs,
    data: Data,
) -> Data:
    """Passes that are spent and left, and the time for these; all but those of trials are bounds.

    Trials to come are taken to cost what those behind them did.
    """
    versions = len(config.evaluation.guidance_scales) or 1
    trials, counts = versions * passes_spent(every, config.evaluation), data["trials"]
    behind = counts["finished"] + counts["pruned"]
    each = trials / behind if behind else most.passes["trials"] / config.search.trials
    first = ("statistics", "rivals")
    places: list[tuple[str, float]] = [(name, most.passes[name]) for name in first]
    places += [(f"baselines, {n} images", passes) for n, passes in most.rungs.items()]
    places += [(name, most.passes[name]) for name in ("teacher", "patterns")] + [(SEARCH, 0)]
    places += [(RANKING, most.ranking), ("polish", most.passes["polish"])]
    places += [("selection", most.passes["selection"] - most.ranking)]  # which recalls the ranking
    places += [("test", most.passes["test"])]
    names = [name for name, _ in places]
    name = stage.name if stage else SEARCH if every else LOADING
    name = name if name in names else name.partition(" (")[0]
    at = len(names) if ended or name == LAST else names.index(name) if name in names else -1
    share = stage.share if stage and 0 <= at < len(names) else 0.0
    here = places[at][1] if 0 <= at < len(names) else 0.0
    used = sum(n for _, n in places[: max(at, 0)]) + share * here + trials
    left = sum(n for _, n in places[at + 1 :]) + (1 - share) * here
    if at <= names.index(SEARCH):
        left += each * max(0, config.search.trials - behind)
    done = [t for t in every if t.state == TrialState.COMPLETE]
    seconds, workers = seconds_of_a_pass(done, spared=True), stage.workers if stage else 1
    if seconds is not None:
        seconds /= versions
    elif stage and share > SURE and here:
        seconds = workers * stage.seconds / (share * here)
    if name == SEARCH:
        workers = max(1, data["trials"]["running"])
    going = data["state"] == UNDER_WAY or data["state"] == AWAY
    return {
        "passes": {"used": round(used), "left": round(left), "at_most": sum(most.passes.values())},
        "seconds_per_pass": seconds,
        "seconds_left": seconds * left / workers if seconds is not None and going else None,
    }


def _standing(done: list[FrozenTrial]) -> Data:
    """The best trial that keeps the alignment, and the best of the known schedules among them.

    Both are of the same images, so that their difference has an error of its own.
    """
    kept = [t for t in done if not infeasible(t)]
    best = min(kept, key=distance_of, default=None)
    first = [t for t in kept if not t.user_attrs.get("origin", NOT_KNOWN[0]).startswith(NOT_KNOWN)]
    known = min(first, key=distance_of, default=None)
    found: Data = {"best": best and _entry(best), "baseline": known and _entry(known)}
    found["gain"] = found["gain_se"] = None
    if best is not None and known is not None and best is not known:
        less, se = _score(known).minus(_score(best))
        found["gain"], found["gain_se"] = less, se if isfinite(se) else None
    return found


def _score(trial: FrozenTrial) -> Score:
    return Score(distance_of(trial), np.array(trial.user_attrs.get("left_out", ())))


def _entry(trial: FrozenTrial) -> Data:
    known, score = trial.user_attrs, _score(trial)
    share, se = known.get("alignment", nan), score.se if len(score.left_out) > 1 else nan
    plan = Schedule.from_json(known["schedule"])
    return {
        "trial": trial.number,
        "name": known.get("origin", f"trial {trial.number}"),
        "value": score.value,
        "se": se if isfinite(se) else None,
        "alignment": share if isfinite(share) else None,
        "passes": known.get("passes", plan.passes),
        "schedule": plain("", "found", plan),
    }


def _exported(folder: Path) -> Data | None:
    """Which need not be that of the best trial: the selection chooses, on other seeds."""
    try:
        schedule = load(folder / BEST)
    except ScheduleError:  # damaged: `export` says so
        return None
    return plain(str(schedule.provenance.get("source", "")), "found", schedule)


def _verdict(folder: Path) -> Data | None:
    """As the page of the run has it."""
    try:
        found: Any = verdict.data(of_run(folder))
        return json.loads(json.dumps(found))  # type: ignore[no-any-return]
    except (NotYet, *DAMAGED):
        return None
