"""The command `stepsearch evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from stepsampler.cli.options import Device, Negative, check_file, with_model
from stepsampler.support.options import DEFAULTS, ModelOptions
from stepsearch.cli.options import AsJson

app = typer.Typer()


@app.command()
@with_model
def evaluate(
    what: Annotated[
        list[Path] | None,
        typer.Argument(help="Schedules, AMED's predictors, folders, zips or .npz of images."),
    ] = None,
    stock: Annotated[
        list[int] | None,
        typer.Option(help="The model under its own scheduler with so many steps."),
    ] = None,
    model: ModelOptions = DEFAULTS,
    negative_prompt: Negative = "",
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
            help="texture, lite0, squeezenet, untrained, lite0-whole, inception[:PATH], "
            "clip:MODEL, dinov2:MODEL, or patches, which needs no network; "
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
    exif: Annotated[
        str, typer.Option(help="Turn files as their EXIF orientation says: apply or ignore.")
    ] = "apply",
    prompts: Annotated[
        str, typer.Option(help="Bundled prompts, or any file that stepsample batch takes.")
    ] = "fashion-mnist",
    clip_score: Annotated[
        str | None, typer.Option(help="Folder or hub id of the CLIP model for the CLIP score.")
    ] = None,
    clip_long_prompts: Annotated[
        str, typer.Option(help="How the CLIP score reads captions: cut, or chunk.")
    ] = "cut",
    distance: Annotated[
        list[str] | None,
        typer.Option(help="fd, fd-infinity, kid or prc (precision and recall); default fd."),
    ] = None,
    images: Annotated[int, typer.Option(help="n, at least 2.")] = 1000,
    seeds: Annotated[
        str, typer.Option("--range", help="Seeds: test, selection or search.")
    ] = "test",
    first_seed: Annotated[int | None, typer.Option(help="Instead of the range's.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per network call.")] = 50,
    device: Device = "cpu",
    cache: Annotated[Path, typer.Option(help="What is measured once is kept here.")] = Path(
        "runs/evaluate"
    ),
    with_: Annotated[
        list[Path] | None, typer.Option("--with", help="Earlier results, to compare with.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Result file (.json), or a page (.html).")
    ] = None,
    profile: Annotated[bool, typer.Option(help="Say where the time went.")] = False,
    json: AsJson = False,
) -> None:
    """Score and compare schedules, stock pipelines or folders of images, with error bars.

    Given several (`evaluate a.json b.json`), it compares them: all get the same seeds, and the
    differences to the first contender are paired.
    """
    if out is not None:
        check_file(out)
    from stepsearch.compare.evaluating import Asked  # torch loads here, not for --help

    asked = Asked(
        what or (),
        stock or (),
        model,
        negative_prompt,
        scheduler,
        timestep_spacing,
        guidance_scale,
        extractor or ["texture"],
        reference,
        fit,
        exif,
        prompts,
        clip_score,
        clip_long_prompts,
        distance or ["fd"],
        images,
        seeds,
        first_seed,
        batch_size,
        device,
        cache,
        with_ or (),
    )
    from stepsearch.report.command import run_evaluation

    if not run_evaluation(asked, out, profile, json):
        raise typer.Exit(1)


# By the name under which some look for it
app.command("compare", help="The same as `evaluate`.")(evaluate)
