"""`stepsample`: make images with a schedule; and the commands about schedules and batches."""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stepsampler.cli import batches, golden, schedules, statistics
from stepsampler.cli.options import (
    NO_PROMPT,
    BatchSize,
    Device,
    GuidanceScale,
    Negative,
    PromptFile,
    ScheduleName,
    check_folder,
    check_used,
    note_unguided,
    open_plan,
    with_model,
)
from stepsampler.errors import UserError, counted
from stepsampler.support.options import DEFAULTS, ModelOptions

NAMED = 3  # files of a line about those with other names


class _GenerateByDefault(TyperGroup):
    """`stepsample best.json …` is `stepsample generate best.json …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and not self._is_command(args[0]):
            args = ["generate", *args]
        return super().parse_args(ctx, args)

    def _is_command(self, name: str) -> bool:
        """Whether it is one, or meant as one: typer then says which it is near."""
        if name in self.commands:
            return True
        return bool(get_close_matches(name, self.commands, 1, 0.8)) and not Path(name).exists()


app = typer.Typer(
    cls=_GenerateByDefault,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make images with a few-step schedule: stepsample best.json --prompt … -o out/",
)
app.add_typer(schedules.app)
app.add_typer(batches.app)
app.add_typer(statistics.app)
app.add_typer(golden.app)


@app.command()
@with_model
def generate(
    schedule: ScheduleName,
    prompt: Annotated[list[str] | None, typer.Option(help="May be given several times.")] = None,
    prompts: PromptFile = None,
    seeds: Annotated[
        str | None, typer.Option(help="Such as 0-15 or 3,5,8: every prompt with every seed.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the images.")] = Path("out"),
    model: ModelOptions = DEFAULTS,
    guidance_scale: GuidanceScale = None,
    negative_prompt: Negative = "",
    batch_size: BatchSize = 16,
    device: Device = "cpu",
) -> None:
    """Make images: one file per prompt and seed, and grid.png. Other images there stay.

    A video is an animated PNG, and three frames of it are on the grid.

    Without --seeds, prompt k gets seed k. A class-conditional model takes class numbers or names as
    prompts, an unconditional one takes none but --seeds.
    """
    from stepsampler.support.captions import given_prompts
    from stepsampler.support.seeds import parse_seeds

    check_folder(out)
    plan = open_plan(schedule, guidance_scale, model)
    check_used(model, [plan])
    texts, others = given_prompts(prompt, prompts)
    if not texts and seeds is None:
        raise UserError(NO_PROMPT)
    if seeds is None:
        pairs = list(enumerate(texts))
    else:
        pairs = [(seed, text) for text in texts or [""] for seed in parse_seeds(seeds)]
    from rich.progress import track

    from stepsampler.generate import generate as make
    from stepsampler.models import note_cuts, open_model
    from stepsampler.models.pixels import strips
    from stepsampler.support.pictures import (
        MAX_SHEET,
        SHEET,
        image_name,
        keep_png,
        keeping,
        save_sheet,
    )

    loaded = open_model(model, device)
    if not texts and loaded.conditional:
        raise UserError(NO_PROMPT)
    texts = texts or [""]
    note_cuts(loaded, texts, [negative_prompt])
    note_unguided(plan, negative_prompt)
    batches = make(
        loaded,
        plan,
        [text for _, text in pairs],
        [seed for seed, _ in pairs],
        negative_prompts=negative_prompt,
        batch_size=batch_size,
    )
    import torch

    shown: list[torch.Tensor] = []
    moved: list[str] = []
    done = 0
    for batch in track(batches, "sampling", total=-(-len(pairs) // batch_size)):
        for seed, image, strip in zip(batch.seeds, batch.made, strips(batch.made), strict=True):
            line = done // (len(pairs) // len(texts))
            path = out / image_name(line, seed)
            place = keep_png(image, path)
            moved += [place.name] if place != path else []
            done += 1
            if len(shown) < MAX_SHEET:
                shown.append(strip)
    columns = len(pairs) // len(texts) if len(texts) > 1 and seeds else None
    sheet = torch.stack(shown)
    grid = keeping(out / SHEET, lambda path: save_sheet(sheet, path, columns))
    typer.echo(
        f"{out}: {counted(done, 'image')} of {counted(plan.num_steps, 'step')}, "
        f"{counted(loaded.passes(plan), 'pass')} each, and {grid.name}"
    )
    if moved:
        more = f" and {len(moved) - NAMED} more" if len(moved) > NAMED else ""
        typer.echo(
            f"{len(moved)} of them got a number, as other images have their names: "
            f"{', '.join(moved[:NAMED])}{more}"
        )
    if others:  # some of --prompts were left out, and are named above
        raise typer.Exit(1)
