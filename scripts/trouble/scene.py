"""The processes of one round, and what is done to them."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from trouble import stub

HANG = 900.0  # seconds, after which a wait of this script is a fault of the package
DISK = 64  # MB of the disk that is filled
HOSTS = 4  # machines on which a run is resumed
ACCEPTED = {0, 2, 130, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}


class Fault(Exception):  # noqa: N818  # no error of this script
    """Something that must hold does not."""


@dataclass
class Scene:
    """A run, the workers that have joined it, and where they write.

    `storage` is a database's address, `tracking` what `run` is told; `stop` and `start` are of the
    database's server.
    """

    folder: Path
    name: str
    rng: random.Random
    storage: str | None = None
    tracking: str = "none"
    nature: stub.Nature = field(default_factory=stub.Nature)
    run: int | None = None
    joined: list[int] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    frozen: set[int] = field(default_factory=set)
    told: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    count: int = 0

    def __post_init__(self) -> None:
        (self.folder / "logs").mkdir(parents=True)
        (self.folder / "disk").mkdir()
        self.study = self.folder / f"{self.name}.toml"
        self.study.write_text(stub.STUDY)

    @property
    def place(self) -> Path:
        """The folder of the run."""
        return self.folder / "disk" / self.name

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    def tell(self, text: str) -> None:
        self.told.append(f"{time.monotonic() - self.began:6.1f} s  {text}")

    def measured(self) -> int:
        """Files of the caches of all processes: how far the run is."""
        return sum(1 for _ in self.folder.glob("*/*/cache/*.safetensors")) + sum(
            1 for _ in self.folder.glob("*/*/*/cache/*.safetensors")
        )

    def begin(self, host: str | None = None, kind: str = "run") -> int:
        """Start `run`, a worker that joins it, or `sync`; on another machine if it has a name."""
        self.count += 1
        words = [kind, str(self.study), "--run", str(self.place)]
        if kind == "sync":
            words = [kind, str(self.place), "--tracking", self.tracking]
        if kind == "run":
            words += ["--workers", "2", "--tracking", self.tracking]
        elif kind == "worker" and self.storage:
            words[-1] = str(self.disk / f"far-{self.count}" / self.name)
        if self.storage:
            words += ["--storage", self.storage]

        def do() -> None:
            stub.nature = self.nature
            if host:
                stub.elsewhere(host)
            stub.command(*words)

        number = stub.forked(self.folder / "logs" / f"{self.count:02d}-{kind}.log", do)
        self.tell(f"{kind} {number}" + (f" on {host}" if host else ""))
        if kind == "worker":
            self.joined.append(number)
        else:
            self.run = number
        return number

    def pool(self) -> list[int]:
        """The processes of the run itself."""
        found = [n for n in children(self.run) if n] if self.run else []
        self.seen |= set(found)
        return found

    def look(self) -> None:
        """Who has ended, and how.

        Raises:
            Fault: in a way that no user should see.
        """
        for number in [*([self.run] if self.run else []), *self.joined]:
            done, status = os.waitpid(number, os.WNOHANG)
            if not done:
                continue
            code = os.waitstatus_to_exitcode(status)
            self.tell(f"{number} ended with {code}")
            if number == self.run:
                self.run, self.code = None, code
            else:
                self.joined.remove(number)
            if code not in ACCEPTED:
                raise Fault(f"process {number} ended with {code}")

    def wait(self, done: Callable[[], bool], what: str, seconds: float = HANG) -> bool:
        """Wait for something while the run goes on; False if that has ended before.

        Raises:
            Fault: it did not come.
        """
        until = time.monotonic() + seconds
        while True:
            self.look()
            self.pool()
            if done():
                return True
            if self.run is None:
                return False
            if time.monotonic() > until:
                raise Fault(f"waited {seconds:.0f} s for {what}")
            time.sleep(0.02)

    def kill(self, number: int | None, how: signal.Signals = signal.SIGKILL) -> None:
        if number:
            self.tell(f"{how.name} to {number}")
            with suppress(ProcessLookupError):
                os.kill(number, how)

    def thaw(self) -> None:
        for number in self.frozen:
            self.kill(number, signal.SIGCONT)
        self.frozen.clear()

    def end(self) -> None:
        """Kill whatever is left."""
        for number in {self.run or 0, *self.joined, *self.seen} - {0}:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        for number in [*([self.run] if self.run else []), *self.joined]:
            with suppress(ChildProcessError):
                os.waitpid(number, 0)
        self.run, self.joined = None, []

    def left(self) -> set[int]:
        """Processes of the run that outlive it."""
        return {number for number in self.seen if _state(number) not in ("", "Z")}


def children(number: int) -> list[int]:
    try:
        return [
            int(word)
            for task in Path(f"/proc/{number}/task").iterdir()
            for word in (task / "children").read_text().split()
        ]
    except OSError:
        return []


def descendants(number: int) -> list[int]:
    """With the process itself."""
    return [number, *(n for child in children(number) for n in descendants(child))]


def _state(number: int) -> str:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@contextmanager
def small_disk(place: Path) -> Iterator[bool]:
    """A disk of `DISK` MB at a folder; False where this user may mount none."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def kept(place: Path, copy: Path, small: bool) -> Iterator[None]:
    """Copy what is on a small disk before it goes, where something did not hold."""
    try:
        yield
    except BaseException:
        if small:
            shutil.copytree(place, copy, symlinks=True)
        raise


@contextmanager
def filled(place: Path, left: int) -> Iterator[None]:
    """Only so many bytes are left on that disk meanwhile."""
    ballast = place / ".ballast"
    with ballast.open("wb", buffering=0) as file:
        with suppress(OSError):
            while True:
                file.write(bytes(65536))
        file.truncate(max(0, file.tell() - left))
    try:
        yield
    finally:
        ballast.unlink()
