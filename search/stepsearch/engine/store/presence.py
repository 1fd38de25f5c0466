"""Who works on which trial, and whether they still do: in a folder, or through a database."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.trial import FrozenTrial

from stepsearch.engine.store import locks
from stepsearch.engine.store.database import Shared
from stepsearch.engine.store.locks import is_dead, locked, pulse, silent, this_process

WORKER, BEATS = "worker", "beats"  # attributes of a trial


class Marked(Protocol):
    """A trial that can be written on."""

    def set_user_attr(self, key: str, value: Any) -> None: ...


class Presence(Protocol):
    """How the workers of a study know of each other."""

    def working(self) -> AbstractContextManager[None]:
        """Show that this process is alive."""
        ...

    def asking(self) -> AbstractContextManager[None]:
        """Count trials and ask for one."""
        ...

    def sign(self, trial: Marked) -> None:
        """Say that it is this process's, until it signs the next one."""
        ...

    def lost(self, trial: FrozenTrial, asking: bool) -> bool:
        """Whether the worker of a running trial is dead; ask again where it is not.

        `asking`: somebody may be between asking for this trial and signing it.
        """
        ...


def presence_of(study: optuna.Study, folder: Path) -> Presence:
    """What fits where the trials of a study are kept."""
    if isinstance(study._storage, Shared):
        return _InDatabase(study, folder)
    return _InFolder(folder)


class _InFolder:
    """The kernel's locks in the run's folder: a death on this machine is known at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def working(self) -> AbstractContextManager[None]:
        return pulse(self.folder)

    def asking(self) -> AbstractContextManager[None]:
        return locked(self.folder)

    def sign(self, trial: Marked) -> None:
        trial.set_user_attr(WORKER, this_process())

    def lost(self, trial: FrozenTrial, asking: bool) -> bool:
        if WORKER not in trial.user_attrs:
            return not asking
        return is_dead(self.folder, trial.user_attrs[WORKER])


class _InDatabase:
    """A trial is its worker's as long as the worker counts in it, every `BEAT` seconds.

    Nobody needs to see anybody's folder, clock or processes, so a death is known after `SILENCE`
    seconds. There is no lock to ask under: who has asked too much gives back (`surplus`).
    """

    def __init__(self, study: optuna.Study, folder: Path) -> None:
        self.study, self.folder = study, folder
        self._trial: Marked | None = None
        self._guard = threading.Lock()

    @contextmanager
    def working(self) -> Iterator[None]:
        ended = threading.Event()
        thread = threading.Thread(target=self._beat, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _beat(self, ended: threading.Event) -> None:
        count = 0
        while not ended.wait(locks.BEAT):
            count += 1
            with self._guard:
                trial = self._trial
            if trial is None:
                continue
            try:
                trial.set_user_attr(BEATS, count)
            except Exception:  # it has ended, or the server stays away: the worker will hear of it
                with self._guard:
                    self._trial = self._trial if self._trial is not trial else None

    def asking(self) -> AbstractContextManager[None]:
        return nullcontext()

    def sign(self, trial: Marked) -> None:
        trial.set_user_attr(WORKER, this_process())
        with self._guard:
            self._trial = trial

    def lost(self, trial: FrozenTrial, asking: bool) -> bool:
        state = (trial.user_attrs.get(WORKER), trial.user_attrs.get(BEATS))
        return silent((self.study.study_name, trial.number), state, locks.SILENCE)
