"""The commands of `stepsearch` that compare: placement, evaluate, front."""

from math import inf, isfinite
from pathlib import Path
from typing import Annotated

import typer

from stepsampler.cli.options import Config, Loras, ModelName, Vae, Words
from stepsampler.errors import UserError

app = typer.Typer()


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


def _in_range(name: str, value: float, low: float, high: float = inf) -> None:
    if not (isfinite(value) and low <= value <= high):
        most = "" if high == inf else f" and at most {high:,}"
        raise UserError(f"{name} must be at least {low}{most}, got {value}")
