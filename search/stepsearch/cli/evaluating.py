"""The command `stepsearch evaluate`."""

import sys
from math import inf, isfinite
from pathlib import Path
from typing import Annotated, cast

import typer

from stepsampler.cli.options import Device, Negative, check_npnet, with_model
from stepsampler.errors import UserError
from stepsampler.support.options import DEFAULTS, ModelOptions

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
            help="texture, lite0, squeezenet, lite0-whole, inception[:PATH], clip:MODEL, "
            "dinov2:MODEL, or patches, which needs no network; "
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
) -> None:
    """Score and compare schedules, stock pipelines or folders of images, with error bars.

    Given several (`evaluate a.json b.json`), it compares them: all get the same seeds, and the
    differences to the first contender are paired.
    """
    if fit not in ("crop", "squash512", "none"):
        raise UserError(f"--fit must be crop, squash512 or none, got {fit!r}")
    if exif not in ("apply", "ignore"):
        raise UserError(f"--exif must be apply or ignore, got {exif!r}")
    if timestep_spacing not in (None, "leading", "trailing", "linspace"):
        raise UserError(
            f"--timestep-spacing must be leading, trailing or linspace, got {timestep_spacing!r}"
        )
    if not stock and (guidance_scale, scheduler, timestep_spacing) != (None, None, None):
        raise UserError(
            "--guidance-scale, --scheduler and --timestep-spacing are of --stock, which is not "
            "given"
        )
    if clip_score is None and clip_long_prompts != "cut":
        raise UserError("--clip-long-prompts is of --clip-score, which is not given")
    from stepsearch.config.parts import SEEDS

    _in_range("--images", images, 2, SEEDS)
    _in_range("--batch-size", batch_size, 1)
    for steps in stock or ():
        _in_range("--stock", steps, 1)
    for name, value, low, high in (
        ("--guidance-scale", guidance_scale, 0, inf),
        ("--first-seed", first_seed, 0, 2**62),
    ):
        if value is not None:
            _in_range(name, value, low, high)

    # torch loads here, not for --help
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from stepsampler.models import check_device, open_model
    from stepsampler.presets import open_schedule
    from stepsampler.support.images.pixels import Exif, Fit
    from stepsearch.compare.command import (
        cuts_of,
        images_of,
        load_metrics,
        notes_of,
        schedules_on,
        size_of_files,
        sort_out,
    )
    from stepsearch.compare.contenders import Contender, OnArray, OnFiles, OnStock
    from stepsearch.compare.harness import Clock, Harness
    from stepsearch.compare.learned import SUFFIX, OnPredictor
    from stepsearch.compare.table import (
        as_data,
        check,
        compare,
        identity,
        join,
        read_earlier,
        save,
        table,
        where_time_went,
    )
    from stepsearch.config.measuring import CLASSES
    from stepsearch.metrics.alignment import load_alignment
    from stepsearch.metrics.evaluator import (
        additions_digest,
        check_negative_prompt,
        load_prompts,
        model_digest,
    )
    from stepsearch.metrics.images import BrokenFilesError
    from stepsearch.metrics.pretrained import ClipScore
    from stepsearch.metrics.protocol import Seeds

    check_device(device)
    fitting, turning = cast(Fit, fit), cast(Exif, exif)  # checked above
    distances = distance or ["fd"]
    check(distances, images)
    chosen = Seeds.of(seeds, images, first_seed)
    learned = [path for path in what or () if path.suffix == SUFFIX]
    schedules, files = sort_out([path for path in what or () if path not in learned])
    if not (schedules or files or stock or learned):
        raise UserError("nothing to score: give a schedule, a folder of images, or --stock STEPS")
    texts = load_prompts(prompts)
    clock = Clock(torch.device(device))
    contenders: list[Contender] = []
    size = side = model.size
    judge = None  # of files: without a model and --size, as they are
    if schedules or stock or learned:
        check_npnet(model, [open_schedule(path) for path in schedules])
        loaded = open_model(model, device)
        check_negative_prompt(loaded, negative_prompt)
        clock.watch(loaded)
        size = side = loaded.size
        judge = load_alignment(CLASSES, texts, device)
        additions = additions_digest(loaded, model.loras, model.textual_inversions, negative_prompt)
        digest = " ".join([model_digest(loaded), *additions])
        contenders += schedules_on(loaded, digest, schedules, negative_prompt)
        contenders += [OnPredictor(p, loaded, digest, negative_prompt) for p in learned]
        own = (guidance_scale, scheduler, timestep_spacing, negative_prompt)
        contenders += [OnStock(loaded, digest, steps, *own) for steps in stock or ()]
    elif given := [
        *(flag for flag in model.flags if flag not in ("--size", "--dtype")),
        *(["--negative-prompt"] if negative_prompt else []),
    ]:
        raise UserError(
            f"{', '.join(given)}: of the model, but nothing that it makes is scored: give a "
            "schedule or --stock"
        )
    elif size is None and fit == "crop":
        size = size_of_files(files, images, turning)
    captioned = clip_score is not None
    broken: dict[Path, dict[str, str]] = {}  # files that turn out to be behind their heads

    def on_files() -> list[OnFiles | OnArray]:
        prepared = (chosen.range, side, fitting, turning)
        return images_of(files, *prepared, captioned=captioned, broken=broken)

    of_model = list(contenders)
    contenders += on_files()
    fitted = None if fit == "none" else size
    real = (reference, fitted, fitting, turning)
    metrics = load_metrics(extractor or ["texture"], *real, cache, device)
    clip = ClipScore(clip_score, device, clip_long_prompts) if clip_score else None
    harness = Harness(metrics, texts, batch_size, cache, clock, judge, clip)
    settings = {
        **model.told,
        "model": model.id if schedules or stock or learned else None,
        "negative_prompt": negative_prompt,
        "prompts": prompts,
        "reference": reference,
        "range": seeds,
        "fit": fit,
        "exif": exif,
        "size": size,
    }
    now = identity(harness, chosen.range, settings)
    earlier = [(read_earlier(path, now), path) for path in with_ or ()]
    width = None if sys.stdout.isatty() else 160
    # names of files are as they are: no markup
    console = Console(soft_wrap=True, highlight=False, width=width, markup=False, emoji=False)
    cut = clip.crops(size) if clip else []
    for note in cut + cuts_of(contenders, harness, chosen.range):
        console.print(note)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=None)
        while True:
            try:
                result = compare(
                    contenders,
                    harness,
                    chosen,
                    distances,
                    lambda done, total: progress.update(task, completed=done, total=total),
                )
                break
            except BrokenFilesError as error:  # what was measured is in the cache
                broken.setdefault(error.source, {}).update(error.broken)
                contenders = [*of_model, *on_files()]
    for data, path in earlier:
        result = join(result, data, path)
    console.print(table(result))
    for note in notes_of(result.entries, metrics):
        console.print(note)
    if profile:
        console.print(where_time_went(harness))
    if out and out.suffix == ".html":
        from stepsearch.report.command import write_comparison

        data = as_data(result, harness, settings)
        write_comparison(data, contenders, chosen.range, texts, batch_size, out)
        console.print(f"{out}: the page")
    elif out:
        save(as_data(result, harness, settings), out)
        console.print(f"{out}: every number with its identity")
    for sentence in result.left_out:
        console.print(f"left out: {sentence}")
    unreadable = [metric.reference.unreadable for metric in metrics]
    unreadable += [len(c.files.broken) for c in contenders if isinstance(c, OnFiles)]
    if result.left_out or any(unreadable):  # and left out, as the notes say
        raise typer.Exit(1)


def _in_range(name: str, value: float, low: float, high: float = inf) -> None:
    if not (isfinite(value) and low <= value <= high):
        most = "" if high == inf else f" and at most {high:,}"
        raise UserError(f"{name} must be at least {low}{most}, got {value}")
