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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf, nan
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from stepsampler.errors import UserError
from stepsampler.grids import is_guided
from stepsampler.models import LatentModel
from stepsampler.schedule import Schedule
from stepsearch.config import StudyConfig
from stepsearch.engine.algorithms import make_algorithm
from stepsearch.engine.ladder import ALIVE, RungPruner, climb
from stepsearch.engine.stopping import stopped
from stepsearch.metrics.evaluator import Evaluator
from stepsearch.paths import write_whole
from stepsearch.space.box import Params, SearchSpace

warnings.filterwarnings("ignore", category=ExperimentalWarning)
optuna.logging.set_verbosity(optuna.logging.WARNING)

MAX_FAILURES = 5
GUIDED = "guided"  # a constraint of studies over guidance scales
# May change between the parts of a run: the budget, and what the run does not look at.
FREE = {
    ("search", "trials"),
    ("search", "minutes"),
    ("search", "patience"),
    ("model", "kind"),
}


def open_study(folder: Path, config: StudyConfig, worker: int = 0) -> optuna.Study:
    """Create the study in the folder's journal, or join it.

    The algorithm's seed depends on the study's, on the worker and on the trials so far, so that
    neither another worker nor a resumed one asks for the same points again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mend_journal(folder / "journal.log")
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    study = optuna.create_study(
        study_name=config.name,
        storage=storage,
        load_if_exists=True,
        directions=["minimize", "maximize"] if config.search.both else ["minimize"],
    )
    entropy = (config.search.seed, worker, len(study.get_trials(deepcopy=False)))
    search = config.search
    study.sampler = make_algorithm(search.algorithm, *entropy, trials=search.trials)
    study.pruner = RungPruner(keep=config.search.finalists)
    return study


def mend_journal(path: Path) -> None:
    """Cut off a last line that a kill or a full disk left unfinished.

    Optuna overlooks it only until the next line is appended to it, and then reads no further.
    """
    if not path.exists():
        return
    lock = JournalFileSymlinkLock(str(path))  # under which Optuna writes
    lock.acquire()
    try:
        with path.open("rb+") as file:
            text = file.read()
            file.truncate(text.rfind(b"\n") + 1)
    finally:
        lock.release()


def enqueue(study: optuna.Study, points: Sequence[tuple[Params, str]]) -> None:
    """Queue points with the name of where each comes from; those already known are skipped."""
    known = {trial.user_attrs.get("origin") for trial in study.get_trials(deepcopy=False)}
    for params, origin in points:
        if origin not in known:
            study.enqueue_trial(params, user_attrs={"origin": origin})


def reap(study: optuna.Study, folder: Path) -> int:
    """Fail the running trials of dead workers of this host, and enqueue their points again."""
    dead = 0
    with locked(folder):  # nobody is between asking for a trial and signing it
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            host, process = trial.user_attrs.get("worker", (socket.gethostname(), ""))
            if host != socket.gethostname() or _alive(process):
                continue
            study.tell(trial.number, state=TrialState.FAIL)
            params = trial.params or trial.system_attrs.get("fixed_params", {})
            if params:
                attrs = {k: v for k, v in trial.user_attrs.items() if k == "origin"}
                study.enqueue_trial(params, user_attrs={**attrs, "retry_of": trial.number})
            dead += 1
    return dead


def this_process(pid: int | None = None) -> str:
    """The process number with the time of its start, since numbers are used again."""
    pid = pid or os.getpid()
    try:
        start = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except OSError:
        start = ""  # not Linux, or gone
    return f"{pid} {start}"


def _alive(process: str) -> bool:
    if not process:
        return False
    pid = int(process.split()[0])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return this_process(pid) == process


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

    `deadline` is a time of `time.time()` after which no new trial starts here.
    """
    done = failures = 0
    while time.time() < deadline:
        with locked(folder):
            if len(study.get_trials(deepcopy=False, states=ALIVE)) >= config.search.trials:
                break
            if searched(study) >= 60 * (config.search.minutes or inf):
                break
            if stopped(study, config.search.patience):
                break
            trial = study.ask()
            trial.set_user_attr("worker", (socket.gethostname(), this_process()))
            params = {
                name: trial.suggest_float(name, d.low, d.high, log=d.log)
                for name, d in space.distributions.items()
            }
        schedule = space.schedule(params)
        trial.set_user_attr("schedule", schedule.to_json())
        if config.evaluation.guidance_scales:  # without guidance there is nothing to scale
            trial.set_constraint(GUIDED, 0.0 if any(map(is_guided, schedule.steps)) else 1.0)
        floor = nan if config.search.both else alignment_floor
        state, value = climb(trial, schedule, config.evaluation, evaluator, floor)
        values = None if value is None or state != TrialState.COMPLETE else [value]
        if values and config.search.both:
            values.append(trial.user_attrs["alignment"])
        study.tell(trial, values, state)
        if state == TrialState.FAIL:
            failures += 1
            if failures == MAX_FAILURES:
                raise UserError(f"the images of {failures} trials in a row are not finite")
            continue
        failures = 0
        done += 1
    return done


