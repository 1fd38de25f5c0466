"""The jobs of a run, spread over all its workers by the storage of its trials.

A job is a trial of a second Optuna study, `RUN/jobs`: its attributes say what to do, whoever sets
its state to running does it, the result is a parcel. The run offers, waits and reads. What a dead
worker had is offered again; results outlive the run that offered them, so another one finds them.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from stepsampler.errors import UserError
from stepsearch.config import StudyConfig
from stepsearch.engine.algorithms import ERROR
from stepsearch.engine.claim import IDENTITY, SETTINGS, sign
from stepsearch.engine.jobs.kinds import KINDS, Job
from stepsearch.engine.store.database import open_database
from stepsearch.engine.store.locks import named
from stepsearch.engine.store.parcels import open_parcels
from stepsearch.engine.store.presence import WORKER, presence_of
from stepsearch.engine.study import DEATHS, LEAST, OVERDUE
from stepsearch.metrics.evaluator import Evaluator

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
POLL = 0.5  # seconds between two looks at what others have done
SHOWN = 3  # of what is waited for
KEY, WHAT, RESULT = "key", "job", "result"  # of a job; the last with how many seconds it took
ARTIFACTS = "artifacts"  # attribute of the study: where results are; None: in the database


@dataclass(frozen=True)
class _Taken:
    """A job that is this process's; `optuna.Trial` reads it from the storage at every turn."""

    storage: BaseStorage
    trial: int
    job: Job[Any]

    def set_user_attr(self, key: str, value: Any) -> None:
        self.storage.set_trial_user_attr(self.trial, key, value)

    def end(self, state: TrialState) -> None:
        values = [0.0] if state == TrialState.COMPLETE else None
        self.storage.set_trial_state_values(self.trial, state, values)


