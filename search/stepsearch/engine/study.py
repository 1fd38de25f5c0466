"""The Optuna study: open, enqueue, and the loop of one worker.

Optuna's storage, a journal or a database, is the only truth. The budget is counted once over all
workers; a trial whose worker died is marked failed and its point is enqueued again.
"""

import time
import warnings
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from math import inf, nan
from pathlib import Path

import optuna
from numpy.linalg import LinAlgError
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from stepsampler.errors import UserError
from stepsampler.grids import is_guided
from stepsampler.schedule import Schedule
from stepsearch.config import StudyConfig
from stepsearch.config.measuring import SearchConfig
from stepsearch.engine.algorithms import ERROR, make_algorithm
from stepsearch.engine.claim import alignment_floor, identity_of, planned_space
from stepsearch.engine.ladder import ALIVE, RungPruner, climb
from stepsearch.engine.stopping import stopped
from stepsearch.engine.store.dashboard import attach, list_constraints
from stepsearch.engine.store.database import open_database
from stepsearch.engine.store.journal import JOURNAL, mend, open_storage
from stepsearch.engine.store.locks import locked, named
from stepsearch.engine.store.presence import WORKER, presence_of
from stepsearch.metrics.evaluator import Evaluator
from stepsearch.space.box import Params, SearchSpace

warnings.filterwarnings("ignore", category=ExperimentalWarning)
optuna.logging.set_verbosity(optuna.logging.WARNING)

MAX_FAILURES = 5
DEATHS = 3  # of workers at one point, after which it is not tried again
OVERDUE = 10  # times as long as any trial took, and at least
LEAST = 600.0  # seconds, is what another command's last trial is waited for
GUIDED = "guided"  # a constraint of studies over guidance scales


def open_study(
    folder: Path, config: StudyConfig, worker: int = 0, storage: str | None = None
) -> optuna.Study:
    """Create the study in the folder's journal, or in a database, or join it.

    The algorithm's seed depends on the study's, on the worker and on the trials so far, so that
    neither another worker nor a resumed one asks for the same points again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if storage is None:
        (folder / JOURNAL).touch()
        mend(folder)
    trials = _trials(folder, storage)
    study = optuna.create_study(
        study_name=_name(trials, config, folder, storage),
        storage=trials,
        load_if_exists=True,
        directions=_directions(config),
    )
    if study.metric_names is None:
        study.set_metric_names([config.evaluation.word, "alignment"][: len(study.directions)])
    entropy = (config.search.seed, worker, len(study.get_trials(deepcopy=False)))
    search = config.search
    study.sampler = make_algorithm(search.algorithm, *entropy, trials=search.trials)
    study.pruner = RungPruner(keep=config.search.finalists)
    return study


def read_study(folder: Path, config: StudyConfig, storage: str | None = None) -> optuna.Study:
    """The study of a folder or a database, to look at; nothing is written, nobody is waited for."""
    if storage is not None or (folder / JOURNAL).exists():
        trials = _trials(folder, storage)
        with suppress(KeyError):  # the first line is not written yet
            name = _name(trials, config, folder, storage)
            return optuna.load_study(study_name=name, storage=trials)
    return optuna.create_study(study_name=config.name, directions=_directions(config))


def _trials(folder: Path, storage: str | None) -> BaseStorage:
    return open_storage(folder) if storage is None else open_database(storage)


def _name(trials: BaseStorage, config: StudyConfig, folder: Path, storage: str | None) -> str:
    """Of a database's study that of the run's folder, so that runs of one study can be told apart;
    of the study in a folder's journal that of its start, whatever its file is called now."""
    if storage is not None:
        return folder.resolve().name
    known = optuna.get_all_study_names(trials)
    return config.name if config.name in known or not known else known[0]


def _directions(config: StudyConfig) -> list[StudyDirection]:
    both = [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]
    return both if config.search.both else both[:1]


def enqueue(study: optuna.Study, folder: Path, points: Sequence[tuple[Params, str]]) -> None:
    """Queue points with the name of where each comes from; those already known are skipped.

    A run that was frozen after it had looked, and for so long that another one took over, finds
    that out afterwards: what both have queued is withdrawn again.
    """
    with locked(folder):
        known = {trial.user_attrs.get("origin") for trial in study.get_trials(deepcopy=False)}
        for params, origin in points:
            if origin not in known:
                study.enqueue_trial(params, user_attrs={"origin": origin})
        seen = set()
        for trial in study.get_trials(deepcopy=False):
            fixed = trial.system_attrs.get("fixed_params")
            if not fixed or "retry_of" in trial.user_attrs:
                continue
            point = (trial.user_attrs.get("origin"), *sorted(fixed.items()))
            if point in seen and trial.state == TrialState.WAITING:
                with suppress(UpdateFinishedTrialError):  # somebody has just asked for it
                    study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            seen.add(point)


