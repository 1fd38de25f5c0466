"""`stepsearch`: run a study, watch it, export its best schedule."""

from math import inf, isfinite, isnan
from pathlib import Path
from typing import Annotated, Any

import typer

from stepsampler.cli.options import Config, Loras, ModelName, Vae, Words
from stepsampler.errors import UserError, run_command_line

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find the few-step schedule that makes the best images for your model and budget.",
)

StudyFile = Annotated[Path, typer.Argument(help="Study file, such as studies/tiny-3-steps.toml.")]
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
    seed: Annotated[int | None, typer.Option(min=0, help="Of the algorithm.")] = None,
    start_from: Annotated[
        Path | None, typer.Option(help="Folder of a finished run: its best trials come first.")
    ] = None,
    tracking: Annotated[
        str, typer.Option(help="MLflow URI; 'local' is the run folder, 'none' is off.")
    ] = "local",
    quick: Annotated[bool, typer.Option(help="A minute at most; claims nothing.")] = False,
) -> None:
    """Search, select, test and export. Resumes if the run was cut off."""
    from stepsearch.config import load_config

    overrides = QUICK if quick else {}
    origin = None if start_from is None else str(start_from)
    given = {"trials": trials, "seed": seed, "start_from": origin}
    chosen = {key: value for key, value in given.items() if value is not None}
    config = load_config(study, {**overrides, "search": {**overrides.get("search", {}), **chosen}})
    variant = ("-quick" if quick else "") + ("" if seed is None else f"-seed{seed}")
    folder = run_folder or Path("runs") / (config.name + variant)
    devices = _devices(workers, gpus)

    from stepsearch.report.session import run_session  # torch and optuna load here, not for --help

    run_session(config, folder, devices, tracking, quick)


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
    folder: Annotated[Path, typer.Argument(help="Folder of the run, such as runs/tiny-3-steps.")],
    device: Annotated[str, typer.Option(help="cpu, cuda:0, …")] = "cpu",
) -> None:
    """Join a search that is under way with one more process."""
    import os

    from stepsearch.engine.study import claimed, work

    config = claimed(folder)
    from stepsearch.metrics.evaluator import Evaluator

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
    model: Annotated[str, typer.Option(help="A bundled model, a folder or a hub id.")] = "tiny",
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
    from stepsearch.rivals.command import write_placement

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
        typer.Option(help="The model under its own scheduler with so many steps."),
    ] = None,
    model: ModelName = "tiny",
    config: Config = None,
    vae: Vae = None,
    lora: Loras = None,
    textual_inversion: Words = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Of --stock: a class of diffusers instead of its own.")
    ] = None,
    timestep_spacing: Annotated[
        str | None, typer.Option(help="Of --stock: leading, trailing or linspace.")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Of --stock.")] = None,
    extractor: Annotated[
        list[str] | None,
        typer.Option(
            help="texture, lite0, lite0-whole, inception[:PATH], clip:MODEL, dinov2:MODEL; "
            "may be given several times; texture+lite0 is the geometric mean of their FD. "
            "Default texture."
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
        list[str] | None,
        typer.Option(help="fd, fd-infinity, kid or prc (precision and recall); default fd."),
    ] = None,
    images: Annotated[int, typer.Option(help="n, at least 2.")] = 1000,
    seeds: Annotated[
        str, typer.Option("--range", help="Seeds: test, selection or search.")
    ] = "test",
    first_seed: Annotated[int | None, typer.Option(help="Instead of the range's.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per network call.")] = 50,
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
    """Score and compare schedules, stock pipelines or folders of images, with error bars.

    Given several (`evaluate a.json b.json`), it compares them: all get the same seeds, and the
    differences to the first contender are paired.
    """
    if dtype not in ("float32", "float16", "bfloat16"):
        raise UserError(f"--dtype must be float32, float16 or bfloat16, got {dtype!r}")
    if fit not in ("crop", "squash512", "none"):
        raise UserError(f"--fit must be crop, squash512 or none, got {fit!r}")
    if timestep_spacing not in (None, "leading", "trailing", "linspace"):
        raise UserError(
            f"--timestep-spacing must be leading, trailing or linspace, got {timestep_spacing!r}"
        )
    if not stock and (guidance_scale, scheduler, timestep_spacing) != (None, None, None):
        raise UserError(
            "--guidance-scale, --scheduler and --timestep-spacing are of --stock, which is not "
            "given"
        )
    from stepsearch.config import SEEDS

    _in_range("--images", images, 2, SEEDS)
    _in_range("--batch-size", batch_size, 1)
    for steps in stock or ():
        _in_range("--stock", steps, 1)
    for name, value, low, high in (
        ("--guidance-scale", guidance_scale, 0, inf),
        ("--first-seed", first_seed, 0, 2**62),
        ("--size", size, 1, inf),
    ):
        if value is not None:
            _in_range(name, value, low, high)

    from stepsearch.compare.command import Request, run_evaluation

    run_evaluation(
        Request(
            what=what or (),
            stock=stock or (),
            model=model,
            dtype=dtype,
            size=size,
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            spacing=timestep_spacing,
            config=config,
            vae=vae,
            loras=lora or (),
            words=textual_inversion or (),
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
def front(
    runs: Annotated[
        list[Path], typer.Argument(help="Finished runs: their folders or study files.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder.")] = Path("front"),
    images: Annotated[
        int | None,
        typer.Option(min=8, help="Score all again, on so many fresh seeds, like the first run."),
    ] = None,
    device: Annotated[str, typer.Option(help="Of --images: cpu, cuda:0, …")] = "cpu",
) -> None:
    """The best schedule for each number of passes: a chart, a table and a file each."""
    from stepsearch.compare.front import make_front

    make_front(runs, out, images, device)


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(help="Folder of the run, such as runs/tiny-3-steps.")],
) -> None:
    """Say how far a run is."""
    from stepsearch.engine.study import claimed, distance_of, finished, open_study, pruned

    config = claimed(folder)
    study = open_study(folder, config)
    done = sorted(finished(study), key=distance_of)
    ended = len(pruned(study))
    more = f", {ended} pruned" if ended else ""
    typer.echo(f"{folder}: {len(done)} of {config.search.trials} trials finished{more}")
    for trial in done[:5]:
        alignment, passes = trial.user_attrs["alignment"], trial.user_attrs["passes"]
        share = "" if isnan(alignment) else f"alignment {alignment:.1%}, "
        typer.echo(f"  trial {trial.number}: {distance_of(trial):.3f}, {share}{passes} passes")
    if (folder / "best.json").exists():
        typer.echo(f"  ended: {folder / 'best.json'}")


def _in_range(name: str, value: float, low: float, high: float = inf) -> None:
    if not (isfinite(value) and low <= value <= high):
        most = "" if high == inf else f" and at most {high:,}"
        raise UserError(f"{name} must be at least {low}{most}, got {value}")


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