class Board:
    """Where the jobs of a run are offered and taken."""

    def __init__(self, study: optuna.Study, folder: Path) -> None:
        attrs = study.user_attrs
        self.study, self.present = study, presence_of(study, folder)
        self.identity: str = attrs[IDENTITY]
        self._rulers = attrs[SETTINGS]["evaluation"]["rulers"]
        name = study.study_name.removesuffix("/jobs")
        self._parcels = open_parcels(study._storage, name, attrs[ARTIFACTS])

    def key(self, job: Job[Any]) -> str:
        """The same for the same job on the same model, reference and prompts alone."""
        asked = [job.kind, asdict(job), self.identity, self._rulers]
        text = json.dumps(asked, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def offer(self, job: Job[Any]) -> None:
        attrs = {KEY: self.key(job), WHAT: {"kind": job.kind, **asdict(job)}}
        self.study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING, user_attrs=attrs))

    def look(self, lost: Container[int] = ()) -> dict[str, FrozenTrial]:
        """Each job that is done, under way or offered, by its key; without these trials."""
        rank = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)
        trials = self.study.get_trials(deepcopy=False, states=rank)
        trials.sort(key=lambda trial: rank.index(trial.state))
        return {trial.user_attrs[KEY]: trial for trial in trials if trial.number not in lost}

    def result(self, trial: FrozenTrial) -> bytes | None:
        """The result of a job that is done, or None: it is lost."""
        ticket, _ = trial.user_attrs[RESULT]
        return self._parcels.get(ticket)

    def serve(self, evaluator: Evaluator) -> int:
        """Do whatever is offered, until nothing is; returns how many jobs.

        Raises:
            UserError: one cannot be done here; others may be able to.
        """
        done = 0
        while (taken := self._take()) is not None:
            began = time.perf_counter()
            try:
                ticket = self._parcels.put(taken.job.pack(taken.job.do(evaluator)))
                taken.set_user_attr(RESULT, [ticket, time.perf_counter() - began])
                taken.end(TrialState.COMPLETE)
                done += 1
            except UpdateFinishedTrialError:
                continue  # this process was taken for dead, perhaps it slept
            except BaseException as error:
                with suppress(Exception):  # the storage may be what is not there
                    if isinstance(error, Exception):
                        taken.set_user_attr(ERROR, str(error))
                    taken.end(TrialState.FAIL)
                raise
        return done

    def _take(self) -> "_Taken | None":
        storage = self.study._storage
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            data = dict(trial.user_attrs[WHAT])
            make = KINDS.get(data.pop("kind"))
            if make is None:
                continue  # another build's
            job = make(**data)
            if self.key(job) != trial.user_attrs[KEY]:
                continue  # of another model, which somebody else may have, or of a run before this
            with suppress(UpdateFinishedTrialError):
                if storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                    taken = _Taken(storage, trial._trial_id, job)
                    self.present.sign(taken)
                    return taken
        return None

    def reap(self) -> None:
        """Take their jobs from workers that are dead."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self.present.lost(trial, asking=False):
                self.give_up(trial)

    def give_up(self, trial: FrozenTrial) -> None:
        """Take a job from a worker that is dead or hangs."""
        with suppress(UpdateFinishedTrialError):  # it has come to its end just now
            self.study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def open_board(
    folder: Path, config: StudyConfig, storage: str, identity: str, artifacts: str | None = None
) -> Board:
    """The board of a run that this process leads. `artifacts`: where results are."""
    name = f"{folder.resolve().name}/jobs"
    trials = open_database(storage)
    study = optuna.create_study(study_name=name, storage=trials, load_if_exists=True)
    study.set_user_attr(ARTIFACTS, artifacts)
    sign(study, config, identity)
    return Board(study, folder)


def join_board(folder: Path, trials: BaseStorage) -> Board:
    """The board of a run that another process leads.

    Raises:
        KeyError: nobody has opened it yet.
    """
    name = f"{folder.resolve().name}/jobs"
    study = optuna.load_study(study_name=name, storage=trials)
    if IDENTITY not in study.user_attrs:
        raise KeyError(name)
    return Board(study, folder)


def spread(
    board: Board,
    jobs: Mapping[K, Job[T]],
    start: Callable[[], "Future[int]"],
    most: int,
    heard: Callable[[Callable[[], str] | None], None],
) -> Iterator[tuple[K, T]]:
    """Offer jobs, and yield their results as they come, whoever does them.

    `start` lets one of this run's own processes serve, of which there are `most`. `heard` is called
    twice a second with what says what is waited for, or None where there is something new.

    A job of a dead worker is offered again, and one that takes `OVERDUE` times as long as others
    did for as many passes, and more than ten minutes.

    Raises:
        UserError: a job that nobody could do, several times.
    """
    wanted = {board.key(job): job for job in jobs.values()}
    places: dict[str, list[K]] = {}
    for place, job in jobs.items():
        places.setdefault(board.key(job), []).append(place)
    offered: Counter[str] = Counter()
    began: dict[int, float] = {}
    lost: set[int] = set()
    pace = 0.0  # seconds a pass of the slowest that has ended
    serving: set[Future[int]] = set()
    while wanted:
        for future in [future for future in serving if future.done()]:
            serving.discard(future)
            future.result()  # an error of our own process is ours
        board.reap()
        known, now, free = board.look(lost), time.monotonic(), 0
        for key, job in list(wanted.items()):
            trial = known.get(key)
            if trial is None:
                if offered[key] == DEATHS:
                    raise UserError(_undone(board, job, key))
                offered[key] += 1
                board.offer(job)
                free += 1
            elif trial.state == TrialState.WAITING:
                free += 1
            elif trial.state == TrialState.RUNNING:
                limit = max(LEAST, OVERDUE * pace * job.passes) if pace and job.passes else None
                if limit and now - began.setdefault(trial.number, now) > limit:
                    board.give_up(trial)
            elif (content := board.result(trial)) is None:
                lost.add(trial.number)
            else:
                if job.passes:
                    pace = max(pace, trial.user_attrs[RESULT][1] / job.passes)
                del wanted[key]
                heard(None)
                for place in places[key]:
                    yield place, job.unpack(content)
        while len(serving) < min(most, free):
            serving.add(start())
        if not wanted:
            break
        heard(lambda: _awaited(wanted, known))  # noqa: B023
        if serving:
            wait(serving, timeout=POLL, return_when=FIRST_COMPLETED)
        else:
            time.sleep(POLL)


def _awaited(wanted: Mapping[str, Job[Any]], known: Mapping[str, FrozenTrial]) -> str:
    """What is waited for, and who does it."""
    first = []
    for key, job in list(wanted.items())[:SHOWN]:
        trial = known.get(key)
        by = named(trial.user_attrs.get(WORKER, [])) if trial else "a process"
        under_way = trial is not None and trial.state == TrialState.RUNNING
        first.append(f"{job.said} by {by}" if under_way else f"{job.said} by nobody yet")
    more = f" and {len(wanted) - SHOWN} more" if len(wanted) > SHOWN else ""
    return f"{'; '.join(first)}{more}"


def _undone(board: Board, job: Job[Any], key: str) -> str:
    failed = board.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    why = [
        t.user_attrs[ERROR] for t in failed if t.user_attrs[KEY] == key and ERROR in t.user_attrs
    ]
    reason = why[-1] if why else "each worker that had it died or hung"
    return f"{job.said} could not be made in {DEATHS} attempts: {reason}; run again to resume"
