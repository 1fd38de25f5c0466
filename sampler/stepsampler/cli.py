"""`stepsample`: make images with a schedule; and the commands about schedules and batches."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stepsampler import cli_batches, cli_schedules
from stepsampler.errors import UserError, run_command_line
from stepsampler.presets import open_schedule
from stepsampler.seeds import parse_seeds

NO_PROMPT = "no prompt: give --prompt or --prompts"


class _GenerateByDefault(TyperGroup):
    """`stepsample best.json …` is `stepsample generate best.json …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["generate", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_GenerateByDefault,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make images with a few-step schedule: stepsample best.json --prompt … -o out/",
)
app.add_typer(cli_schedules.app)
app.add_typer(cli_batches.app)


@app.command()
def generate(
    schedule: Annotated[str, typer.Argument(help="A preset's name or a schedule file (JSON).")],
    prompt: Annotated[list[str] | None, typer.Option(help="May be given several times.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file, one prompt a line.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Such as 0-15 or 3,5,8: every prompt with every seed.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the images.")] = Path("out"),
    model: Annotated[
        str, typer.Option(help="tiny, a local folder, a hub id or a .safetensors checkpoint.")
    ] = "tiny",
    config: Annotated[
        str | None, typer.Option(help="Folder or hub id with the configs of a checkpoint file.")
    ] = None,
    vae: Annotated[str | None, typer.Option(help="Folder or hub id of another VAE.")] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="FILE or FILE:WEIGHT; may be given several times.")
    ] = None,
    textual_inversion: Annotated[
        list[str] | None, typer.Option(help="FILE with a new word; may be given several times.")
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What the images should not show.")] = "",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per network call.")] = 16,
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, …")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
) -> None:
    """Make images: one file per prompt and seed, and grid.png.

    Without --seeds, prompt k gets seed k. A class-conditional model takes class numbers or names as
    prompts, an unconditional one takes none but --seeds.
    """
    plan = open_schedule(schedule)
    texts = _prompts(prompt or [], prompts)
    if not texts and seeds is None:
        raise UserError(NO_PROMPT)
    if seeds is None:
        pairs = list(enumerate(texts))
    else:
        pairs = [(seed, text) for text in texts or [""] for seed in parse_seeds(seeds)]
    if dtype not in ("float32", "float16", "bfloat16"):
        raise UserError(f"--dtype must be float32, float16 or bfloat16, got {dtype!r}")

    from rich.progress import track  # torch and diffusers load here, not for --help

    from stepsampler.generate import generate as make
    from stepsampler.models import load as load_model
    from stepsampler.pictures import MAX_SHEET, save_png, save_sheet

    loaded = load_model(
        model,
        device,
        dtype,
        size,
        config=config,
        vae=vae,
        loras=lora or [],
        textual_inversions=textual_inversion or [],
    )
    if not texts and loaded.conditional:
        raise UserError(NO_PROMPT)
    texts = texts or [""]
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
    done = 0
    for batch in track(batches, "sampling", total=-(-len(pairs) // batch_size)):
        for seed, image in zip(batch.seeds, batch.images, strict=True):
            line = done // (len(pairs) // len(texts))
            save_png(image, out / f"p{line:04d}-s{seed:05d}.png")
            done += 1
            if len(shown) < MAX_SHEET:
                shown.append(image)
    columns = len(pairs) // len(texts) if len(texts) > 1 and seeds else None
    save_sheet(torch.stack(shown), out / "grid.png", columns)
    typer.echo(
        f"{out}: {done} images of {plan.num_steps} steps, {plan.passes} passes each, and grid.png"
    )


def _prompts(given: list[str], file: Path | None) -> list[str]:
    texts = list(given)
    if file:
        try:
            texts += [line for line in file.read_text(encoding="utf-8").splitlines() if line]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts {file}: {error}") from error
    return texts


def main() -> None:
    run_command_line(app, "stepsample")
