"""What `stepsearch report` does, and the page that `stepsearch evaluate -o x.html` writes."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import Progress

from stepsearch.compare.contenders import Contender
from stepsearch.metrics.alignment import SHEET, Prompt
from stepsearch.report.cards import fill
from stepsearch.report.page import as_json, write_page
from stepsearch.report.pictures import save_each
from stepsearch.report.sources import of_evaluation, open_source


def run_report(
    given: Path, out: Path, as_data: bool, ablation: bool, jitter: bool, device: str
) -> None:
    """Write the page of a run or an evaluation, or print its data; measure first what is asked for.

    Raises:
        UserError: nothing to report on is there.
    """
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
        cards = list(fill(source))
        json.dump(as_json(source, cards), sys.stdout, indent=1, allow_nan=False)
        sys.stdout.write("\n")
        return
    cards = write_page(source, out)
    for problem in source.problems:
        console.print(problem)
    shown = sum(card.data is not None for card in cards)
    size = out.stat().st_size / 1e6
    sys.stdout.write(f"{out}: {shown} of {len(cards)} cards, {size:.1f} MB\n")


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