def reap(
    study: optuna.Study, folder: Path, overdue: Container[int] = (), asking: bool = False
) -> int:
    """Fail the running trials of dead workers, and enqueue their points again; returns how many.

    A worker of this machine is known to be dead at once where they share a folder, any other after
    a minute of silence, which begins when its trial is first looked at here. Trials that are
    `overdue` are treated alike. `asking` leaves those alone that nobody has signed yet.
    """
    present = presence_of(study, folder)

    def lost(trial: FrozenTrial) -> bool:
        return trial.number in overdue or present.lost(trial, asking)

    if not any(map(lost, _running(study))):
        return 0
    dead = 0
    with locked(folder):  # nobody of this folder is between asking for a trial and signing it
        for trial in filter(lost, _running(study)):
            try:
                study.tell(trial.number, state=TrialState.FAIL)
            except (UpdateFinishedTrialError, ValueError):
                continue  # it has come to its end just now
            dead += 1
            deaths = trial.user_attrs.get("deaths", 0) + 1
            params = trial.params or trial.system_attrs.get("fixed_params", {})
            if params and deaths < DEATHS:
                attrs = {k: v for k, v in trial.user_attrs.items() if k == "origin"}
                attrs |= {"retry_of": trial.number, "deaths": deaths}
                study.enqueue_trial(params, user_attrs=attrs)
    return dead


def wait_for_others(study: optuna.Study, folder: Path, say: Callable[[str], None]) -> int:
    """Wait for the last trials of workers that joined from elsewhere.

    Returns the number of trials that died or took too long meanwhile, whose points are to be tried
    again. `say` hears of each trial that is waited for.
    """
    took = [t.user_attrs.get("seconds", 0.0) for t in finished(study)]
    limit = max(LEAST, OVERDUE * max(took, default=0.0))
    began: dict[int, float] = {}
    dead = 0
    while running := _running(study):
        now = time.monotonic()
        for trial in running:
            if trial.number not in began:
                who = named(trial.user_attrs.get(WORKER, []))
                say(f"waiting for trial {trial.number} of {who}, {limit / 60:.0f} minutes at most")
            began.setdefault(trial.number, now)
        dead += reap(study, folder, {n for n, since in began.items() if now - since > limit})
        time.sleep(0.5)
    return dead


def _running(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that were measured on all images."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if "schedule" in trial.user_attrs
    ]


