"""The search: every worker asks for trials; meanwhile what they finish is shown and tracked."""

from collections.abc import Sequence
from concurrent.futures import wait
from math import inf, isnan
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from stepsampler.errors import counted, percent
from stepsearch.engine.algorithms import ERROR
from stepsearch.engine.claim import make_plan, publish, sign
from stepsearch.engine.stages.tools import Tools
from stepsearch.engine.stopping import stopped
from stepsearch.engine.store.locks import named
from stepsearch.engine.study import (
    distance_of,
    enqueue,
    failed,
    finished,
    pruned,
    reap,
    wait_for_others,
)
from stepsearch.engine.transfer import STARTED, start_points
from stepsearch.engine.watch import Watch
from stepsearch.rivals.baselines import Candidate, Placements
from stepsearch.space.box import Params, SearchSpace


def make_box(tools: Tools, best: Sequence[Candidate], placements: Placements) -> SearchSpace:
    """The box around the study's baseline, or around the best one with a formula.

    Its centre needs a placement for any number of steps.
    """
    config, subject = tools.config.space, tools.subject
    grid = config.baseline
    if grid == "best":
        grid = next((c.grid for c in best if c.grid), "power")
    centre = {n: sigmas for (name, n), sigmas in placements.items() if name == grid}
    return SearchSpace(
        config,
        subject.noise,
        subject.spec,
        grid,
        subject.guidance,
        centre,
        subject.boundary,
        subject.statistics,
    )


def search(
    tools: Tools,
    folder: Path,
    study: optuna.Study,
    space: SearchSpace,
    points: Sequence[tuple[Params, str]],
    floor: float,
) -> None:
    """Let every worker search `space` from `points` on, until the budget is spent.

    Its trials are in `study`; those below `floor` in alignment set no record.
    """
    options = tools.config.search
    make_plan(folder, tools.subject.identity, space.grid, floor, space.placements)
    sign(study, tools.config, tools.subject.identity)
    reap(study, folder)
    if options.start_from and study.user_attrs.get(STARTED) != options.start_from:
        enqueue(study, folder, start_points(Path(options.start_from), space, options.finalists))
        study.set_user_attr(STARTED, options.start_from)
    enqueue(study, folder, points)
    publish(study, folder)
    shown: set[int] = set()
    lost: set[int] = set()
    record, holder = inf, -1
    watch, heard = Watch(), 0
    tools.report("search", 0, options.trials, "")

    def look() -> None:
        """Show and track what has ended by now, whoever did it."""
        nonlocal record, holder
        ended = pruned(study)
        for trial in finished(study) + ended:
            if trial.number not in shown:
                shown.add(trial.number)
                value = _show(tools, trial, len(shown), len(ended), floor, record)
                record, holder = value, trial.number if value < record else holder
        for trial in failed(study):
            if trial.number not in lost:
                lost.add(trial.number)
                _say(tools, study, f"trial {trial.number} failed: {trial.user_attrs[ERROR]}")
        tools.tracker.sync(study)

    while True:
        futures = tools.workers.search()
        running = set(futures)
        while running:
            _, running = wait(futures, timeout=1.0)
            look()
            reap(study, folder, asking=True)
            if heard != len(shown) + len(lost):
                heard = len(shown) + len(lost)
                watch.stir()
            if news := watch.due(lambda: _under_way(study)):
                _say(tools, study, news)
        for future in futures:
            tools.workers.result(future)  # an error of a worker is ours
        again = reap(study, folder)
        again += wait_for_others(study, folder, lambda news: _say(tools, study, news))
        look()  # the last trials of those that joined
        if not again:
            break
    done = len(finished(study)) + len(pruned(study))
    best = f"the best is trial {holder}" if holder >= 0 else "none of them keeps the alignment"
    news = f"{counted(done, 'trial')} done, {best}"
    if reason := stopped(study, options.patience):
        news = f"stopped after {done} of {options.trials} trials: {reason}"
    tools.report(_stage(len(pruned(study))), done, done, news)


def _stage(ended: int) -> str:
    return f"search ({ended} pruned)" if ended else "search"


def _under_way(study: optuna.Study) -> str:
    trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    signed = [(t.number, named(t.user_attrs.get("worker", []))) for t in trials]
    return ", ".join(f"trial {number} of {who}" for number, who in signed) or "a worker to begin"


def _say(tools: Tools, study: optuna.Study, news: str) -> None:
    done = len(finished(study)) + len(pruned(study))
    tools.report("search", done, tools.config.search.trials, news)


def _show(
    tools: Tools, trial: FrozenTrial, done: int, ended: int, floor: float, record: float
) -> float:
    """Report a trial and return the best value so far; pruned ones only count."""
    value, alignment = distance_of(trial), trial.user_attrs["alignment"]
    news = ""
    whole = trial.state == TrialState.COMPLETE
    if whole and value < record and not alignment < floor:
        record = value
        origin = trial.user_attrs.get("origin", tools.config.search.algorithm)
        share = "" if isnan(alignment) else f", alignment {percent(alignment)}"
        on = counted(tools.config.evaluation.images, "image")
        news = f"trial {trial.number}: {value:.3f} on {on}{share} ({origin}), the best so far"
    tools.report(_stage(ended), done, tools.config.search.trials, news)
    return record
