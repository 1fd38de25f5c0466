"""One call of `stepsearch polish`: a better schedule file from a schedule."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from math import ceil, isnan
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import Progress

from stepsampler.errors import UserError
from stepsampler.presets import open_schedule
from stepsearch.config import StudyConfig
from stepsearch.config.parts import SEEDS
from stepsearch.metrics.evaluator import Evaluator, metric_name
from stepsearch.polish.descent import Polished, Settings, polish
from stepsearch.polish.knobs import Freedom, Knobs
from stepsearch.polish.looking import Here


def write_polished(
    source: Path,
    out: Path,
    free: str,
    levels: bool,
    config: StudyConfig,
    how: Mapping[str, int],
    cache: Path,
    device: str,
) -> None:
    """Say what it costs, polish with progress, and write the best checked point to `out`.

    `config` says which model and what is measured, `how` is `Settings`.

    Raises:
        UserError: no such schedule, one that is not for the model or has nothing to turn, and what
            `Evaluator` and `polish` refuse.
    """
    if free not in get_args(Freedom):
        raise UserError(f"--free must be one of {', '.join(get_args(Freedom))}, got {free!r}")
    settings = Settings(**how)
    for option, value in (
        ("--images times --iterations", settings.images * settings.iterations),
        ("--check-images", settings.check_images),
    ):
        if value > SEEDS:
            raise UserError(f"{option} must be at most {SEEDS:,}, got {value:,}")
    knobs = Knobs(open_schedule(source), free, levels)  # type: ignore[arg-type]
    start = knobs.start
    if not knobs.names:
        raise UserError(f"{source}: nothing of it is free: it has one unguided step; --free gain")
    evaluator = Evaluator(config, cache, device)
    evaluator.model.check(start)
    versions = max(1, len(evaluator.scales))
    width = None if sys.stdout.isatty() else 110
    # names of files are as they are: no markup
    console = Console(soft_wrap=True, width=width, highlight=False, markup=False, emoji=False)
    for note in evaluator.notes:
        console.print(note)
    most = start.passes * versions * settings.most_images(len(knobs.names))
    console.print(
        f"{source}: {start.num_steps} steps, {start.passes} passes per image; {len(knobs.names)} "
        f"numbers to turn, at most {most:,} network passes"
    )
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("polishing", total=settings.iterations)

        def show(done: float, news: str) -> None:
            progress.update(task, completed=done)
            if news:
                progress.console.print(f"{ceil(done):3d} iterations: {news}")

        found = polish(Here(evaluator), knobs, settings, show)
    metric = metric_name(evaluator.reference, settings.check_images)
    provenance = {"source": f"polish of {source}", **told(found, metric, free)}
    replace(found.schedule, provenance=provenance).save(out)
    first, best = found.checks[0].distance, found.best.distance
    came = f"{metric} {first:.3f} -> {best:.3f} on selection seeds"
    if not found.best.iteration:
        came = "as it was: no check was better on selection seeds and kept the alignment"
    console.print(f"{out}: {came}; took {found.passes:,} network passes")


def told(found: Polished, metric: str, free: str) -> dict[str, Any]:
    """What the file says of how it came to be."""
    first, best = found.checks[0], found.best
    said = {"free": free, "iterations": best.iteration, "passes": found.passes, "metric": metric}
    said |= {"selection": [first.distance, best.distance]}  # before and after
    if not isnan(best.alignment):
        said |= {"alignment": [first.alignment, best.alignment]}
    return said
