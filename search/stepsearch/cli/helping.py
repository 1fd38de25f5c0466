"""The commands of `stepsearch` that help to begin: init, doctor."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stepsampler.errors import UserError
from stepsearch.cli.options import AsJson
from stepsearch.engine.store.addresses import tracking_store

app = typer.Typer()


class Kind(StrEnum):
    """What a study to begin with is of."""

    sd15 = "sd15"
    sdxl = "sdxl"
    flux_dev = "flux-dev"
    folder = "folder-of-images"


@app.command()
def init(
    of: Annotated[Kind, typer.Argument(help="What the study is of.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A new file; default the output.")
    ] = None,
) -> None:
    """Print a study to begin with, its settings explained, or write it to a file."""
    from stepsampler.support.files import write_text
    from stepsearch.rehearsal.beginning import study_text

    text = study_text(of.value)
    if out is None:
        typer.echo(text, nl=False)
        return
    if out.suffix != ".toml":
        raise UserError(f"--out must be a .toml file, got {str(out)!r}")
    if out.exists():
        raise UserError(f"-o {out}: it is there already; name another file")
    write_text(out, text)
    typer.echo(f"wrote {out}; `stepsearch check {out}` says what is missing")


@app.command()
def doctor(
    study: Annotated[
        Path | None, typer.Argument(help="A study file: its weights and its disk space, too.")
    ] = None,
    tracking: Annotated[
        str, typer.Option(help="MLflow URI as of `run`: local, none or an address.")
    ] = "local",
    json: AsJson = False,
) -> None:
    """Look whether this machine is fit for a search; exit with 1 if something is in the way."""
    from stepsearch.config import load_config

    tracking = tracking_store(tracking)
    config = None if study is None else load_config(study)

    from stepsearch.rehearsal.doctor import examine
    from stepsearch.report.cards.health import FAIL
    from stepsearch.report.plain import print_json

    found = []
    for check in examine(config, tracking):
        found.append(check)
        if not json:
            typer.echo(f"{check['state']:4}  {check['name']}: {check['sentence']}")
            if check["do"]:
                typer.echo(f"      {check['do']}")
    if json:
        print_json({"checks": found})
    if any(check["state"] == FAIL for check in found):
        raise typer.Exit(1)
