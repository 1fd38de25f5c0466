"""The file in which Optuna keeps a study: read, written under our lock, mended after a kill."""

import json
import os
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from stepsampler.errors import UserError
from stepsearch.engine.store.locks import FolderLock
from stepsearch.paths import naming, write_whole

JOURNAL = "journal.log"
# Optuna raises all of these for a line that is no record, or one of something else
DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    RecursionError,  # nested too deep
)


class JournalLock(FolderLock):
    """The lock under which the journal is written, in the place of Optuna's own.

    Optuna's link points at the journal by the path as given: that of a relative one points nowhere,
    and is never taken over. Nor does it know its holder, so that a kill costs half a minute.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, f"{JOURNAL}.lock", "the journal")

    def acquire(self) -> bool:
        """Wait for the lock, and cut off a last line that a kill or a full disk left unfinished.

        Optuna overlooks such a line only until the next one is appended to it, and then reads no
        further.

        Raises:
            UserError: the last whole line is no record, which would show when the next one is read.
        """
        super().acquire()
        try:
            _mend(self.folder / JOURNAL)
        except BaseException:
            self.release()
            raise
        return True


def mend(folder: Path) -> None:
    """Cut off of a run's journal what a kill left, before anything is done for it.

    Raises:
        UserError: its last whole line is no record.
    """
    lock = JournalLock(folder)
    lock.acquire()
    lock.release()


def _mend(path: Path) -> None:
    with path.open("rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        text = b""
        while end and text.count(b"\n") < 2:  # the last whole line, and what is behind it
            start = max(0, end - 65536)
            file.seek(start)
            text, end = file.read(end - start) + text, start
        lines, _, unfinished = text.rpartition(b"\n")
        if lines and not _is_record(lines.rpartition(b"\n")[2]):
            raise UserError(
                f"{path}: the last line is damaged; the run can go on from the lines before it if "
                "you remove it"
            )
        if unfinished:
            file.truncate(size - len(unfinished))


def _is_record(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


class Journal(JournalFileBackend):
    """Optuna's, whose errors name the file."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with naming(Path(self._file_path)):
            super().append_logs(logs)


def keep_copy(study: optuna.Study, folder: Path) -> None:
    """Write all trials of a study of another storage into the journal of a folder."""

    def write(path: Path) -> None:
        optuna.copy_study(
            from_study_name=study.study_name,
            from_storage=study._storage,
            to_storage=JournalStorage(JournalFileBackend(str(path))),
        )

    write_whole(folder / JOURNAL, write)


def open_storage(folder: Path) -> JournalStorage:
    """The journal of a folder; reading it needs no lock, and no right to write where it exists.

    Raises:
        UserError: names a line that is no record.
    """
    path = folder.resolve() / JOURNAL  # whoever changes the working directory still finds it
    try:
        lock: Any = JournalLock(folder)  # Optuna's base class is private
        return JournalStorage(Journal(str(path), lock_obj=lock))
    except DAMAGED as error:
        lines = path.read_bytes().splitlines()
        good, bad = 0, len(lines)  # lines that Optuna reads without an error, and with
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if _can_be_read(lines[:middle]) else (good, middle)
        raise UserError(
            f"{path}: line {bad} is damaged; the run can go on from the lines "
            "before it if you remove it and those after it"
        ) from error


def _can_be_read(lines: list[bytes]) -> bool:
    class Lines(BaseJournalBackend):
        def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
            return [json.loads(line) for line in lines[log_number_from:]]

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            raise NotImplementedError

    try:
        JournalStorage(Lines())
    except DAMAGED:
        return False
    return True
