"""The command `stepsearch report`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def report(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="STUDY|RUN", help="Study file, folder of a run, or a result of evaluate (JSON)."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("report.html"),
    json: Annotated[bool, typer.Option("--json", help="Print its data instead.")] = False,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="Measure which change brought what, first.")
    ] = False,
    jitter: Annotated[
        bool, typer.Option("--jitter", help="Measure how sharp the optimum is, first.")
    ] = False,
    device: Annotated[str, typer.Option(help="Of these two: cpu, cuda:0, …")] = "cpu",
) -> None:
    """Make one HTML page of a run, finished or not: verdict, charts, pictures, checks, exports."""
    from stepsearch.report.command import run_report

    run_report(what, out, json, ablation, jitter, device)
