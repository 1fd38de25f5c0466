"""How far a run is, as a person sees it: bars in a terminal, and lines that stay."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from stepsearch.engine.stages.tools import Report


@contextmanager
def stages(console: Console) -> Iterator[Report]:
    """Show the stages of a run: that each has begun, how far it is, and its news."""
    started = time.monotonic()
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int, news: str) -> None:
            name = stage.partition(" (")[0]
            begins = name not in tasks
            if begins:
                tasks[name] = progress.add_task(stage, total=total)
            progress.update(tasks[name], completed=done, total=total, description=stage)
            if news or begins:
                minutes, seconds = divmod(int(time.monotonic() - started), 60)
                text = f"{stage}: {news}" if news else f"{stage} …"
                progress.console.print(f"{minutes:3d}:{seconds:02d}  {text}")

        yield show
