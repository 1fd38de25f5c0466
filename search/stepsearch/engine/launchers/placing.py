"""What the launchers have in common: the worker that they place, and how they are asked for."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stepsampler.errors import UserError, counted
from stepsearch.config import StudyConfig
from stepsearch.config.code import allow_code, allowed

RESTARTS = 3  # of a worker that ends before its run
LEAVE = 30.0  # seconds in which workers can end by themselves when the run has


@dataclass(frozen=True)
class Place:
    """A worker to be placed: what any machine of the cluster needs to know, but the storage."""

    name: str  # of the run
    config: str  # JSON of the study
    device: str
    code: bool = False  # whether functions that the study names may run (`config.code`)

    def work(self, above: Path, storage: str) -> None:
        """Be that worker, with its folder in `above`."""
        from stepsearch.engine.join import serve  # heavy, and here only where it runs

        config = StudyConfig.model_validate_json(self.config)
        allow_code(self.code)
        serve(above / self.name, config, storage, self.device, _say)


def _say(news: str) -> None:
    print(news, file=sys.stderr, flush=True)  # noqa: T201


class Placed(Protocol):
    """Workers that a launcher has placed."""

    def check(self) -> None:
        """Raise UserError if none is left; restart those that have ended too early."""
        ...

    def leave(self, seconds: float) -> None:
        """Let them end by themselves for so long, and end them."""
        ...


@dataclass(frozen=True)
class Launch:
    """What `run` is asked to place: so many workers on a device each."""

    launcher: str
    count: int
    device: str
    options: Mapping[str, str]

    @property
    def said(self) -> str:
        where = {"ray": "Ray", "slurm": "SLURM"}[self.launcher]
        return f"{counted(self.count, 'worker')} on {self.device} through {where}"


@contextmanager
def launched(launch: Launch, folder: Path, config: StudyConfig, storage: str) -> Iterator[Placed]:
    """Place workers of the run in a folder, and let none of them outlive it.

    Raises:
        UserError: the launcher is not installed, or refuses what it is asked for.
    """
    place = Place(folder.resolve().name, config.model_dump_json(), launch.device, allowed())
    try:
        start = _launcher(launch.launcher)
    except ImportError as error:
        raise UserError(
            f"--launcher {launch.launcher} needs {error.name}: "
            f"pip install 'stepsearch[{launch.launcher}]'"
        ) from error
    placed, seconds = start(place, folder, storage, launch.count, launch.options), 0.0
    try:
        yield placed
        seconds = LEAVE
    finally:
        placed.leave(seconds)


def _launcher(name: str) -> Callable[..., Placed]:
    if name == "ray":
        from stepsearch.engine.launchers.on_ray import OnRay

        return OnRay
    from stepsearch.engine.launchers.on_slurm import OnSlurm

    return OnSlurm


def check_launch(options: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE of the command line.

    Raises:
        UserError: one without a key or a value.
    """
    found = {}
    for option in options:
        key, sign, value = option.partition("=")
        if not (key and sign and value):
            raise UserError(f"--launch must be KEY=VALUE, got {option!r}")
        found[key] = value
    return found


def number(value: str) -> int | float | str:
    """As a number where it is one."""
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
