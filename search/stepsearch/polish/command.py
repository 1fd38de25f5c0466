"""One call of `stepsearch polish`: a better schedule file from a schedule."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, isnan
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from stepsampler.errors import UserError, counted
from stepsampler.presets import open_schedule
from stepsearch.config import StudyConfig
from stepsearch.config.parts import SEEDS
from stepsearch.metrics.evaluator import Evaluator, metric_name
from stepsearch.polish.descent import Polished, Settings, polish
from stepsearch.polish.knobs import Freedom, Knobs
from stepsearch.polish.looking import Heard, Here, Seen, Sides


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
    versions = max(1, len(config.evaluation.guidance_scales))
    width = None if sys.stdout.isatty() else 110
    # names of files are as they are: no markup
    console = Console(soft_wrap=True, width=width, highlight=False, markup=False, emoji=False)
    most = start.passes * versions * settings.most_images(len(knobs.names))
    console.print(
        f"{source}: {start.num_steps} steps, {start.passes} passes per image; {len(knobs.names)} "
        f"numbers to turn, at most {most:,} network passes"
    )
    with _Shown(console, settings.iterations) as shown:
        shown.begin(f"loading {config.model.id}")
        evaluator = Evaluator(config, cache, device)
        evaluator.model.check(start)
        for note in evaluator.notes:
            console.print(note)
        evaluator.heard = shown.move
        found = polish(_Told(evaluator, shown), knobs, settings, shown.show)
    metric = metric_name(evaluator.reference, settings.check_images)
    provenance = {"source": f"polish of {source}", **told(found, metric, free)}
    replace(found.schedule, provenance=provenance).save(out)
    first, best = found.checks[0].distance, found.best.distance
    came = f"{metric} {first:.3f} -> {best:.3f} on selection seeds"
    if not found.best.iteration:
        came = "as it was: no check was better on selection seeds and kept the alignment"
    console.print(f"{out}: {came}; took {found.passes:,} network passes")


class _Shown:
    """What a polish is doing: in a terminal it moves below the lines, elsewhere it is one of them.

    The first news comes after hundreds of images, and nobody should wait for it before an empty
    screen.
    """

    def __init__(self, console: Console, iterations: int) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        self._console = console
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task("", total=iterations)
        self._doing = ""

    def __enter__(self) -> "_Shown":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, doing: str) -> None:
        """From now on this is done."""
        self.go_on(doing)
        if not self._console.is_terminal:
            self._console.print(f"{doing} …")

    def go_on(self, doing: str) -> None:
        """The same as before, but farther: no line of its own."""
        self._doing = doing
        self._progress.update(self._task, description=doing, refresh=True)

    def move(self, made: int, images: int) -> None:
        """So many images of a schedule are made."""
        text = f"{self._doing}: {made} of {images}"
        self._progress.update(self._task, description=text, refresh=True)

    def show(self, done: float, news: str) -> None:
        """So many iterations are done, and what came of it."""
        self._progress.update(self._task, completed=done)
        if news:
            self._console.print(f"{ceil(done):3d} iterations: {news}")


@dataclass(frozen=True)
class _Told(Here):
    """Looks that say what they are before their first image."""

    shown: _Shown

    def __call__(
        self, plans: Sequence[Sides], seeds: range, heard: Heard = lambda share: None
    ) -> list[Seen | str]:
        images, numbers = counted(len(seeds), "image"), len(plans) - 1
        if not numbers:
            self.shown.begin(f"checking a schedule on {images}")
            return super().__call__(plans, seeds, heard)
        what = f"looking at {counted(numbers, 'number')}, {images} with each moved a little"
        self.shown.begin(what)

        def farther(share: float) -> None:
            heard(share)
            self.shown.go_on(f"{what}, {round(share * len(plans))} of {len(plans)} done")

        return super().__call__(plans, seeds, farther)


def told(found: Polished, metric: str, free: str) -> dict[str, Any]:
    """What the file says of how it came to be."""
    first, best = found.checks[0], found.best
    said = {"free": free, "iterations": best.iteration, "passes": found.passes, "metric": metric}
    said |= {"selection": [first.distance, best.distance]}  # before and after
    if not isnan(best.alignment):
        said |= {"alignment": [first.alignment, best.alignment]}
    return said
