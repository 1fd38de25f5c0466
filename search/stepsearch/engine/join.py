"""A run whose trials are in a database: who leads it says so there, who joins it works for it.

A worker from elsewhere does the jobs of every stage and takes part in the search, until the run
ends. The run that leads may die meanwhile: its workers go on with what is there to do, and wait for
another one to lead.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage

from stepsampler.errors import UserError
from stepsearch.config import StudyConfig
from stepsearch.engine.claim import PLANNED, SETTINGS, adopt_plan, adopt_settings
from stepsearch.engine.jobs.board import join_board
from stepsearch.engine.store import locks
from stepsearch.engine.store.database import open_database
from stepsearch.engine.store.journal import keep_copy
from stepsearch.engine.store.locks import silent, this_process
from stepsearch.engine.study import open_study, spent, work
from stepsearch.metrics.evaluator import Evaluator

LEADER = "leader"  # attribute of a study: who runs it, and a number that grows while they do
LEAVE = 2.0  # seconds that a server is waited for at the end
ENDED = "ended"  # in its place when the run has come to its end
ORPHANED = 600.0  # seconds in which a worker waits for another run to lead
NAMED = 5  # runs of a database that a sentence names
LOOK = 1.0  # seconds between two looks at whether there is something to do


@contextmanager
def leading(folder: Path, config: StudyConfig, storage: str) -> Iterator[None]:
    """Show those who wait to join that the run is under way; keep a copy of its trials at the end.

    The copy is the journal in the run's folder, which all other commands read.
    """
    study = open_study(folder, config, storage=storage)
    ended = threading.Event()
    thread = threading.Thread(target=_lead, args=(study, ended), daemon=True)
    thread.start()
    try:
        yield
        keep_copy(study, folder)
    finally:
        ended.set()
        thread.join(LEAVE)  # not for as long as a server may stay away
    study.set_user_attr(LEADER, ENDED)


def announce(folder: Path, config: StudyConfig, storage: str) -> None:
    """Say that somebody leads the run again, before workers are placed that would see that it had
    ended."""
    study = open_study(folder, config, storage=storage)
    study.set_user_attr(LEADER, [*this_process(), 0])


def _lead(study: optuna.Study, ended: threading.Event) -> None:
    count = 0
    while True:
        with suppress(Exception):  # the server is away: whoever asks for trials says so
            study.set_user_attr(LEADER, [*this_process(), count])
        count += 1
        if ended.wait(locks.BEAT):
            return


def join(
    folder: Path, config: StudyConfig, storage: str, say: Callable[[str], None]
) -> StudyConfig | None:
    """Wait until a run of that folder's name may be joined, and write its settings into the folder.

    It can as soon as its model is loaded. As long as somebody leads the run, that is waited for.
    Returns the run's settings, which may have another budget, or None where it has ended.

    Raises:
        UserError: nobody leads it, or it is one of other settings.
    """
    trials, name, said = open_database(storage), folder.resolve().name, False
    while True:
        leader = None
        with suppress(KeyError):  # nobody has started it yet
            leader = optuna.load_study(study_name=name, storage=trials).user_attrs.get(LEADER)
            # whose it is shows once the model is loaded
            board = join_board(folder, trials)
            now = adopt_settings(board.study, folder, config)
            return None if leader == ENDED else now
        if silent((LEADER, name), leader, locks.SILENCE):
            raise UserError(
                f"nobody has run {name} there for {locks.SILENCE:.0f} seconds; `stepsearch run` "
                f"with the same --storage starts it{_others(trials)}"
            )
        if not said:
            said = True
            say(
                f"waiting for the run {name} to load its model, as long as somebody runs it "
                f"({locks.SILENCE:.0f} seconds to see whether)"
            )
        time.sleep(LOOK)


def _others(trials: BaseStorage) -> str:
    """The runs that a database has, for a sentence; their names say how they were started."""
    names = [name for name in optuna.get_all_study_names(trials) if "/" not in name]
    more = " …" if len(names) > NAMED else ""
    return f"; the runs there are {', '.join(names[-NAMED:])}{more}" if names else ""


def take_part(
    folder: Path,
    config: StudyConfig,
    storage: str,
    evaluator: Evaluator,
    say: Callable[[str], None],
) -> tuple[int, int, bool]:
    """Work for a run until it ends; returns the numbers of jobs and of trials done here.

    It also ends where nobody leads the run for ten minutes and there is nothing to do, and where
    another one that leads it has changed settings that may change. Then the third value is true:
    join again.

    Raises:
        UserError: the run is of another model, reference or prompts; or a job cannot be done here.
    """
    database = open_database(storage)
    board = join_board(folder, database)
    if board.identity != evaluator.identity:
        raise UserError(
            f"{folder}: the run is of another model, reference or prompts than are here: "
            f"{board.identity!r}, not {evaluator.identity!r}"
        )
    study = optuna.load_study(study_name=folder.resolve().name, storage=database)
    number = int(this_process()[3], 16)  # no worker of another machine has the same
    settings, jobs, trials, said = board.study.user_attrs[SETTINGS], 0, 0, False
    with board.present.working():
        while True:
            if board.study.user_attrs[SETTINGS] != settings:
                return jobs, trials, True
            jobs += board.serve(evaluator)
            attrs = study.user_attrs
            if PLANNED in attrs and not spent(study, config.search):
                adopt_plan(study, folder)
                trials += work(folder, config, evaluator, number, storage)
            if attrs.get(LEADER) == ENDED or _orphaned(folder, attrs):
                return jobs, trials, False
            if not said and silent((LEADER, str(folder)), attrs.get(LEADER), locks.SILENCE):
                said = True
                say(
                    f"nobody leads the run {folder.resolve().name} any more: `stepsearch run` with "
                    f"the same --storage goes on; waiting {ORPHANED / 60:.0f} minutes for that"
                )
            time.sleep(LOOK)


def _orphaned(folder: Path, attrs: dict[str, Any]) -> bool:
    return silent((ENDED, str(folder)), attrs.get(LEADER), ORPHANED)


def serve(
    folder: Path,
    config: StudyConfig,
    storage: str,
    device: str,
    say: Callable[[str], None],
) -> tuple[int, int]:
    """One worker from elsewhere, from the first word to the last: `stepsearch worker --storage`.

    Returns the numbers of jobs and of trials done here.
    """
    jobs = trials = 0
    while (now := join(folder, config, storage, say)) is not None:
        config = now
        evaluator = Evaluator(config, folder / "cache", device)
        for note in evaluator.notes:
            say(note)
        *done, again = take_part(folder, config, storage, evaluator, say)
        jobs, trials = jobs + done[0], trials + done[1]
        if not again:
            return jobs, trials
    say(f"the run {folder.resolve().name} has ended")
    return jobs, trials
