"""The commands of `stepsearch` about one run: run, check, worker, status, export."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import isnan
from pathlib import Path
from typing import Annotated, Any

import typer

from stepsampler.errors import UserError, counted
from stepsearch.paths import RUNS, find_runs

app = typer.Typer()

StudyFile = Annotated[Path, typer.Argument(help="Study file, such as studies/tiny-3-steps.toml.")]
RunFolder = Annotated[
    Path | None, typer.Option("--run", help="Folder of the run; default runs/<study>.")
]
RunOf = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="Folder of the run, such as runs/x, or its study file."),
]

Storage = Annotated[
    str | None,
    typer.Option(
        envvar="STEPSEARCH_STORAGE",
        help="Trials in postgresql://…, mysql://… or grpc://host:port, for several machines.",
    ),
]

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
) -> None:
    """Search, select, test and export. Resumes if the run was cut off."""
    from stepsearch.config import load_config

    overrides = QUICK if quick else {}
    origin = None if start_from is None else str(start_from)
    given = {"trials": trials, "seed": seed, "start_from": origin}
    chosen = {key: value for key, value in given.items() if value is not None}
    config = load_config(study, {**overrides, "search": {**overrides.get("search", {}), **chosen}})
    variant = ("-quick" if quick else "") + ("" if seed is None else f"-seed{seed}")
    folder = run_folder or RUNS / (config.name + variant)
    devices, store = _devices(workers, gpus), _store(tracking)

    from stepsearch.engine.claim import remember_storage
    from stepsearch.engine.store.locks import only_run
    from stepsearch.report.session import run_session  # torch and optuna load here, not for --help

    with _interruptible(folder), only_run(folder):
        remember_storage(folder, storage)
        run_session(config, folder, devices, store, quick, storage)


@contextmanager
def _interruptible(folder: Path) -> Iterator[None]:
    """One sentence and exit code 130 for Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"stopped; {folder} keeps what is done, the same command goes on", err=True)
        raise typer.Exit(130) from None


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
) -> None:
    """Say what a study lacks and costs, and dry-run it; exit with 2 if anything is missing."""
    from stepsearch.rehearsal.check import run_check

    if not run_check(study, seconds_per_pass, measure, dry_run):
        raise typer.Exit(2)


@app.command()
def worker(
    run_: RunOf,
    device: Annotated[str, typer.Option(help="cpu, cuda:0, …")] = "cpu",
    storage: Storage = None,
    run_folder: RunFolder = None,
) -> None:
    """Join a search that is under way with one more process, also from another machine."""
    from stepsearch.config import load_config
    from stepsearch.engine.claim import claimed
    from stepsearch.engine.store.locks import this_process
    from stepsearch.engine.study import work

    if storage is None:
        folder = run_folder or find_runs(run_, "study.json")[0]
        config = claimed(folder)
    elif run_.suffix == ".toml" and run_.is_file():
        config = load_config(run_)
        folder = run_folder or RUNS / config.name
    else:
        folder, config = run_, claimed(run_)
    with _interruptible(folder):
        if storage is not None:
            from stepsearch.engine.join import join

            join(folder, config, storage, lambda news: typer.echo(news, err=True))
        from stepsearch.metrics.evaluator import Evaluator

        evaluator = Evaluator(config, folder / "cache", device)
        for note in evaluator.notes:
            typer.echo(note, err=True)
        # a word that no worker of another machine or container has: process numbers are not
        number = int(this_process()[3], 16)
        typer.echo(counted(work(folder, config, evaluator, number, storage), "trial"))


@app.command()
def export(
    study: StudyFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the schedule.")],
    run_folder: RunFolder = None,
) -> None:
    """Write the schedule with which the study's run ended."""
    from stepsampler.schedule import load

    folder, *others = find_runs(run_folder or study, "best.json")
    schedule = load(folder / "best.json")
    schedule.save(out)
    source = schedule.provenance.get("source", "")
    size = f"{counted(schedule.num_steps, 'step')}, {counted(schedule.passes, 'pass')}"
    typer.echo(f"{out}: {size} ({source}), from {folder}")
    for doubt in _doubts(folder, study):
        typer.echo(f"  {doubt}", err=True)
    if others:
        typer.echo(f"  there are also {', '.join(map(str, others))}: --run chooses")


def _doubts(folder: Path, study: Path) -> list[str]:
    """Why the schedule of a run's folder may not be the one that its user means."""
    if not (folder / "study.json").exists():
        return []
    from stepsearch.config import load_config
    from stepsearch.engine.claim import claimed, differences, has_ended

    found = []
    try:
        config = claimed(folder)
    except UserError as error:  # of an older version: its schedule is as good as before
        return [f"whether the run was of this study is not known: {error}"]
    known = config.model_dump(mode="json")
    quick = [(s, k, v) for s in ("evaluation", "teacher") for k, v in QUICK[s].items()]
    if all(known[section][key] == value for section, key, value in quick):
        found.append("of a --quick run: too few images to claim anything")
    elif study.is_file():
        try:
            now = load_config(study).model_dump(mode="json")
        except UserError as error:
            return [f"whether the run was of this study is not known: {error}"]
        options = ("search.seed", "search.start_from")
        changed = [d for d in differences(known, now) if d[0] not in options]
        found += [f"the run had {key} = {a!r}, {study} has {b!r}" for key, a, b in changed]
    if not has_ended(folder, config):
        found.append("the run is under way again: this is of its earlier end")
    return found


@app.command()
def status(run_: RunOf, storage: Storage = None) -> None:
    """Say how far a run is."""
    from stepsearch.engine.claim import claimed, has_ended
    from stepsearch.engine.study import distance_of, failed, finished, pruned, read_study

    folder = find_runs(run_, "study.json")[0]
    config = claimed(folder)
    study = read_study(folder, config, storage)
    done = sorted(finished(study), key=distance_of)
    ended, lost = len(pruned(study)), len(failed(study))
    more = (f", {ended} pruned" if ended else "") + (f", {lost} failed" if lost else "")
    typer.echo(f"{folder}: {len(done)} of {counted(config.search.trials, 'trial')} finished{more}")
    for trial in done[:5]:
        alignment, passes = trial.user_attrs["alignment"], trial.user_attrs["passes"]
        share = "" if isnan(alignment) else f"alignment {alignment:.1%}, "
        typer.echo(f"  trial {trial.number}: {distance_of(trial):.3f}, {share}{passes} passes")
    if (folder / "best.json").exists():
        so = "ended" if has_ended(folder, config) else "under way again; of an earlier end"
        typer.echo(f"  {so}: {folder / 'best.json'}")


def _store(tracking: str) -> str:
    """A typing error would be a folder of that name to MLflow."""
    if tracking in ("local", "none"):
        return tracking
    if (
        "://" in tracking
        or tracking.startswith(("databricks", "file:"))
        or (tracking and Path(tracking).is_dir())
    ):
        return tracking
    raise UserError(
        "--tracking must be local, none or an address such as http://mlflow.example.org or "
        f"sqlite:///team.db, got {tracking!r}"
    )


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
