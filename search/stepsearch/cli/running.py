"""The commands of `stepsearch` that start something: run, check, worker."""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepsampler.errors import UserError, counted
from stepsearch.cli.options import (
    AllowCode,
    AsJson,
    RunFolder,
    Settings,
    Storage,
    StudyFile,
    interruptible,
    tracking_store,
    which_run,
)
from stepsearch.paths import RUNS, check_inside

if TYPE_CHECKING:
    from stepsearch.engine.launchers.placing import Launch

app = typer.Typer()
RunOf = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="Folder of the run, such as runs/x, or its study file."),
]

Artifacts = Annotated[
    str | None,
    typer.Option(
        help="With --storage: what workers hand on, in a folder of all machines, s3://… or gs://…"
        " instead of the database."
    ),
]


class Launcher(StrEnum):
    """Where workers can be placed."""

    ray = "ray"
    slurm = "slurm"


# What `--quick` changes: enough to pass through every stage, far too little to conclude anything.
QUICK: dict[str, dict[str, Any]] = {
    "evaluation": {
        "images": 20,
        "rungs": [],
        "selection_images": 20,
        "test_images": 40,
        "batch_size": 20,
    },
    "baselines": {
        "rungs": [10],
        "guidance_scales": [2.0],
        "orders": [2],
        "solvers": ["dpmpp-midpoint"],
    },
    "teacher": {"images": 10, "steps": 20},
    "search": {"trials": 4, "finalists": 2},
}


@app.command()
def run(
    ctx: typer.Context,
    study: StudyFile,
    run_folder: RunFolder = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes on the CPU.")] = None,
    gpus: Annotated[str | None, typer.Option(help="Such as 0,1: one worker each.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Instead of the study's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the algorithm.")] = None,
    start_from: Annotated[
        Path | None, typer.Option(help="Folder of a finished run: its best trials come first.")
    ] = None,
    tracking: Annotated[
        str, typer.Option(help="MLflow URI; 'local' is the run folder, 'none' is off.")
    ] = "local",
    quick: Annotated[bool, typer.Option(help="A minute or two; claims nothing.")] = False,
    storage: Storage = None,
    artifacts: Artifacts = None,
    launcher: Annotated[
        Launcher | None,
        typer.Option(help="With --storage: what places --workers N on a cluster."),
    ] = None,
    launch: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="To Ray or submitit, such as num_gpus=1."),
    ] = None,
    device: Annotated[str, typer.Option(help="Of each worker of a launcher.")] = "cuda:0",
    settings: Settings = None,
    allow_code: AllowCode = False,
    quiet: Annotated[bool, typer.Option(help="Nothing but the file of the schedule.")] = False,
    json: AsJson = False,
) -> None:
    """Search, select, test and export. Resumes if the run was cut off."""
    from stepsearch.config import load_config
    from stepsearch.config.code import check_code, code
    from stepsearch.config.places import given_values, joined

    overrides = QUICK if quick else {}
    origin = None if start_from is None else str(start_from)
    given = {"trials": trials, "seed": seed, "start_from": origin}
    chosen = {key: value for key, value in given.items() if value is not None}
    config = load_config(study, joined(overrides, given_values(settings or ()), {"search": chosen}))
    variant = ("-quick" if quick else "") + ("" if seed is None else f"-seed{seed}")
    folder = run_folder or RUNS / (config.name + variant)
    store = tracking_store(tracking)
    devices = ["cpu"] if launcher else _devices(workers, gpus)

    if artifacts is not None and storage is None:
        raise UserError("--artifacts goes with --storage: a folder's run hands nothing on")
    with interruptible(ctx, folder), code(allow_code):
        check_code(config)
        # torch and optuna load here, not for --help
        from stepsearch.engine.claim import remember_storage
        from stepsearch.engine.store.locks import only_run
        from stepsearch.engine.store.parcels import check_artifacts
        from stepsearch.report.session import run_session

        shared: dict[str, Any] = {
            "storage": storage,
            "artifacts": artifacts and check_artifacts(artifacts),
            "launch": _launch(launcher, workers, gpus, device, launch or [], storage),
        }
        with only_run(folder):
            remember_storage(folder, storage)
            show: Any = "json" if json else "result" if quiet else "all"
            run_session(config, folder, devices, store, quick, show=show, **shared)


