"""The commands of `stepsearch` about what a run has found: status, report, sync, export."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stepsampler.cli.options import check_file
from stepsampler.errors import UserError, counted
from stepsearch.cli.options import (
    AllowCode,
    AsJson,
    RunFolder,
    RunOf,
    Storage,
    which_run,
)
from stepsearch.engine.store.addresses import tracking_store
from stepsearch.paths import find_runs

app = typer.Typer()


@app.command()
def status(
    run_: RunOf = None,
    storage: Storage = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay, and show what changes.")] = False,
    json: AsJson = False,
) -> None:
    """Say how far a run is: stage, trials, workers, passes, time left, the best so far."""
    from stepsearch.report.live.watch import show_status

    show_status(_looked_up(run_, storage), storage, watch, json)


def _looked_up(given: Path | None, storage: str | None) -> Path:
    """The folder of a run; of a run in a database it need not be on this machine."""
    if storage is not None and given is not None and not given.exists():
        return given
    return which_run(given, "study.json", live=True)


@app.command()
def report(
    what: Annotated[
        Path | None,
        typer.Argument(
            metavar="STUDY|RUN",
            help="Study file, folder of a run, or a result of evaluate (JSON); "
            "default the only run here.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("report.html"),
    json: Annotated[bool, typer.Option("--json", help="Print its data instead.")] = False,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="Measure which change brought what, first.")
    ] = False,
    jitter: Annotated[
        bool, typer.Option("--jitter", help="Measure how sharp the optimum is, first.")
    ] = False,
    device: Annotated[str, typer.Option(help="Of these two: cpu, cuda:0, …")] = "cpu",
    allow_code: AllowCode = False,
) -> None:
    """Make one HTML page of a run, finished or not: verdict, charts, pictures, checks, exports."""
    if not json:
        check_file(out)
    given = what or which_run(None, "study.json")
    from stepsearch.config.code import code
    from stepsearch.report.command import run_report

    with code(allow_code):
        run_report(given, out, json, ablation, jitter, device)


@app.command()
def sync(
    run_: RunOf = None,
    tracking: Annotated[str, typer.Option(help="MLflow URI; 'local' is the run folder.")] = "local",
    storage: Storage = None,
    register: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Also register the schedule as a model of MLflow."),
    ] = None,
) -> None:
    """Write to MLflow what it does not have of a run yet; the same call again adds nothing."""
    if tracking_store(tracking) == "none":
        raise UserError("--tracking none: there is nothing to write to")
    folder = which_run(run_, "study.json")

    from stepsearch.report.syncing import sync as write

    if not write(folder, storage, None if tracking == "local" else tracking, register):
        raise typer.Exit(1)  # something is left out, and named above


@app.command()
def export(
    study: RunOf = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where to write the schedule; default best.json here."),
    ] = None,
    run_folder: RunFolder = None,
    json: AsJson = False,
) -> None:
    """Write the schedule with which the study's run ended."""
    from stepsampler.schedule import load

    if out is None:  # before it is asked which run is meant
        out = Path("best.json")
        if out.exists():
            raise UserError(f"{out} is here already: -o says where to write the schedule")
    check_file(out)
    folder, *others = find_runs(run_folder or study or which_run(None, "best.json"), "best.json")
    schedule = load(folder / "best.json")
    schedule.save(out)
    doubts = _doubts(folder, study)
    if json:
        from stepsearch.report.plain import print_json

        data: dict[str, Any] = {"file": out, "run": folder, "doubts": doubts, "other_runs": others}
        data |= {"steps": schedule.num_steps, "passes": schedule.passes}
        print_json(data | {"provenance": schedule.provenance})
        return
    source = schedule.provenance.get("source", "")
    size = f"{counted(schedule.num_steps, 'step')}, {counted(schedule.passes, 'pass')}"
    typer.echo(f"{out}: {size} ({source}), from {folder}")
    for doubt in doubts:
        typer.echo(f"  {doubt}", err=True)
    if others:
        typer.echo(f"  there are also {', '.join(map(str, others))}: --run chooses")


def _doubts(folder: Path, study: Path | None) -> list[str]:
    """Why the schedule of a run's folder may not be the one that its user means."""
    if not (folder / "study.json").exists():
        return []
    from stepsearch.config import load_config
    from stepsearch.engine.claim import RESULT, claimed, differences, has_ended, is_damaged

    found = []
    try:
        config = claimed(folder)
    except UserError as error:  # of an older version: its schedule is as good as before
        return [f"whether the run was of this study is not known: {error}"]
    from stepsearch.cli.running import QUICK

    known = config.model_dump(mode="json")
    quick = [(s, k, v) for s in ("evaluation", "teacher") for k, v in QUICK[s].items()]
    if all(known[section][key] == value for section, key, value in quick):
        found.append("of a --quick run: too few images to claim anything")
    elif study is not None and study.is_file():
        try:
            now = load_config(study).model_dump(mode="json")
        except UserError as error:
            return [f"whether the run was of this study is not known: {error}"]
        # Options of `run` may differ; the budget may change while a run goes on, not after it.
        options = {("search", "seed"), ("search", "start_from"), ("model", "kind")}
        changed = differences(known, now, options)
        found += [f"the run had {key} = {a!r}, {study} has {b!r}" for key, a, b in changed]
    if not has_ended(folder, config):
        if is_damaged(folder / RESULT):
            return [*found, f"{folder / RESULT} is damaged: whether its run has ended is not known"]
        found.append("the run is under way again: this is of its earlier end")
    return found
