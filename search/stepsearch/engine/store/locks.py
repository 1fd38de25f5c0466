"""Who is at work in a run's folder, and who may write: over processes, containers and hosts.

Clocks are never compared, nor are process numbers, which mean nothing in another container. Two
things tell that a process is alive. The kernel's lock on its pulse file (`flock`) ends with the
process, however that dies, and every process of the same kernel sees it. For other machines, whose
locks a file system may or may not show, the process counts in that file every `BEAT` seconds: who
does not see the number change for `SILENCE` seconds of their own clock takes it for dead.
"""

import errno
import fcntl
import hashlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

from stepsampler.errors import UserError
from stepsearch.paths import check_inside

ALIVE = "alive"  # the folder of the pulses, in that of the run
BEAT = 5.0  # seconds
SILENCE = 60.0  # twelve beats; file systems of clusters show a change after seconds
NAMELESS = 10.0  # of a lock that names no holder; Optuna writes for milliseconds
PATIENCE = 600.0  # for a lock whose holder is alive
NEWS = 10.0  # after so many seconds a wait is said
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@cache
def machine() -> str:
    """Digest of this boot of this kernel, the same in all its containers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:  # not Linux
        boot = socket.gethostname()
    return hashlib.sha256(boot.encode()).hexdigest()[:8]


@cache
def _token(pid: int) -> str:
    return secrets.token_hex(4)


def this_process() -> list[str]:
    """Host, process number, machine and a random word: no other process ever has the same."""
    pid = os.getpid()
    return [socket.gethostname().replace("/", "-"), str(pid), machine(), _token(pid)]


def named(signature: list[str]) -> str:
    """A signature as a sentence names it."""
    return f"process {signature[1].split()[0]} on {signature[0]}" if signature[1:] else "a process"


def pulse_file(folder: Path, signature: list[str]) -> Path:
    return folder / ALIVE / ".".join(signature)


_beating: dict[Path, IO[bytes]] = {}


@contextmanager
def pulse(folder: Path) -> Iterator[None]:
    """Show that this process is alive, as long as this lasts."""
    path = pulse_file(folder.resolve(), this_process())
    if path in _beating:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _clean(path.parent)
    hidden = path.with_name(f".{path.name}")
    with hidden.open("wb", buffering=0) as file:
        if not _flock(file, fcntl.LOCK_EX):
            _say(
                f"{folder}: this file system has no locks (flock): what a dead process leaves "
                f"behind is taken over after {SILENCE:.0f} seconds, not at once"
            )
        file.write(b"0")
        os.replace(hidden, path)  # nobody ever sees it without its lock
        _beating[path] = file
        ended = threading.Event()
        thread = threading.Thread(target=_beat, args=(file, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            _beating.pop(path, None)
            path.unlink(missing_ok=True)


def _beat(file: IO[bytes], ended: threading.Event) -> None:
    count = 0
    while not ended.wait(BEAT):
        count += 1
        with suppress(OSError):  # of a full disk: others will take this process for dead
            os.pwrite(file.fileno(), str(count).encode(), 0)


def _clean(folder: Path) -> None:
    """Remove the pulses of the dead of this machine."""
    for path in folder.glob(f"*.{machine()}.*"):
        if not path.name.startswith(".") and _locked(path) is False:
            path.unlink(missing_ok=True)


def _flock(file: IO[bytes], how: int) -> bool | None:
    """Whether this file has the kernel's lock now; None where there are no such locks."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return None
        raise
    return True


