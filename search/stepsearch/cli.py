"""`stepsearch`: run a study, watch it, export its best schedule."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stepsampler.errors import UserError, run_command_line

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find the few-step schedule that makes the best images for your model and budget.",
)

StudyFile = Annotated[Path, typer.Argument(help="Study file, such as studies/tiny-5-steps.toml.")]
RunFolder = Annotated[
    Path | None, typer.Option("--run", help="Folder of the run; default runs/<study>.")
]


@app.command()
def run(
    study: StudyFile,
    run_folder: RunFolder = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes on the CPU.")] = None,
    gpus: Annotated[str | None, typer.Option(help="Such as 0,1: one worker each.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Instead of the study's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the algorithm.")] = None,
    tracking: Annotated[
        str, typer.Option(help="MLflow URI; 'local' is the run folder, 'none' is off.")
    ] = "local",
    quick: Annotated[bool, typer.Option(help="A minute at most; claims nothing.")] = False,
) -> None:
    """Search, select, test and export. Resumes if the run was cut off."""
    from stepsearch.config import load_config

    overrides = QUICK if quick else {}
    given = {"trials": trials, "seed": seed}
    chosen = {key: value for key, value in given.items() if value is not None}
    config = load_config(study, {**overrides, "search": {**overrides.get("search", {}), **chosen}})
    variant = ("-quick" if quick else "") + ("" if seed is None else f"-seed{seed}")
    folder = run_folder or Path("runs") / (config.name + variant)
    devices = _devices(workers, gpus)

    from stepsearch.session import run_session  # torch and optuna load here, not for --help

    run_session(config, folder, devices, tracking, quick)


# What `--quick` changes: enough to pass through every stage, far too little to conclude anything.
QUICK: dict[str, dict[str, Any]] = {
    "evaluation": {"images": 20, "selection_images": 20, "test_images": 40, "batch_size": 20},
    "baselines": {"rungs": [10], "guidance_scales": [2.0], "orders": [2]},
    "teacher": {"images": 10, "steps": 20},
    "search": {"trials": 4, "finalists": 2},
}


@app.command()
def worker(
    folder: Annotated[Path, typer.Argument(help="Folder of the run, such as runs/tiny-5-steps.")],
    device: Annotated[str, typer.Option(help="cpu, cuda:0, …")] = "cpu",
) -> None:
    """Join a search that is under way with one more process."""
    import os

    from stepsearch.study import claimed, work

    config = claimed(folder)
    from stepsearch.evaluate import Evaluator

    evaluator = Evaluator(config, folder / "cache", device)
    typer.echo(f"{work(folder, config, evaluator, worker=os.getpid())} trials")


@app.command()
def export(
    study: StudyFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the schedule.")],
    run_folder: RunFolder = None,
) -> None:
    """Write the schedule with which the study's run ended."""
    from stepsampler.schedule import load

    folder = run_folder or Path("runs") / study.stem
    if not (folder / "best.json").exists():
        raise UserError(f"{folder}: no finished run; start it with: stepsearch run {study}")
    schedule = load(folder / "best.json")
    schedule.save(out)
    source = schedule.provenance.get("source", "")
    typer.echo(f"{out}: {schedule.num_steps} steps, {schedule.passes} passes ({source})")


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(help="Folder of the run, such as runs/tiny-5-steps.")],
) -> None:
    """Say how far a run is."""
    from stepsearch.study import claimed, finished, open_study

    config = claimed(folder)
    done = sorted(finished(open_study(folder, config)), key=lambda t: float(t.value or 0))
    typer.echo(f"{folder}: {len(done)} of {config.search.trials} trials finished")
    for trial in done[:5]:
        alignment, passes = trial.user_attrs["alignment"], trial.user_attrs["passes"]
        typer.echo(
            f"  trial {trial.number}: {trial.value:.3f}, alignment {alignment:.1%}, {passes} passes"
        )
    if (folder / "best.json").exists():
        typer.echo(f"  ended: {folder / 'best.json'}")


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


def main() -> None:
    run_command_line(app, "stepsearch")