def pruned(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that were measured on the images of a lower rung."""
    return study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))


def failed(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that failed by themselves; those of dead workers are tried again."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return [trial for trial in trials if ERROR in trial.user_attrs]


def run_trials(
    study: optuna.Study,
    folder: Path,
    config: StudyConfig,
    space: SearchSpace,
    evaluator: Evaluator,
    alignment_floor: float,
    deadline: float = inf,
) -> int:
    """One worker: ask, evaluate, tell, until the study's budget is spent or more does not pay.

    Trials that fail are not counted, but there are no more of them here than the budget has trials.

    `deadline` is a time of `time.monotonic()` after which no new trial starts here.
    """
    done = failures = 0
    present = presence_of(study, folder)
    with present.working():
        while time.monotonic() < deadline and failures < max(config.search.trials, MAX_FAILURES):
            with present.asking():
                if spent(study, config.search):
                    break
                trial = study.ask()
                present.sign(trial)
            try:
                if surplus(study, trial.number, config.search.trials):
                    study.tell(trial, state=TrialState.FAIL)
                    continue
                params = {  # what an algorithm thinks of, while others ask
                    name: trial.suggest_float(name, d.low, d.high, log=d.log)
                    for name, d in space.distributions.items()
                }
                ended = _measure(
                    study, trial, config, space, params, evaluator, alignment_floor, folder
                )
            except UpdateFinishedTrialError:
                continue  # this process was taken for dead, perhaps it slept: retried elsewhere
            if ended == TrialState.FAIL:
                failures += 1
                if failures == MAX_FAILURES and not (finished(study) or pruned(study)):
                    reason = failed(study)[-1].user_attrs[ERROR]
                    raise UserError(
                        f"the first {failures} trials failed, none was measured: {reason}"
                    )
                continue
            done += 1
    return done


def spent(study: optuna.Study, options: SearchConfig) -> bool:
    """Whether no trial is to be begun any more: of trials, of minutes, or of what more can pay."""
    return bool(
        len(study.get_trials(deepcopy=False, states=ALIVE)) >= options.trials
        or (options.minutes is not None and searched(study) >= 60 * options.minutes)
        or stopped(study, options.patience)
    )


def surplus(study: optuna.Study, number: int, budget: int) -> bool:
    """Whether a trial is one too many, where several workers ask at the same time.

    It is if as many of lower numbers are there that have not failed. Those were there before it
    and do not become more, so that of all that are not surplus there are never more than `budget`.
    """
    if number < budget:  # fewer are there at all
        return False
    lower = (t for t in study.get_trials(deepcopy=False) if t.number < number)
    return sum(t.state != TrialState.FAIL for t in lower) >= budget


def _measure(
    study: optuna.Study,
    trial: optuna.Trial,
    config: StudyConfig,
    space: SearchSpace,
    params: Params,
    evaluator: Evaluator,
    alignment_floor: float,
    folder: Path,
) -> TrialState:
    """Bring a trial to its end; returns which."""
    schedule = space.schedule(params)
    trial.set_user_attr("schedule", schedule.to_json())
    if config.evaluation.guidance_scales:  # without guidance there is nothing to scale
        trial.set_constraint(GUIDED, 0.0 if any(map(is_guided, schedule.steps)) else 1.0)
    floor = nan if config.search.both else alignment_floor
    try:
        state, value = climb(trial, schedule, config.evaluation, evaluator, floor)
    except (UserError, LinAlgError) as error:  # such as out of memory: others may be measured
        trial.set_user_attr(ERROR, str(error))
        state, value = TrialState.FAIL, None
    list_constraints(trial)
    if sheet := trial.user_attrs.get("sheet"):
        attach(trial, Path(sheet), folder, "images")
    values = None if value is None or state != TrialState.COMPLETE else [value]
    if values and config.search.both:
        values.append(trial.user_attrs["alignment"])
    return study.tell(trial, values, state, skip_if_finished=True).state


def searched(study: optuna.Study) -> float:
    """Seconds in which a trial was under way that came to its end, over all calls and workers.

    How long each took is told by the clock that never jumps. When it began is that of its machine,
    where a trial of a higher number began later: a clock that was set back since is set right.
    """
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    last: dict[object, float] = {}  # when the last trial of a machine began, of a worker ended
    back: dict[object, float] = {}
    spans = []
    for trial in sorted(study.get_trials(deepcopy=False, states=states), key=lambda t: t.number):
        if not (trial.datetime_start and trial.datetime_complete):
            continue
        worker = tuple(trial.user_attrs.get(WORKER, ()))
        machine = worker[2:3]
        start = trial.datetime_start.timestamp()
        lasted = max(0.0, trial.datetime_complete.timestamp() - start)
        start += back.get(machine, 0.0)
        if start < last.get(machine, -inf):
            known = max(last[machine], last.get(worker, -inf))
            back[machine] = back.get(machine, 0.0) + known - start
            start = known
        end = start + trial.user_attrs.get("seconds", lasted)
        last[machine], last[worker] = start, end
        spans.append((start, end))
    total, until = 0.0, -inf
    for began, ended in sorted(spans):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total


def work(
    folder: Path,
    config: StudyConfig,
    evaluator: Evaluator,
    worker: int,
    storage: str | None = None,
) -> int:
    """Take part in the search of a folder; returns the number of trials done here.

    Raises:
        UserError: the search has not started yet, or is one of something else.
    """
    if identity_of(folder) != evaluator.identity:
        raise UserError(
            f"{folder}: the search is of another model, reference or prompts than are here: "
            f"{identity_of(folder)!r}, not {evaluator.identity!r}"
        )
    space = planned_space(folder, config, evaluator.model)
    study = open_study(folder, config, worker, storage)
    floor = alignment_floor(folder)
    return run_trials(study, folder, config, space, evaluator, floor)


def usable(study: optuna.Study) -> list[FrozenTrial]:
    """Finished trials, the lowest FD first; of a study over guidance scales the guided ones.

    Each schedule once: several points of a box may come to the same one.
    """
    found: dict[str, FrozenTrial] = {}
    for trial in finished(study):
        if trial.constraints.get(GUIDED, 0.0) <= 0:
            found.setdefault(trial.user_attrs["schedule"], trial)
    return sorted(found.values(), key=distance_of)


def distance_of(trial: FrozenTrial) -> float:
    """FD of a finished trial, whether it is the only objective or the first."""
    return float(trial.values[0])


def schedule_of(trial: FrozenTrial) -> Schedule:
    return Schedule.from_json(trial.user_attrs["schedule"])
