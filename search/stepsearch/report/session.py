"""A run as a person sees it: progress, news, the table at the end, and where everything lies."""

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from stepsampler.errors import counted
from stepsearch.config import StudyConfig
from stepsearch.engine.claim import has_ended
from stepsearch.engine.join import announce, leading
from stepsearch.engine.launchers.placing import Launch, Placed, launched
from stepsearch.engine.run import run_study
from stepsearch.engine.store.dashboard import attach
from stepsearch.engine.study import read_study
from stepsearch.engine.tracking import MlflowTracking, NoTracking, Tracker
from stepsearch.engine.workers import InThisProcess, Workers
from stepsearch.report.live.progress import followed
from stepsearch.report.page import PAGE, write_page
from stepsearch.report.pictures import read_index, write_pictures
from stepsearch.report.plain import of_source, print_json
from stepsearch.report.sources import of_run
from stepsearch.report.summary import as_data as plain_result
from stepsearch.report.summary import table, unseen_table, verdict, write

Show = Literal["all", "result", "json", "only json", "nothing"]


def run_session(
    config: StudyConfig,
    folder: Path,
    devices: list[str],
    tracking: str,
    quick: bool,
    storage: str | None = None,
    show: Show = "all",
    at_home: bool = False,
    artifacts: str | None = None,
    launch: Launch | None = None,
) -> None:
    """Run a study with live progress and print its result.

    `show` may leave out all but the last line, or that too, or print the data of the run's page in
    place of it all, while progress goes to stderr, or nowhere. `at_home` lets a single device work
    in this process, where the trials are in the run's folder.
    """
    config = config.naming_own(folder)
    as_data, quiet = show in ("json", "only json"), show in ("result", "only json", "nothing")
    width = None if sys.stdout.isatty() or as_data else 110  # of a log file
    # names of files and studies are as they are: no markup
    plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
    console = Console(soft_wrap=True, width=width, stderr=as_data, quiet=quiet, **plain)
    started = time.monotonic()
    places = f"{counted(len(devices), 'worker')} on {', '.join(sorted(set(devices)))}"
    console.print(
        f"study {config.name}: {counted(config.space.passes, 'pass')} per image, "
        f"{counted(config.search.trials, 'trial')} by {config.search.algorithm}, "
        f"{places if launch is None else launch.said}"
    )
    if has_ended(folder, config):
        console.print(
            f"{folder}: this run is finished, and nothing is measured twice; its schedule is in "
            f"{folder / 'best.json'}, the table follows"
        )
    with followed(console, config, folder, storage, len(devices)) as report:
        tracker: Tracker = NoTracking()
        if tracking != "none":
            uri = None if tracking == "local" else tracking
            tracker = MlflowTracking(uri, console.print)
        led = nullcontext() if storage is None else leading(folder, config, storage)
        placing: AbstractContextManager[Placed | None] = nullcontext()
        if launch is not None and storage is not None:
            announce(folder, config, storage)
            placing = launched(launch, folder, config, storage)
        home = at_home and len(devices) == 1 and storage is None
        with (
            placing as placed,
            led,
            InThisProcess(config, folder, devices[0])
            if home
            else Workers(
                config,
                folder,
                devices,
                console.print,
                storage,
                artifacts,
                placed,
                launch.count if placed and launch else None,
            ) as workers,
        ):
            result = run_study(config, folder, workers, tracker, report, storage=storage)
            write(result, config, folder)
            report("pictures", 0, 1, "")
            write_pictures(result, config, workers, folder)
            if storage is None:
                attach(read_study(folder, config), folder / "grid.png", folder, "grid")
            report("pictures", 1, 1, "")
        write_page(of_run(folder), folder / PAGE)
        tracker.finish(plain_result(result, config), read_index(folder))
    if as_data:
        print_json(of_source(of_run(folder)))
        return
    if show == "result":
        sys.stdout.write(f"{folder / 'best.json'}\n")
    console.print(table(result, config))
    if (unseen := unseen_table(result)) is not None:
        console.print(unseen)
    doubt = "Too few images to claim anything (--quick). Of these few: " if quick else ""
    console.print(f"{doubt}{verdict(result, config)}")
    parts = ", ".join(f"{stage} {passes:,}" for stage, passes in result.passes.items() if passes)
    pruned = f" ({result.pruned} pruned)" if result.pruned else ""
    failed = f", {result.failed} failed" if result.failed else ""
    console.print(
        f"{counted(result.trials, 'trial')}{pruned}{failed}, "
        f"{counted(result.search_passes, 'pass')} before the test ({parts}); "
        f"this command took {(time.monotonic() - started) / 60:.1f} minutes"
    )
    for name, what in (
        ("best.json", "the schedule"),
        (PAGE, "one page of it all, to look at and to send"),
        ("grid.png", "the same seeds under each schedule"),
        ("result.json", "every number"),
        ("journal.log", "the Optuna study"),
    ):
        console.print(f"  {folder / name}  {what}")
