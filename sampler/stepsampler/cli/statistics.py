"""The command of `stepsample` that makes statistics of a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepsampler.cli.options import (
    NO_PROMPT,
    BatchSize,
    Device,
    Negative,
    PromptFile,
    check_file,
    with_model,
)
from stepsampler.errors import UserError, counted, note
from stepsampler.support.options import DEFAULTS, ModelOptions

if TYPE_CHECKING:
    from stepsampler.support.images.folder import Pictures

app = typer.Typer()


@app.command()
@with_model
def statistics(
    out: Annotated[Path, typer.Option("--out", "-o", help="A .safetensors file.")],
    guidance_scale: Annotated[
        float, typer.Option(min=0, help="Of the schedules that shall go by them; 1 is none.")
    ],
    prompt: Annotated[list[str] | None, typer.Option(help="May be given several times.")] = None,
    prompts: PromptFile = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder: states are these images with noise, not the model's own."),
    ] = None,
    intervals: Annotated[int, typer.Option(min=4, help="Of the grid, even in log SNR.")] = 250,
    samples: Annotated[int, typer.Option(min=2, help="Trajectories of the model.")] = 1024,
    model: ModelOptions = DEFAULTS,
    negative_prompt: Negative = "",
    batch_size: BatchSize = 16,
    device: Device = "cpu",
) -> None:
    """Make the statistics by which the solver dpm-v3 goes; run it again to go on after a kill.

    Each sample takes a guided call at each level, and one more at every fourth; of images two at
    each level. Prompts take turns, and so do images. Without prompts each image has the text of
    NAME.txt beside it, or none.
    """
    from stepsampler.support.captions import given_prompts

    if out.suffix != ".safetensors":
        raise UserError(f"--out must name a .safetensors file, got {str(out)!r}")
    check_file(out)
    texts, _ = given_prompts(prompt, prompts)

    from rich.progress import Progress

    from stepsampler.estimate import estimate, passes, suited
    from stepsampler.models import note_cuts, open_model
    from stepsampler.statistics.file import read_statistics
    from stepsampler.support.images.folder import Pictures

    loaded = suited(open_model(model, device))
    pictures = Pictures.read(images, loaded.size, samples) if images else None
    if pictures and not texts and loaded.conditional:
        texts = texts_of(pictures)
    if not texts and loaded.conditional:
        raise UserError(NO_PROMPT)
    texts = texts or [""]
    note_cuts(loaded, texts, [negative_prompt])
    progress = estimate(
        loaded,
        texts,
        guidance_scale,
        intervals,
        samples,
        out,
        batch_size=batch_size,
        negative_prompt=negative_prompt,
        pictures=pictures,
        additions=model.named,
    )
    done = next(progress)
    with Progress() as bar:
        task = bar.add_task("trajectories", total=samples, completed=done)
        for done in progress:
            bar.update(task, completed=done)
    found = read_statistics(str(out), loaded.noise, loaded.shape)
    settings = (guidance_scale, intervals, samples, batch_size)
    distilled = loaded.guidance == "distilled"
    took = passes(*settings, distilled=distilled, pictures=pictures is not None)
    typer.echo(f"{out}: statistics {found.spec}; {found.errors}; took {took:,} network passes")
    if pictures and pictures.refused:
        raise typer.Exit(1)


def texts_of(pictures: "Pictures") -> list[str]:
    """Those beside images; how many have none is told."""
    texts = [picture.text for picture in pictures.found]
    if without := texts.count(""):
        count = counted(len(texts), "image")
        note(f"without a text beside them, and so without a prompt: {without:,} of {count}")
    return texts
