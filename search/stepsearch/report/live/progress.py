"""How far a run is, as a person sees it: lines that stay, and in a terminal what moves below them.

What a run is at is noted with its trials too, so that `stepsearch status` sees it from anywhere.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from optuna import Study
from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from stepsearch.config import StudyConfig
from stepsearch.engine.claim import SETTINGS
from stepsearch.engine.stages.costs import costs
from stepsearch.engine.stages.stage import Stage, note_stage
from stepsearch.engine.stages.tools import Report
from stepsearch.engine.store.locks import this_process
from stepsearch.engine.study import open_study
from stepsearch.report.live.snapshot import SEARCH, snapshot
from stepsearch.report.live.view import view

EVERY = 1.0  # seconds between two looks
NOTED = 2.0  # seconds between two notes of one stage
LEAVE = 2.0  # seconds that a storage which does not answer is waited for at the end


def lines(say: Callable[[str], object]) -> Report:
    """A line when a stage begins, and for each news, with the time since now."""
    started = time.monotonic()
    known: set[str] = set()

    def show(stage: str, done: int, total: int, news: str) -> None:
        name = stage.partition(" (")[0]
        if news or name not in known:
            minutes, seconds = divmod(int(time.monotonic() - started), 60)
            text = f"{stage}: {news}" if news else f"{stage} …"
            say(f"{minutes:3d}:{seconds:02d}  {text}")
        known.add(name)

    return show


@contextmanager
def stages(console: Console) -> Iterator[Report]:
    """Show the stages of a rehearsal: that each has begun, how far it is, and its news."""
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, TaskID] = {}
        say = lines(progress.console.print)

        def show(stage: str, done: int, total: int, news: str) -> None:
            name = stage.partition(" (")[0]
            if name not in tasks:
                tasks[name] = progress.add_task(stage, total=total)
            progress.update(tasks[name], completed=done, total=total, description=stage)
            say(stage, done, total, news)

        yield show


@contextmanager
def followed(
    console: Console, config: StudyConfig, folder: Path, storage: str | None, workers: int
) -> Iterator[Report]:
    """Lines, and in a terminal the live view; each stage is noted with the trials of the run."""
    moving = console.is_terminal and not console.quiet
    live = Live(console=console, auto_refresh=False, transient=True) if moving else None
    follower = _Follower(config, folder, storage, workers, live)
    say = lines(console.print)

    def show(stage: str, done: int, total: int, news: str) -> None:
        follower.hear(stage, done, total)
        say(stage, done, total, news)

    thread = threading.Thread(target=follower.follow, daemon=True)
    with live or nullcontext():
        thread.start()
        try:
            yield show
        finally:
            follower.ended.set()
            thread.join(LEAVE)


class _Follower:
    """In a thread of its own: a storage that is slow or away holds nobody up."""

    def __init__(
        self,
        config: StudyConfig,
        folder: Path,
        storage: str | None,
        workers: int,
        live: Live | None,
    ) -> None:
        self.config, self.folder, self.storage, self.workers = config, folder, storage, workers
        self.live, self.ended = live, threading.Event()
        self._heard = threading.Event()
        self._stage: tuple[str, int, int, float] | None = None  # name, done, total, when it began
        self._noted: tuple[str, int] | None = None
        self._last = 0.0

    def hear(self, name: str, done: int, total: int) -> None:
        """What is reported; the run may only be looked up from the first time on."""
        known = self._stage
        began = known[3] if known and known[0] == name else time.monotonic()
        self._stage = name, done, total, began
        self._heard.set()

    def follow(self) -> None:
        while not self._heard.wait(EVERY):
            if self.ended.is_set():
                return
        study, most = None, costs(self.config)
        while not self.ended.wait(EVERY):
            with suppress(Exception):  # whoever asks for trials says what is wrong with the storage
                study = study or self._opened()
                self._note(study)
                if self.live:
                    data = snapshot(self.folder, self.config, study, most)
                    self.live.update(view(data), refresh=True)

    def _opened(self) -> Study:
        """The run's study, which says of what it is: who looks from elsewhere has no other word."""
        study = open_study(self.folder, self.config, storage=self.storage)
        if SETTINGS not in study.user_attrs:
            study.set_user_attr(SETTINGS, self.config.model_dump(mode="json"))
        return study

    def _note(self, study: Study) -> None:
        assert self._stage is not None
        name, done, total, began = self._stage
        now = time.monotonic()
        if self._noted and self._noted[0] == name:
            plain = name.partition(" (")[0] == SEARCH  # which the trials tell
            if plain or self._noted[1] == done or now - self._last < NOTED:
                return
        stage = Stage(name, done, total, now - began, self.workers, tuple(this_process()))
        note_stage(study, stage)
        self._noted, self._last = (name, done), now
