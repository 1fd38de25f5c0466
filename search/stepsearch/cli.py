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
def placement(
    method: Annotated[str, typer.Argument(help="dmn, gits, oss, hso or ld3.")],
    steps: Annotated[int, typer.Option(min=1, help="Number of steps.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the schedule.")],
    model: Annotated[str, typer.Option(help="tiny, a local folder or a hub id.")] = "tiny",
    prompts: Annotated[
        str, typer.Option(help="Bundled prompts, or a text file with one a line.")
    ] = "fashion-mnist",
    guidance_scale: Annotated[
        float, typer.Option(min=0, help="At which it looks at the model, and of the schedule.")
    ] = 7.5,
    solver: Annotated[str, typer.Option(help="Of the schedule.")] = "dpmpp-midpoint",
    order: Annotated[int, typer.Option(min=1, help="Highest order of the solver.")] = 2,
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per network call.")] = 8,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
) -> None:
    """Compute where a published method puts the steps for a model, and write that schedule."""
    from stepsearch.placing import write_placement

    write_placement(
        method,
        steps,
        out,
        model,
        prompts,
        guidance_scale,
        solver,
        order,
        size,
        batch_size,
        device,
        dtype,
    )


@app.command()
def evaluate(
    what: Annotated[
        list[Path] | None, typer.Argument(help="Schedules (JSON), folders or zips of images.")
    ] = None,
    stock: Annotated[
        list[int] | None,
        typer.Option(min=1, help="The model under its own scheduler with so many steps."),
    ] = None,
    model: Annotated[str, typer.Option(help="tiny, a local folder or a hub id.")] = "tiny",
    scheduler: Annotated[
        str | None, typer.Option(help="Of --stock: a class of diffusers instead of its own.")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Of --stock.")] = None,
    extractor: Annotated[
        list[str] | None,
        typer.Option(
            help="texture, lite0, lite0-whole, inception[:PATH], clip:MODEL, dinov2:MODEL; "
            "may be given several times. Default texture."
        ),
    ] = None,
    reference: Annotated[
        str, typer.Option(help="Bundled data, a folder or zip of images, an .npz, a cached file.")
    ] = "fashion-mnist",
    fit: Annotated[
        str, typer.Option(help="How files are brought to size: crop, squash512 or none.")
    ] = "crop",
    prompts: Annotated[
        str, typer.Option(help="Bundled prompts, or a text file with one a line.")
    ] = "fashion-mnist",
    clip_score: Annotated[
        str | None, typer.Option(help="Folder or hub id of the CLIP model for the CLIP score.")
    ] = None,
    distance: Annotated[
        list[str] | None, typer.Option(help="fd, fd-infinity or kid; default fd.")
    ] = None,
    images: Annotated[int, typer.Option(help="n.")] = 1000,
    seeds: Annotated[
        str, typer.Option("--range", help="Seeds: test, selection or search.")
    ] = "test",
    first_seed: Annotated[int | None, typer.Option(help="Instead of the range's.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per network call.")] = 50,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    cache: Annotated[Path, typer.Option(help="What is measured once is kept here.")] = Path(
        "runs/evaluate"
    ),
    with_: Annotated[
        list[Path] | None, typer.Option("--with", help="Earlier results, to compare with.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Result file (JSON).")] = None,
    profile: Annotated[bool, typer.Option(help="Say where the time went.")] = False,
) -> None:
    """Score schedules, stock pipelines or folders of images, with error bars.

    Differences are paired with the first contender.
    """
    if dtype not in ("float32", "float16", "bfloat16"):
        raise UserError(f"--dtype must be float32, float16 or bfloat16, got {dtype!r}")
    if fit not in ("crop", "squash512", "none"):
        raise UserError(f"--fit must be crop, squash512 or none, got {fit!r}")

    from stepsearch.judging import Request, run_evaluation

    run_evaluation(
        Request(
            what=what or (),
            stock=stock or (),
            model=model,
            dtype=dtype,
            size=size,
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            extractors=extractor or ("texture",),
            reference=reference,
            fit=fit,  # type: ignore[arg-type]
            prompts=prompts,
            clip=clip_score,
            distances=distance or ("fd",),
            images=images,
            part=seeds,
            first_seed=first_seed,
            batch_size=batch_size,
            device=device,
            cache=cache,
            earlier=with_ or (),
            out=out,
            profile=profile,
        )
    )


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
