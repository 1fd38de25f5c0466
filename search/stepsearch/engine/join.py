"""A run whose trials are in a database: who leads it says so there, who joins it waits for that."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import optuna

from stepsampler.errors import UserError
from stepsearch.config import StudyConfig
from stepsearch.engine.claim import PLANNED, adopt
from stepsearch.engine.store import locks
from stepsearch.engine.store.database import open_database
from stepsearch.engine.store.journal import keep_copy
from stepsearch.engine.store.locks import silent, this_process
from stepsearch.engine.study import open_study

LEADER = "leader"  # attribute of a study: who runs it, and a number that grows while they do
LEAVE = 2.0  # seconds that a server is waited for at the end


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


def _lead(study: optuna.Study, ended: threading.Event) -> None:
    count = 0
    while True:
        with suppress(Exception):  # the server is away: whoever asks for trials says so
            study.set_user_attr(LEADER, [*this_process(), count])
        count += 1
        if ended.wait(locks.BEAT):
            return


def join(folder: Path, config: StudyConfig, storage: str, say: Callable[[str], None]) -> None:
    """Wait until the run of that folder's name may be joined, and write its plan into the folder.

    It can as soon as its search has begun. As long as somebody leads the run, that is waited for.

    Raises:
        UserError: nobody leads it, or it is one of other settings.
    """
    trials, name, said = open_database(storage), folder.resolve().name, False
    while True:
        attrs = {}
        with suppress(KeyError):  # nobody has started it yet
            study = optuna.load_study(study_name=name, storage=trials)
            attrs = study.user_attrs
        if PLANNED in attrs:
            return adopt(study, folder, config)
        if silent((LEADER, name), attrs.get(LEADER), locks.SILENCE):
            raise UserError(
                f"nobody has run {name} there for {locks.SILENCE:.0f} seconds; `stepsearch run` "
                "with the same --storage starts it"
            )
        if not said:
            said = True
            say(
                f"waiting for the search of {name} to begin, as long as somebody runs it "
                f"({locks.SILENCE:.0f} seconds to see whether)"
            )
        time.sleep(1.0)
