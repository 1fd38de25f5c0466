"""What `stepsearch report` does, and the page that `stepsearch evaluate -o x.html` writes."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import Progress

from stepsampler.errors import UserError
from stepsearch.compare.contenders import Contender
from stepsearch.compare.evaluating import Asked, evaluate
from stepsearch.compare.front import make_front
from stepsearch.compare.front import table as front_table
from stepsearch.compare.front import write as write_front
from stepsearch.compare.table import save, table, where_time_went
from stepsearch.metrics.alignment import SHEET, Prompt
from stepsearch.report.fronts import of_front
from stepsearch.report.page import write_page
from stepsearch.report.pictures import save_each
from stepsearch.report.plain import of_source, print_json
from stepsearch.report.sources import of_evaluation, open_source


def run_report(
    given: Path, out: Path, as_data: bool, ablation: bool, jitter: bool, device: str
) -> None:
    """Write the page of a run or an evaluation, or print its data; measure first what is asked for.

    Raises:
        UserError: nothing to report on is there, or `out` is no HTML file.
    """
    if out.suffix not in (".html", ".htm") and not as_data:
        raise UserError(f"--out must be an .html file, got {str(out)!r}")
    source = open_source(given)
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
    if ablation or jitter:
        from stepsearch.report.measuring import cost, measure, wanted

        groups = wanted(source, ablation, jitter)
        console.print(cost(source, groups))
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("measuring", total=None)
            measure(
                source,
                groups,
                device,
                lambda done, total: progress.update(task, completed=done, total=total),
            )
        source = open_source(given)
    if as_data:
        print_json(of_source(source))
        return
    cards = write_page(source, out)
    for problem in source.problems:
        console.print(problem)
    shown = sum(card.data is not None for card in cards)
    size = out.stat().st_size / 1e6
    sys.stdout.write(f"{out}: {shown} of {len(cards)} cards, {size:.1f} MB\n")


def run_front(
    paths: Sequence[Path], out: Path, images: int | None, device: str, as_data: bool
) -> bool:
    """Join runs, print the table and write chart, table and schedules, or the page.

    Returns whether all schedules are in it: what is left out is named.

    Raises:
        UserError: no finished run, or scores that do not compare.
    """
    console = _console(as_data, 140)
    page = out.suffix == ".html"
    cache = (out.with_suffix("") if page else out) / "cache"
    front, runs, left_out = make_front(paths, cache, images, device, console)
    if as_data or page:
        with TemporaryDirectory() as folder:
            source = of_front(front, runs, left_out, Path(folder))
            if as_data:
                print_json(of_source(source))
            if page:
                write_page(source, out)
    if not as_data:
        console.print(front_table(front))
    if page:
        console.print(f"{out}: the page")
    else:
        for file, what in write_front(front, out):
            console.print(f"  {file}  {what}")
    for sentence in left_out:
        console.print(f"left out: {sentence}")
    return not left_out


def _console(as_data: bool, width: int) -> Console:
    """Of stdout, so wide where that is a file; of stderr beside data. Names are never markup."""
    plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
    fixed = None if sys.stdout.isatty() else width
    return Console(soft_wrap=True, width=fixed, stderr=as_data, **plain)


def run_evaluation(asked: Asked, out: Path | None, profile: bool, as_data: bool) -> bool:
    """Score what is asked for and print it, or its page's data; returns whether all is in it.

    Raises:
        UserError: as `evaluate` does.
    """
    console = _console(as_data, 160)

    @contextmanager
    def measuring() -> Iterator[Callable[[int, int], object]]:
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("measuring", total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    found = evaluate(asked, console.print, measuring)
    if as_data:
        print_json(of_source(of_evaluation(found.data, out.stem if out else "comparison")))
    else:
        console.print(table(found.result))
    for note in found.notes:
        console.print(note)
    if profile:
        console.print(where_time_went(found.harness))
    if out and out.suffix == ".html":
        seeds = found.result.seeds
        write_comparison(found.data, found.contenders, seeds, found.prompts, asked.batch_size, out)
        console.print(f"{out}: the page")
    elif out:
        save(found.data, out)
        console.print(f"{out}: every number with its identity")
    for sentence in found.result.left_out:
        console.print(f"left out: {sentence}")
    return found.whole


def write_comparison(
    data: dict[str, Any],
    contenders: Sequence[Contender],
    seeds: range,
    prompts: Sequence[Prompt],
    batch_size: int,
    out: Path,
) -> None:
    """The page of an evaluation, with the first images of those that were measured now."""
    few = seeds[:SHEET]
    told = [prompts[seed % len(prompts)] for seed in few]
    scored = {entry["name"] for entry in data["contenders"]}
    with TemporaryDirectory() as folder:
        rows = []
        for contender in contenders:
            if contender.name not in scored:
                continue
            images = [
                image for batch in contender.batches(few, told, batch_size) for image in batch
            ]
            rows.append((contender.name, "contender", images))
        save_each(rows, Path(folder), few, [prompt.text for prompt in told])
        write_page(of_evaluation(data, out.stem, Path(folder)), out)