def _launch(
    launcher: Launcher | None,
    workers: int | None,
    gpus: str | None,
    device: str,
    options: list[str],
    storage: str | None,
) -> "Launch | None":
    from stepsearch.engine.launchers.placing import Launch, check_launch

    asked = check_launch(options)
    if launcher is None:
        if asked:
            raise UserError("--launch goes with --launcher")
        return None
    if storage is None:
        raise UserError("--launcher goes with --storage, through which its workers are led")
    if gpus is not None or workers is None:
        raise UserError(
            "--launcher places --workers N, each on --device; --gpus are of this machine"
        )
    return Launch(launcher.value, workers, device, asked)


@app.command()
def check(
    study: StudyFile,
    seconds_per_pass: Annotated[
        float | None, typer.Option(min=0, help="Of one image, for the estimate of hours.")
    ] = None,
    measure: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="Measure that on cpu, cuda:0, …")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Go through all stages with a tiny random model.")
    ] = True,
    settings: Settings = None,
    allow_code: AllowCode = False,
    json: AsJson = False,
) -> None:
    """Say what a study lacks and costs, and dry-run it; exit with 2 if anything is missing."""
    from stepsearch.config import load_config
    from stepsearch.config.code import check_code, code
    from stepsearch.config.places import given_values

    config = load_config(study, given_values(settings or ()))

    from stepsearch.rehearsal.check import run_check

    with code(allow_code):
        check_code(config)
        found = run_check(config, study, seconds_per_pass, measure, dry_run, silent=json)
    if json:
        from stepsearch.report.plain import print_json

        print_json(found)
    if found["missing"]:
        raise typer.Exit(2)


@app.command()
def worker(
    ctx: typer.Context,
    run_: RunOf,
    device: Annotated[str, typer.Option(help="cpu, cuda:0, …")] = "cpu",
    storage: Storage = None,
    run_folder: RunFolder = None,
    allow_code: AllowCode = False,
) -> None:
    """Join a run that is under way with one more process, also from another machine."""
    from stepsearch.config import load_config
    from stepsearch.config.code import check_code, code
    from stepsearch.engine.claim import claimed
    from stepsearch.engine.store.locks import this_process
    from stepsearch.engine.study import work

    if storage is None:
        folder = run_folder or which_run(run_, "study.json")
        config = claimed(folder)
    elif run_.suffix == ".toml" and run_.is_file():
        config = load_config(run_)
        folder = run_folder or RUNS / config.name
    else:
        folder, config = run_, claimed(run_)
    check_inside(folder)
    with interruptible(ctx, folder), code(allow_code):
        check_code(config)
        if storage is not None:
            from stepsearch.engine.join import serve

            say = partial(typer.echo, err=True)
            jobs, trials = serve(folder, config, storage, device, say)
            typer.echo(f"{counted(jobs, 'job')}, {counted(trials, 'trial')}")
            return
        from stepsearch.metrics.evaluator import Evaluator

        evaluator = Evaluator(config, folder / "cache", device)
        for note in evaluator.notes:
            typer.echo(note, err=True)
        # a word that no worker of another machine or container has: process numbers are not
        number = int(this_process()[3], 16)
        typer.echo(counted(work(folder, config, evaluator, number), "trial"))


def _devices(workers: int | None, gpus: str | None) -> list[str]:
    if gpus is None:
        import os

        return ["cpu"] * (workers or min(2, os.cpu_count() or 1))
    if workers is not None:
        raise UserError("give --workers or --gpus, not both")
    numbers = [part.strip() for part in gpus.split(",")]
    if not all(part.isdigit() for part in numbers):
        raise UserError(f"--gpus: expected numbers such as 0,1, got {gpus!r}")
    return [f"cuda:{part}" for part in numbers]
