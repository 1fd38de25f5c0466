"""The commands of `stepsearch` beside a run: placement, polish, front."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepsampler.cli.options import Device, Negative, check_file, check_folder, with_model
from stepsampler.errors import UserError
from stepsampler.support.options import DEFAULTS, ModelOptions
from stepsearch.cli.options import AllowCode, AsJson

if TYPE_CHECKING:
    from stepsearch.config import StudyConfig

app = typer.Typer()
# Options of a polish that are for runs, too
POLISH = {"schedule", "out", "free", "levels", "iterations", "images"}
POLISH |= {"check_images", "cache", "device", "allow_code"}


@app.command()
@with_model
def placement(
    method: Annotated[str, typer.Argument(help="dmn, gits, oss, hso, ld3 or amed.")],
    steps: Annotated[int, typer.Option(min=1, help="Number of steps.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the schedule.")],
    model: ModelOptions = DEFAULTS,
    negative_prompt: Negative = "",
    prompts: Annotated[
        str, typer.Option(help="Bundled prompts, or a text file with one a line.")
    ] = "fashion-mnist",
    guidance_scale: Annotated[
        float, typer.Option(min=0, help="At which it looks at the model, and of the schedule.")
    ] = 7.5,
    solver: Annotated[str, typer.Option(help="Of the schedule.")] = "dpmpp-midpoint",
    order: Annotated[int, typer.Option(min=1, help="Highest order of the solver.")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per network call.")] = 8,
    device: Device = "cpu",
) -> None:
    """Compute where a published method puts the steps for a model, and write that schedule."""
    check_file(out)
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
        batch_size,
        device,
        negative_prompt,
    )


@app.command()
@with_model
def amed(
    calls: Annotated[int, typer.Option(min=1, help="Of the network per image, before guidance.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the predictor.")],
    static: Annotated[
        Path | None, typer.Option(help="Where to write its averages, as a schedule.")
    ] = None,
    model: ModelOptions = DEFAULTS,
    negative_prompt: Negative = "",
    prompts: Annotated[
        str, typer.Option(help="Bundled prompts, or a text file with one a line.")
    ] = "fashion-mnist",
    guidance_scale: Annotated[float, typer.Option(min=0, help="Of student and teacher.")] = 7.5,
    trajectories: Annotated[int, typer.Option(min=1, help="To learn from.")] = 10_000,
    scale_dir: Annotated[float, typer.Option(min=0, max=0.5, help="Bound of gains, 1 ± it.")] = 0.0,
    scale_time: Annotated[float, typer.Option(min=0, max=0.5, help="The same of times.")] = 0.2,
    between: Annotated[int, typer.Option(min=1, help="Steps that the teacher inserts (M).")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Trajectories an update.")] = 32,
    device: Device = "cpu",
) -> None:
    """Train AMED's predictor of inserted steps on a model; resumes. `evaluate` scores its file."""
    check_file(out)
    if static is not None:
        check_file(static, "--static")
    from stepsearch.rivals.amed.command import write_predictor
    from stepsearch.rivals.amed.predictor import Setting

    setting = Setting(
        calls,
        guidance_scale,
        bottleneck=0,  # the model's is found
        scale_dir=scale_dir,
        scale_time=scale_time,
        between=between,
    )
    write_predictor(
        calls,
        out,
        static,
        model,
        prompts,
        setting,
        trajectories,
        batch_size,
        device,
        negative_prompt,
    )