def _locked(path: Path) -> bool | None:
    """Whether a process of this machine holds the kernel's lock on a file."""
    try:
        with path.open("rb") as file:
            free = _flock(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    return None if free is None else not free


_seen: dict[object, tuple[object, float]] = {}


def silent(key: object, state: object, seconds: float) -> bool:
    """Whether `state` has not changed for so long, by this process's own clock."""
    now = time.monotonic()
    before, since = _seen.get(key, (None, now))
    if key not in _seen or before != state:
        _seen[key] = (state, now)
        return False
    return now - since > seconds


def is_dead(folder: Path, signature: list[str]) -> bool:
    """Whether a process with a pulse in the folder has ended; ask again where it has not.

    Of a process of this machine that is known at once, of another one after `SILENCE` seconds.
    """
    path = pulse_file(folder.resolve(), signature)
    if path in _beating:
        return False
    if signature[2:3] == [machine()]:
        held = _locked(path)
        if held is not None:
            return not held
    return silent(path, _beats(path), SILENCE)


def _beats(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


class FolderLock:
    """Mutual exclusion of all that write to a folder.

    Two locks in one. The kernel's ends with its holder. The link beside it names the holder, and
    keeps out other machines where the kernel's lock does not reach them. A link of this machine
    that is still there when the kernel's lock is free was left behind, and is removed: by one
    process only, the one with the kernel's lock. One of another machine is removed when its holder
    has been silent.
    """

    def __init__(self, folder: Path, link: str, what: str) -> None:
        self.folder = folder.resolve()
        self.link = self.folder / link
        self.what = what
        self._guard = self.folder / ALIVE / f"{self.link.name}.flock"
        self._file: IO[bytes] | None = None

    def acquire(self) -> bool:
        """Wait for the lock, at most `PATIENCE` seconds.

        Raises:
            UserError: names who holds it.
        """
        began, pause, said = time.monotonic(), 0.001, False
        while not self.attempt():
            waited = time.monotonic() - began
            if waited > PATIENCE:
                raise UserError(
                    f"{self.folder}: {self.holder()} has kept {self.what} locked for "
                    f"{PATIENCE / 60:.0f} minutes; end it and start again"
                )
            if waited > NEWS and not said:
                said = True
                _say(
                    f"{self.folder}: waiting for {self.holder()}, which has locked {self.what}, "
                    f"for {PATIENCE / 60:.0f} minutes at most"
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.25)
        return True

    def attempt(self) -> bool:
        """Take the lock if it is free."""
        self._guard.parent.mkdir(parents=True, exist_ok=True)
        file, taken = self._guard.open("ab"), False
        try:
            alone = _flock(file, fcntl.LOCK_EX)
            taken = alone is not False and (self._tie() or (self._cut(alone) and self._tie()))
        finally:
            if taken:
                self._file = file
                _seen.pop(self.link, None)  # what is seen there later begins anew
            else:
                file.close()
        return taken

    def release(self) -> None:
        if self.target() == self._mine():  # not if it was taken for dead
            self.link.unlink(missing_ok=True)
        if self._file is not None:
            self._file.close()
            self._file = None

    def held_here(self) -> bool:
        """Whether a living process of this machine has it."""
        return bool(_locked(self._guard))

    def state(self) -> object:
        """What changes while a holder lives: the link, and what its pulse counts."""
        target = self.target()
        return target, _beats(self.folder / target) if target else None

    def holder(self) -> str:
        """Who holds it, for a sentence."""
        target = self.target() or ""
        return named(_signature(target)) if target.startswith(f"{ALIVE}/") else "a process"

    def _mine(self) -> str:
        return f"{ALIVE}/{'.'.join(this_process())}"

    def _tie(self) -> bool:
        try:
            os.symlink(self._mine(), self.link)
        except FileExistsError:
            return False
        return True

    def target(self) -> str | None:
        """Where the link points, or None."""
        try:
            return os.readlink(self.link)
        except FileNotFoundError:
            return None
        except OSError:  # no link: a lock of Optuna's other kind
            return ""

    def _cut(self, alone: bool | None) -> bool:
        """Remove the link of a holder that has ended."""
        target = self.target()
        if target is None:
            return True
        ours = target.startswith(f"{ALIVE}/")
        left = bool(alone) and ours and _signature(target)[2:3] == [machine()]
        if not left and not silent(self.link, self.state(), SILENCE if ours else NAMELESS):
            return False
        aside = self.link.with_name(f".{self.link.name}.{secrets.token_hex(4)}")
        try:
            os.rename(self.link, aside)
        except FileNotFoundError:
            return True
        if aside.is_symlink() and os.readlink(aside) != target:
            # Of another machine, which was faster: it goes back to where it was.
            with suppress(FileExistsError):
                os.symlink(os.readlink(aside), self.link)
        aside.unlink()
        return True


def _signature(target: str) -> list[str]:
    return target.removeprefix(f"{ALIVE}/").rsplit(".", 3)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock under which trials are counted and asked for."""
    lock = FolderLock(folder, f"{ALIVE}/ask", "its list of trials")
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Be the only `run` of a folder; it shows a pulse meanwhile.

    What another machine left behind is watched for `SILENCE` seconds first.

    Raises:
        UserError: another one is under way, or a link leads out of the folder.
    """
    check_inside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder, f"{ALIVE}/run", "the run")
    with pulse(folder):
        said, first = False, lock.state()
        while not lock.attempt():
            if lock.held_here() or lock.state() != first:
                raise UserError(
                    f"{folder}: {lock.holder()} runs this study now; "
                    f"stepsearch worker {folder} joins it with one more process"
                )
            if not said:
                said = True
                _say(
                    f"{folder}: {lock.holder()} was running this study; looking for "
                    f"{SILENCE:.0f} seconds whether it still is"
                )
            time.sleep(0.5)
        try:
            yield
        finally:
            lock.release()


def runs_now(folder: Path) -> bool | None:
    """Whether a `run` of a folder is under way; None where another machine began it."""
    lock = FolderLock(folder, f"{ALIVE}/run", "the run")
    target = lock.target()
    if target is None:
        return False
    return lock.held_here() if _signature(target)[2:3] == [machine()] else None


def _say(news: str) -> None:
    print(news, file=sys.stderr, flush=True)  # noqa: T201