def searched(study: optuna.Study) -> float:
    """Seconds in which a trial was under way that came to its end, over all calls and workers."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    trials = study.get_trials(deepcopy=False, states=states)
    total, until = 0.0, -inf
    for began, ended in sorted(
        (t.datetime_start.timestamp(), t.datetime_complete.timestamp())
        for t in trials
        if t.datetime_start and t.datetime_complete
    ):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock under which trials are counted and asked for."""
    with (folder / "ask.lock").open("w") as file:  # released by the system if we are killed
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def claim_folder(folder: Path, config: StudyConfig) -> None:
    """Write the settings into the run's folder, or check that they are those of its start.

    What is `FREE` may change; anything else would mix scores that cannot be compared.

    Raises:
        UserError: names the first setting that differs.
    """
    path = folder / "study.json"
    if path.exists():
        theirs = claimed(folder).model_dump()
        for section, values in config.model_dump().items():
            for key, value in values.items() if isinstance(values, dict) else ():
                if theirs[section][key] != value and (section, key) not in FREE:
                    _refuse(folder, f"{section}.{key}", theirs[section][key], value)
    write_whole(path, lambda p: p.write_text(config.model_dump_json(indent=1)))


def claimed(folder: Path) -> StudyConfig:
    """The settings of the run in a folder.

    Raises:
        UserError: no run has started here, or one of another version.
    """
    path = folder / "study.json"
    if not path.exists():
        raise UserError(f"{folder}: no run has started here; start it with stepsearch run")
    try:
        return StudyConfig.model_validate_json(path.read_text())
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{path}: another version of stepsearch wrote it: {key}") from error


def make_plan(
    folder: Path,
    identity: str,
    grid: str,
    alignment_floor: float,
    placements: Mapping[int, list[float]] | None = None,
) -> None:
    """Write what every worker of the search needs, or check that it is the same as before.

    Raises:
        UserError: model, reference or prompts have changed since the folder's first trial.
    """
    check_identity(folder, identity)
    plan: dict[str, Any] = {"identity": identity, "grid": grid, "alignment_floor": alignment_floor}
    plan["placements"] = [sigmas for _, sigmas in sorted((placements or {}).items())]
    write_whole(folder / "plan.json", lambda p: p.write_text(json.dumps(plan)))


def check_identity(folder: Path, identity: str) -> None:
    """Raise UserError if the folder's search, where there is one, was of something else."""
    if (folder / "plan.json").exists() and identity_of(folder) != identity:
        what = "model, reference and prompts"
        _refuse(folder, what, identity_of(folder), identity)


def planned_space(folder: Path, config: StudyConfig, model: LatentModel) -> SearchSpace:
    """The box of the folder's search, around the grid with which it began."""
    plan = json.loads((folder / "plan.json").read_text())
    placements = {len(sigmas) - 1: sigmas for sigmas in plan.get("placements", [])}
    return SearchSpace(
        config.space, model.noise, model.spec, plan["grid"], model.guidance, placements
    )


def alignment_floor(folder: Path) -> float:
    """The alignment below which a trial is not feasible; NaN where alignment is unknown."""
    return float(json.loads((folder / "plan.json").read_text())["alignment_floor"])


def identity_of(folder: Path) -> str:
    """The digest of a run's model, reference and prompts."""
    return str(json.loads((folder / "plan.json").read_text())["identity"])


def _refuse(folder: Path, what: str, before: object, now: object) -> None:
    raise UserError(
        f"{folder} was started with {what} = {before!r}, now it is {now!r}; "
        "give another folder with --run, or remove this one"
    )


def work(
    folder: Path,
    config: StudyConfig,
    evaluator: Evaluator,
    worker: int,
) -> int:
    """Take part in the search of a folder; returns the number of trials done here.

    Raises:
        UserError: the search has not started yet, or is one of something else.
    """
    if not (folder / "plan.json").exists():
        raise UserError(f"{folder}: the search has not started here yet")
    if identity_of(folder) != evaluator.identity:
        raise UserError(
            f"{folder}: the search is of another model, reference or prompts than are here: "
            f"{identity_of(folder)!r}, not {evaluator.identity!r}"
        )
    space = planned_space(folder, config, evaluator.model)
    study = open_study(folder, config, worker)
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
