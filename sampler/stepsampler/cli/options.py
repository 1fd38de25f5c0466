"""Options that several commands share: which model, where, and how its images are made."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepsampler.errors import UserError, note

if TYPE_CHECKING:
    from stepsampler.models import LatentModel
    from stepsampler.schedule import Schedule

NO_PROMPT = "no prompt: give --prompt or --prompts"

ScheduleName = Annotated[str, typer.Argument(help="A preset's name or a schedule file (JSON).")]
ModelName = Annotated[
    str, typer.Option(help="tiny, tiny-second, a folder, a hub id or a .safetensors checkpoint.")
]
Config = Annotated[
    str | None, typer.Option(help="Folder or hub id with the configs of a checkpoint file.")
]
Variant = Annotated[
    str | None,
    typer.Option(help="Which weights of a folder or hub id, such as fp16."),
]
Prediction = Annotated[
    str | None,
    typer.Option(
        "--prediction-type",
        help="epsilon, v_prediction or sample; overrules what checkpoint and config say.",
    ),
]
Vae = Annotated[
    str | None, typer.Option(help="Folder, hub id or .safetensors file of another VAE.")
]
Loras = Annotated[
    list[str] | None, typer.Option(help="FILE or FILE:WEIGHT; may be given several times.")
]
Words = Annotated[
    list[str] | None, typer.Option(help="FILE with a new word; may be given several times.")
]
ClipSkip = Annotated[
    int | None,
    typer.Option(help="Layers of CLIP to leave out, as diffusers counts: A1111's number less 1."),
]
LongPrompts = Annotated[
    str, typer.Option(help="cut, or chunk: all of a prompt, in parts of CLIP's length.")
]
PromptFile = Annotated[
    Path | None, typer.Option(help="Text with a prompt a line, or any other file as for batch.")
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(help="Mean of the guided steps; the shape of the schedule's guidance stays."),
]
Negative = Annotated[str, typer.Option(help="What the images should not show.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per network call.")]
Size = Annotated[int | None, typer.Option(min=1, help="Side of the images in pixels.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, …")]
Dtype = Annotated[str, typer.Option(help="float32, float16 or bfloat16.")]


def open_plan(name: str, guidance_scale: float | None) -> "Schedule":
    """Read a schedule, or take a preset, with its guidance scaled where a scale is given."""
    from stepsampler.presets import open_schedule

    plan = open_schedule(name)
    if guidance_scale is None:
        return plan
    from stepsampler.grids import scale_guidance

    try:
        return scale_guidance(plan, guidance_scale)
    except UserError as error:
        raise UserError(f"--guidance-scale: {name}: {error}") from error


def note_unguided(plan: "Schedule", negative_prompt: str) -> None:
    """Say that a negative prompt changes nothing where no step is guided."""
    if negative_prompt and all(
        s.guidance_scale == 1 for s in (*plan.steps, plan.golden_noise) if s
    ):
        note("no step of the schedule is guided: the negative prompt has no effect")


def check_folder(out: Path, name: str = "--out") -> None:
    """Refuse a folder that cannot be made, before the images that would go there.

    Raises:
        UserError: it or what it should lie in is a file.
    """
    for path in (out, *out.parents):
        if path.exists():
            if not path.is_dir():
                raise UserError(f"{name} must be a folder, but {str(path)!r} is a file")
            return


def open_model(
    model: str,
    device: str,
    dtype: str,
    size: int | None,
    config: str | None,
    vae: str | None,
    lora: list[str] | None,
    textual_inversion: list[str] | None,
    variant: str | None,
    prediction_type: str | None,
    clip_skip: int | None,
    long_prompts: str,
) -> "LatentModel":
    """Load what the options name; torch and diffusers load here, not for --help."""
    if dtype not in ("float32", "float16", "bfloat16"):
        raise UserError(f"--dtype must be float32, float16 or bfloat16, got {dtype!r}")
    from stepsampler.models import load

    return load(
        model,
        device,
        dtype,
        size,
        config=config,
        variant=variant,
        prediction_type=prediction_type,
        vae=vae,
        loras=lora or [],
        textual_inversions=textual_inversion or [],
        clip_skip=clip_skip,
        long_prompts=long_prompts,
    )