@app.command()
@with_model
def polish(
    context: typer.Context,
    schedule: Annotated[
        Path,
        typer.Argument(
            help="Schedule (JSON), the name of a preset, or a finished run: its schedule, with its "
            "model and evaluation."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the better one.")],
    free: Annotated[
        str,
        typer.Option(help="Beside levels and guidance scales: one-gain, gain, weights or none."),
    ] = "one-gain",
    levels: Annotated[bool, typer.Option(help="Whether levels move, too.")] = True,
    model: ModelOptions = DEFAULTS,
    negative_prompt: Negative = "",
    extractor: Annotated[
        str, typer.Option(help="texture, lite0, their -whole, or texture+lite0: both at once.")
    ] = "texture+lite0",
    reference: Annotated[
        str, typer.Option(help="Bundled data, a folder or zip of images, or a cached file.")
    ] = "fashion-mnist",
    prompts: Annotated[
        str, typer.Option(help="Bundled prompts, or any file that stepsample batch takes.")
    ] = "fashion-mnist",
    iterations: Annotated[
        int, typer.Option(min=1, help="Looks at what each number does, at most.")
    ] = 3,
    images: Annotated[
        int,
        typer.Option(
            min=8, help="An iteration: of the schedule, and of it with each number moved."
        ),
    ] = 250,
    check_images: Annotated[int, typer.Option(min=8, help="Of selection seeds, a check.")] = 400,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per network call.")] = 50,
    device: Device = "cpu",
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Keeps its state: a killed one goes on. Of a run its own, or runs/polish."
        ),
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Make a schedule better on the metric itself; steps and guided ones stay."""
    check_file(out)
    from stepsearch.config import ModelConfig, StudyConfig
    from stepsearch.config.code import code
    from stepsearch.config.measuring import EvaluationConfig
    from stepsearch.config.space import SpaceConfig
    from stepsearch.polish.command import write_polished

    if schedule.is_dir() or schedule.suffix == ".toml":
        _refuse_beside_run(schedule, context)
        config, schedule, own = _of_run(schedule)
    else:
        config = StudyConfig(
            name="polish",
            model=ModelConfig(**vars(model)),
            space=SpaceConfig(num_steps=2, passes=4),  # says nothing here
            evaluation=EvaluationConfig(
                extractor=extractor,
                reference=reference,
                prompts=prompts,
                negative_prompt=negative_prompt,
                batch_size=batch_size,
            ),
        )
        own = Path("runs/polish")
    how = {
        "iterations": iterations,
        "images": images,
        "check_images": check_images,
    }
    with code(allow_code):
        write_polished(schedule, out, free, levels, config, how, cache or own, device)


def _of_run(run: Path) -> "tuple[StudyConfig, Path, Path]":
    """The settings of a finished run, its schedule, and its cache."""
    from stepsearch.engine.claim import BEST, claimed
    from stepsearch.paths import find_runs

    folder = find_runs(run, BEST)[0]
    return claimed(folder), folder / BEST, folder / "cache"


def _refuse_beside_run(run: Path, context: typer.Context) -> None:
    """What a run has settled is not an option."""
    for option in context.command.params:
        source = option.name and context.get_parameter_source(option.name)
        if source and source.name == "COMMANDLINE" and option.name not in POLISH:
            raise UserError(f"{option.opts[0]} is for schedules: {run} is a run and has its own")


@app.command()
@with_model
def train_npnet(
    schedule: Annotated[
        Path, typer.Argument(help="Makes the images that are scored, and its first step the pairs.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The network (.safetensors).")],
    model: ModelOptions = DEFAULTS,
    negative_prompt: Negative = "",
    pairs: Annotated[int, typer.Option(min=20, help="Of noise and better noise.")] = 5000,
    inversion_scale: Annotated[
        float, typer.Option(min=0, help="Guidance of the way back; that there is the schedule's.")
    ] = 1.0,
    score: Annotated[
        str, typer.Option(help="What says which image is better: classes, or clip:MODEL.")
    ] = "classes",
    prompts: Annotated[
        str, typer.Option(help="Bundled prompts, or any file that stepsample batch takes.")
    ] = "fashion-mnist",
    epochs: Annotated[int, typer.Option(min=1, help="Over the pairs that are kept.")] = 30,
    rate: Annotated[float, typer.Option(min=0, help="Of learning; falls to zero.")] = 1e-3,
    start: Annotated[
        Path | None, typer.Option(help="An NPNet to go on from, such as the authors'.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per network call.")] = 50,
    device: Device = "cpu",
    cache: Annotated[Path, typer.Option(help="Keeps pairs and state: a killed one goes on.")] = (
        Path("runs/npnet")
    ),
) -> None:
    """Train a network of golden noise for a model: one file, for schedules to name."""
    check_file(out)
    from stepsearch.config.parts import SEEDS
    from stepsearch.npnet.command import Asked, train
    from stepsearch.npnet.training import Settings

    if pairs > SEEDS:
        raise UserError(f"--pairs must be at most {SEEDS:,}, got {pairs:,}")
    asked = Asked(
        schedule,
        out,
        pairs,
        inversion_scale,
        score,
        prompts,
        negative_prompt,
        start,
        batch_size,
        cache,
        device,
    )
    train(asked, model, Settings(epochs, rate))


@app.command()
def front(
    runs: Annotated[
        list[Path], typer.Argument(help="Finished runs: their folders or study files.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder, or one page of it all (.html).")
    ] = Path("front"),
    images: Annotated[
        int | None,
        typer.Option(min=8, help="Score all again, on so many fresh seeds, like the first run."),
    ] = None,
    device: Annotated[str, typer.Option(help="Of --images: cpu, cuda:0, …")] = "cpu",
    allow_code: AllowCode = False,
    json: AsJson = False,
) -> None:
    """The best schedule for each number of passes: a chart, a table and a file each; or a page."""
    if out.suffix == ".html":
        check_file(out)
    else:
        check_folder(out)
    from stepsearch.config.code import code
    from stepsearch.report.command import run_front

    with code(allow_code):
        whole = run_front(runs, out, images, device, json)
    if not whole:
        raise typer.Exit(1)  # some are left out, and named above
