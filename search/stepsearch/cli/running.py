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
    which_run,
)
from stepsearch.engine.store.addresses import tracking_store
from stepsearch.paths import RUNS, check_inside

if TYPE_CHECKING:
    from stepsearch.config import StudyConfig
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
    "statistics": {"samples": 8},
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
    from stepsearch.config.code import check_code, code
    from stepsearch.config.places import in_keys

    origin = None if start_from is None else str(start_from)
    given = {"trials": trials, "seed": seed, "start_from": origin}
    config, folder = _run_of(study, run_folder, quick, settings, given)
    store = tracking_store(tracking)
    devices = ["cpu"] if launcher else _devices(workers, gpus)

    if artifacts is not None and storage is None:
        raise UserError("--artifacts goes with --storage: a folder's run hands nothing on")
    with interruptible(ctx, folder), code(allow_code), in_keys():
        check_code(config)
        # torch and optuna load here, not for --help
        from stepsampler.models import check_gpus
        from stepsearch.engine.claim import check_use, trials_in
        from stepsearch.engine.store.locks import only_run
        from stepsearch.engine.store.parcels import check_artifacts
        from stepsearch.report.session import run_session

        shared: dict[str, Any] = {
            "storage": storage,
            "artifacts": artifacts and check_artifacts(artifacts),
            "launch": _launch(launcher, workers, gpus, device, launch or [], storage),
        }
        check_use(config, storage)
        check_gpus(devices)  # before anything is written, or loaded by a worker
        with only_run(folder), trials_in(storage, folder):
            shown = {(True, True): "only json", (True, False): "json", (False, True): "result"}
            show: Any = shown.get((json, quiet), "all")
            run_session(config, folder, devices, store, quick, show=show, **shared)


def _run_of(
    study: Path,
    run_folder: Path | None,
    quick: bool,
    settings: list[str] | None,
    given: dict[str, Any],
) -> "tuple[StudyConfig, Path]":
    """The settings and the folder of the run of a study file with these options; `given` are values
    of the search.

    Raises:
        UserError: one of these is also among the settings.
    """
    from stepsearch.config import load_config
    from stepsearch.config.measuring import fewer
    from stepsearch.config.places import given_values, joined
    from stepsearch.config.statistics import StatisticsConfig

    chosen = {key: value for key, value in given.items() if value is not None}
    told = given_values(settings or ())
    if twice := [key for key in chosen if key in told.get("search", {})]:
        flag = f"--{twice[0].replace('_', '-')}"
        raise UserError(f"give {flag} or --set search.{twice[0]}, not both")
    overrides = QUICK if quick else {}
    if quick:  # of fewer finalists no more can be polished
        search = load_config(study, joined(told, {"search": chosen})).search
        overrides = joined(QUICK, {"search": fewer(search)})
    config = load_config(study, joined(overrides, told, {"search": chosen}))
    if quick and not config.by_statistics:  # as the baselines that are left go by none
        config = config.model_copy(update={"statistics": StatisticsConfig()})
    variant = ("-quick" if quick else "") + (f"-seed{chosen['seed']}" if "seed" in chosen else "")
    return config, run_folder or RUNS / (config.name + variant)


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
    from stepsearch.config.places import given_values, in_keys

    config = load_config(study, given_values(settings or ()))

    from stepsearch.rehearsal.check import run_check

    with code(allow_code), in_keys():
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
    seed: Annotated[int | None, typer.Option(min=0, help="As the run was started with.")] = None,
    quick: Annotated[bool, typer.Option(help="As the run was started with.")] = False,
    settings: Settings = None,
    allow_code: AllowCode = False,
) -> None:
    """Join a run that is under way with one more process, also from another machine."""
    from stepsearch.config.code import check_code, code
    from stepsearch.config.places import as_keys, in_keys
    from stepsearch.engine.claim import check_use, claimed
    from stepsearch.engine.store.locks import this_process
    from stepsearch.engine.study import work

    of_file, variant = run_.suffix == ".toml" and run_.is_file(), quick or seed is not None
    if (variant or settings) and not of_file:
        raise UserError(
            f"{run_}: --quick, --seed and --set go with a study file; a folder has its run's own"
        )
    if of_file and (storage is not None or variant):
        config, folder = _run_of(run_, run_folder, quick, settings, {"seed": seed})
        config = config if storage is not None else claimed(folder)
    else:
        folder = run_ if storage is not None else run_folder or which_run(run_, "study.json")
        config = claimed(folder)
    check_inside(folder)
    with interruptible(ctx, folder), code(allow_code), in_keys():
        check_code(config)
        check_use(config, storage)
        if storage is not None:
            from stepsearch.engine.join import serve

            say = partial(typer.echo, err=True)
            jobs, trials = serve(folder, config, storage, device, say)
            typer.echo(f"{counted(jobs, 'job')}, {counted(trials, 'trial')}")
            return
        from stepsearch.metrics.evaluator import Evaluator

        evaluator = Evaluator(config, folder / "cache", device)
        for note in evaluator.notes:
            typer.echo(as_keys(note), err=True)
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
