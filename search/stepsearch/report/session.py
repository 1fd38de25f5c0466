"""A run as a person sees it: progress, news, the table at the end, and where everything lies."""

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from stepsearch.config import StudyConfig
from stepsearch.engine.run import run_study
from stepsearch.engine.tracking import MlflowTracking, NoTracking, Tracker
from stepsearch.engine.workers import Workers
from stepsearch.report.summary import table, verdict, write, write_sheet


def run_session(
    config: StudyConfig, folder: Path, devices: list[str], tracking: str, quick: bool
) -> None:
    """Run a study with live progress and print its result."""
    width = None if sys.stdout.isatty() else 110  # of a log file
    console = Console(highlight=False, soft_wrap=True, width=width)
    started = time.monotonic()
    console.print(
        f"study {config.name}: {config.space.passes} passes per image, "
        f"{config.search.trials} trials by {config.search.algorithm}, "
        f"{len(devices)} workers on {', '.join(sorted(set(devices)))}"
    )
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
            if name not in tasks:
                tasks[name] = progress.add_task(stage, total=total)
            progress.update(tasks[name], completed=done, total=total, description=stage)
            if news:
                minutes, seconds = divmod(int(time.monotonic() - started), 60)
                progress.console.print(f"{minutes:3d}:{seconds:02d}  {stage}: {news}")

        tracker: Tracker = NoTracking()
        if tracking != "none":
            uri = None if tracking == "local" else tracking
            tracker = MlflowTracking(uri, lambda text: progress.console.print(text))
        with Workers(config, folder, devices) as workers:
            result = run_study(config, folder, workers, tracker, show)
            files = write(result, config, folder)
            show("pictures", 0, 1, "")
            write_sheet(result, workers, folder / "grid.png")
            show("pictures", 1, 1, "")
        best = result.test[0]
        tracker.finish(
            {
                "test_fd": best.score.value,
                "test_fd_se": best.score.se,
                "test_alignment": best.measurement.alignment,
            },
            [*files, folder / "grid.png"],
        )
    console.print(table(result, config))
    console.print(
        "Too few images to claim anything (--quick)." if quick else verdict(result, config)
    )
    parts = ", ".join(f"{stage} {passes:,}" for stage, passes in result.passes.items() if passes)
    pruned = f" ({result.pruned} pruned)" if result.pruned else ""
    console.print(
        f"{(time.monotonic() - started) / 60:.1f} minutes, {result.trials} trials{pruned}, "
        f"{result.search_passes:,} passes before the test ({parts})"
    )
    for name, what in (
        ("best.json", "the schedule"),
        ("grid.png", "the same seeds under each schedule"),
        ("result.json", "every number"),
        ("journal.log", "the Optuna study"),
    ):
        console.print(f"  {folder / name}  {what}")
