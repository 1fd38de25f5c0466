"""The commands of `stepsample` that make many images: a batch over captions, and a grid."""

from pathlib import Path
from typing import Annotated

import typer

from stepsampler.cli.options import (
    NO_PROMPT,
    BatchSize,
    Device,
    GuidanceScale,
    Negative,
    PromptFile,
    ScheduleName,
    check_file,
    check_folder,
    check_used,
    note_unguided,
    open_plan,
    with_model,
)
from stepsampler.errors import UserError, counted, note
from stepsampler.support.options import DEFAULTS, ModelOptions

app = typer.Typer()

LABEL = 40  # characters of a schedule's name beside a row


@app.command()
@with_model
def batch(
    schedule: ScheduleName,
    prompts: Annotated[
        Path, typer.Option(help="Text, JSON (COCO, MJHQ, lists), JSON lines, CSV, TSV, parquet.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for images and manifest.")],
    column: Annotated[
        str | None,
        typer.Option(help="Of CSV, TSV, parquet or JSON objects; a number where no header is."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only that many captions.")] = None,
    shuffle_seed: Annotated[int | None, typer.Option(help="Mix the captions first.")] = None,
    first_seed: Annotated[
        int, typer.Option(min=0, max=2**62, help="Image k has this seed + k.")
    ] = 0,
    model: ModelOptions = DEFAULTS,
    guidance_scale: GuidanceScale = None,
    negative_prompt: Negative = "",
    batch_size: BatchSize = 16,
    device: Device = "cpu",
) -> None:
    """Make one image for each caption of a file; run it again to go on after a kill.

    COCO: one caption per image, that of the lowest annotation id, by image id. What is no caption,
    or what the model refuses, is left out and listed in left-out.jsonl; the exit code is then 1.
    """
    from stepsampler.support.captions import LeftOut, read_set, shown

    check_folder(out)
    plan = open_plan(schedule, guidance_scale, model)
    check_used(model, [plan])
    found = read_set(prompts, column, limit, shuffle_seed)
    captions = found.items
    note_unguided(plan, negative_prompt)
    for sentence in found.notes:
        note(f"{prompts}: {sentence}")

    from rich.progress import Progress

    from stepsampler.batch import LEFT_OUT, MANIFEST, read_left_out, run_batch
    from stepsampler.models import open_model

    loaded = open_model(model, device)
    progress = run_batch(
        loaded,
        plan,
        captions,
        out,
        first_seed=first_seed,
        negative_prompt=negative_prompt,
        batch_size=batch_size,
        additions=model.named,
    )
    done = next(progress)  # a folder of something else is refused before any bar
    with Progress() as bar:
        task = bar.add_task("sampling", total=len(found.captions), completed=done)
        for done in progress:
            bar.update(task, completed=done)
    each = counted(loaded.passes(plan), "pass")
    typer.echo(f"{out}: {counted(done, 'image')} of {each} each, and {MANIFEST}")
    lost = [line for line in read_left_out(out) if line["index"] < len(captions)]
    if lost:
        first = [
            LeftOut(line.get("place", f"number {line['index']}"), line["reason"]) for line in lost
        ]
        count = f"{len(lost):,} of {counted(len(captions), 'caption')}"
        note(f"{out}: {count} left out: {shown(first)}; all are in {LEFT_OUT}")
        raise typer.Exit(1)


@app.command()
@with_model
def grid(
    schedules: Annotated[list[str], typer.Argument(help="Presets or schedule files, one a row.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG file.")] = Path("grid.png"),
    prompt: Annotated[list[str] | None, typer.Option(help="May be given several times.")] = None,
    prompts: PromptFile = None,
    seeds: Annotated[str, typer.Option(help="Such as 0-3: every prompt with every seed.")] = "0",
    model: ModelOptions = DEFAULTS,
    guidance_scale: GuidanceScale = None,
    negative_prompt: Negative = "",
    batch_size: BatchSize = 16,
    device: Device = "cpu",
) -> None:
    """Compare schedules: a row for each, with the same prompts and seeds, and both written on."""
    from stepsampler.support.captions import given_prompts
    from stepsampler.support.seeds import parse_seeds

    if out.suffix.lower() != ".png":
        raise UserError(f"--out must name a .png file, got {str(out)!r}")
    check_file(out)
    plans = [open_plan(name, guidance_scale, model) for name in schedules]
    check_used(model, plans)
    texts, others = given_prompts(prompt, prompts)
    if not texts:
        raise UserError(NO_PROMPT)
    pairs = [(text, seed) for text in texts for seed in parse_seeds(seeds)]

    import torch

    from stepsampler.generate import generate
    from stepsampler.models import note_cuts, open_model
    from stepsampler.models.pixels import strips
    from stepsampler.support.pictures import MAX_SHEET, keeping, save_sheet

    if len(plans) * len(pairs) > MAX_SHEET:
        raise UserError(f"a grid has at most {MAX_SHEET} images, got {len(plans) * len(pairs)}")
    loaded = open_model(model, device)
    note_cuts(loaded, texts, [negative_prompt])
    for plan in plans:
        note_unguided(plan, negative_prompt)
    images = [
        strips(made.made)
        for plan in plans
        for made in generate(
            loaded,
            plan,
            [text for text, _ in pairs],
            [seed for _, seed in pairs],
            negative_prompts=negative_prompt,
            batch_size=batch_size,
        )
    ]
    labels = [
        f"{Path(name).name[:LABEL]} ({counted(loaded.passes(plan), 'pass')})"
        for name, plan in zip(schedules, plans, strict=True)
    ]
    captions = [f"{text} [{seed}]" for text, seed in pairs]
    sheet = torch.cat(images)
    place = keeping(out, lambda path: save_sheet(sheet, path, len(pairs), labels, captions))
    taken = f"; another picture has the name {out.name}" if place != out else ""
    typer.echo(f"{place}: {counted(len(plans), 'row')} of {counted(len(pairs), 'image')}{taken}")
    if others:
        raise typer.Exit(1)
