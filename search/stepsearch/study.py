"""The Optuna study: open, enqueue, and the loop of one worker.

The journal is the only truth. A worker asks under a lock, so that the budget is counted once over
all workers; a trial whose worker died is marked failed and its point is enqueued again.
"""

import fcntl
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import optuna
import torch
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from stepsampler.errors import UserError
from stepsampler.schedule import Schedule
from stepsearch.config import StudyConfig
from stepsearch.distance import frechet_distance
from stepsearch.evaluate import SEARCH, Evaluator, seeds_of
from stepsearch.paths import write_whole
from stepsearch.space import Params, SearchSpace

warnings.filterwarnings("ignore", category=ExperimentalWarning)
optuna.logging.set_verbosity(optuna.logging.WARNING)

MAX_FAILURES = 5
FREE = {("search", "trials"), ("search", "minutes")}  # may change between the parts of a run
COUNTED = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)


def make_algorithm(name: str, seed: int) -> BaseSampler:
    """Optuna's search algorithm by our name for it."""
    if name == "gp":
        return GPSampler(seed=seed, deterministic_objective=False)
    if name == "tpe":
        return TPESampler(seed=seed)
    if name == "cmaes":
        return CmaEsSampler(seed=seed)
    return RandomSampler(seed=seed)


def open_study(folder: Path, config: StudyConfig, worker: int = 0) -> optuna.Study:
    """Create the study in the folder's journal, or join it; each worker has its own seed."""
    folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    return optuna.create_study(
        study_name=f"{config.name}-{config.search.algorithm}-{config.search.seed}",
        storage=storage,
        sampler=make_algorithm(config.search.algorithm, 1000 * config.search.seed + worker),
        load_if_exists=True,
    )


def enqueue(study: optuna.Study, points: Sequence[tuple[Params, str]]) -> None:
    """Queue points with the name of where each comes from; those already known are skipped."""
    known = {trial.user_attrs.get("origin") for trial in study.get_trials(deepcopy=False)}
    for params, origin in points:
        if origin not in known:
            study.enqueue_trial(params, user_attrs={"origin": origin})


def reap(study: optuna.Study) -> int:
    """Fail the running trials of dead workers of this host, and enqueue their points again."""
    dead = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        host, pid = trial.user_attrs.get("host"), trial.user_attrs.get("pid")
        if pid is None or (host == socket.gethostname() and not _alive(pid)):
            study.tell(trial.number, state=TrialState.FAIL)
            if trial.params:
                origin = f"retry of trial {trial.number}"
                study.enqueue_trial(trial.params, user_attrs={"origin": origin})
            dead += 1
    return dead


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def finished(study: optuna.Study) -> list[FrozenTrial]:
    return [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if "schedule" in trial.user_attrs
    ]


def run_trials(
    study: optuna.Study,
    folder: Path,
    config: StudyConfig,
    space: SearchSpace,
    evaluator: Evaluator,
    alignment_floor: float,
    deadline: float | None = None,
) -> int:
    """One worker: ask, evaluate, tell, until the budget of the study is spent.

    `deadline` is a time of `time.time()` after which no new trial starts.
    """
    done = failures = 0
    while deadline is None or time.time() < deadline:
        with locked(folder):
            if len(study.get_trials(deepcopy=False, states=COUNTED)) >= config.search.trials:
                break
            trial = study.ask()
            trial.set_user_attr("host", socket.gethostname())
            trial.set_user_attr("pid", os.getpid())
            params = {
                name: trial.suggest_float(name, d.low, d.high, log=d.log)
                for name, d in space.distributions.items()
            }
        started = time.perf_counter()
        schedule = space.schedule(params)
        trial.set_user_attr("schedule", schedule.to_json())
        try:
            found = evaluator.measure(schedule, seeds_of(SEARCH, config.evaluation.images))
        except (FloatingPointError, MemoryError, torch.OutOfMemoryError) as error:
            # broken images or no memory: the trial is lost, the study is not
            reason = str(error).splitlines()[0][:300]
            trial.set_user_attr("error", reason)
            study.tell(trial, state=TrialState.FAIL)
            failures += 1
            if failures == MAX_FAILURES:
                raise UserError(f"{failures} trials in a row failed; the last: {reason}") from error
            continue
        failures = 0
        trial.set_user_attr("alignment", found.alignment)
        trial.set_user_attr("sheet", found.sheet and str(found.sheet.absolute()))
        trial.set_user_attr("passes", schedule.passes)
        trial.set_user_attr("seconds", time.perf_counter() - started)
        if found.alignment == found.alignment:  # not NaN
            trial.set_constraint("alignment", alignment_floor - found.alignment)
        study.tell(trial, frechet_distance(found.features, evaluator.reference.search))
        done += 1
    return done


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock under which trials are counted and asked for."""
    with (folder / "ask.lock").open("w") as file:  # released by the system if we are killed
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def claim_folder(folder: Path, config: StudyConfig) -> None:
    """Write the settings into the run's folder, or check that they are those of its start.

    The budget may change (`search.trials`, `search.minutes`); anything else would mix scores that
    cannot be compared.

    Raises:
        UserError: names the first setting that differs.
    """
    path = folder / "study.json"
    ours = config.model_dump(mode="json")
    if not path.exists():
        write_whole(path, lambda p: p.write_text(json.dumps(ours, indent=1)))
        return
    theirs = json.loads(path.read_text())
    for section, values in ours.items():
        if not isinstance(values, dict):
            continue
        for key, value in values.items():
            before = theirs.get(section, {}).get(key)
            if before != value and (section, key) not in FREE:
                raise UserError(
                    f"{folder} was started with {section}.{key} = {before!r}, now it is {value!r}; "
                    "give another folder with --run, or remove this one"
                )


def save_plan(folder: Path, space: SearchSpace, alignment_floor: float) -> None:
    """Write what a worker that joins from elsewhere needs besides the study file."""
    plan = {"baseline": space.baseline, "alignment_floor": alignment_floor}
    write_whole(folder / "plan.json", lambda p: p.write_text(json.dumps(plan)))


def join(folder: Path, config: StudyConfig, device: str) -> int:
    """One more worker for a search that is under way; returns its number of trials.

    Raises:
        UserError: no search has started in this folder.
    """
    if not (folder / "plan.json").exists():
        raise UserError(f"{folder}: no search has started here; start it with stepsearch run")
    plan = json.loads((folder / "plan.json").read_text())
    evaluator = Evaluator(config, folder / "cache", device)
    model = evaluator.model
    space = SearchSpace(config.space, model.noise, model.spec, tuple(plan["baseline"]))
    study = open_study(folder, config, worker=os.getpid() % 10_000)
    return run_trials(study, folder, config, space, evaluator, plan["alignment_floor"])


def schedule_of(trial: FrozenTrial) -> Schedule:
    return Schedule.from_json(trial.user_attrs["schedule"])
