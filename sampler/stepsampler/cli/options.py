"""Options that several commands share: which model, where, and how its images are made."""

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from stepsampler.errors import UserError, counted, note
from stepsampler.support.options import ModelOptions, choices_of, commands, flag_of, key_of

if TYPE_CHECKING:
    from dataclasses import Field

    from stepsampler.schedule import Schedule

NO_PROMPT = "no prompt: give --prompt or --prompts"

ScheduleName = Annotated[str, typer.Argument(help="A preset's name or a schedule file (JSON).")]
PromptFile = Annotated[
    Path | None, typer.Option(help="Text with a prompt a line, or any other file as for batch.")
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(help="Mean of the guided steps; the shape of the schedule's guidance stays."),
]
Negative = Annotated[str, typer.Option(help="What the images should not show.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per network call.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, …")]


def with_model(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `model` is a `ModelOptions` has an option for each field of it."""
    own = inspect.signature(command)
    options = {key_of(f): f for f in commands()}

    @wraps(command)
    def called(**given: Any) -> None:
        chosen: dict[str, Any] = {}
        for key, field in options.items():
            value = given.pop(key)
            chosen[field.name] = tuple(value or ()) if isinstance(field.default, tuple) else value
        command(model=ModelOptions(**chosen), **given)

    parameters = []
    for parameter in own.parameters.values():
        if parameter.name != "model":
            parameters.append(parameter)
            continue
        for key, field in options.items():
            flag = flag_of(field)
            if bool in get_args(field.type):
                flag += f"/--no-{flag.removeprefix('--')}"
            shown = typer.Option(flag, help=field.metadata["help"])
            default = None if isinstance(field.default, tuple) else field.default
            kind: Any = Annotated[_kind(field), shown]
            parameters.append(parameter.replace(name=key, annotation=kind, default=default))
    called.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    return called


def _kind(field: "Field[Any]") -> Any:
    """The type that the command line reads; what is no plain number is read by `ModelOptions`."""
    if isinstance(field.default, tuple):
        return list[str] | None
    if choices_of(field) or str in get_args(field.type):
        return str | None if field.default is None else str
    return field.type


def open_plan(name: str, guidance_scale: float | None, model: ModelOptions) -> "Schedule":
    """Read a schedule, or take a preset, with its guidance scaled where a scale is given."""
    from stepsampler.presets import open_schedule

    known = []
    if model.statistics:
        from stepsampler.statistics.file import read_spec

        known = [read_spec(place) for place in model.statistics]
    plan = open_schedule(name, known)
    note_lack(name, plan)
    if guidance_scale is None:
        return plan
    from stepsampler.grids import scale_guidance

    try:
        return scale_guidance(plan, guidance_scale)
    except UserError as error:
        raise UserError(f"--guidance-scale: {name}: {error}") from error


def open_by_statistics(name: str, place: str | None) -> "Schedule":
    """Read a schedule, or take a preset, with the statistics that are given for it.

    Raises:
        UserError: it goes by none, or by others.
    """
    from stepsampler.presets import open_schedule

    if place is None:
        plan = open_schedule(name)
        note_lack(name, plan)
        return plan
    from stepsampler.statistics.file import read_spec

    spec = read_spec(place)
    plan = open_schedule(name, [spec])
    if plan.statistics is None:
        lacks = plan.provenance.get("lacks")
        why = f"is {spec}, but {name} lacks {lacks}" if lacks else f"has no effect on {name}"
        raise UserError(f"--statistics {place} {why}")
    return plan


def note_lack(name: str, plan: "Schedule") -> None:
    """Say what a preset would need to be what was published."""
    if lacks := plan.provenance.get("lacks"):
        note(f"{name} lacks {lacks}")


def note_unguided(plan: "Schedule", negative_prompt: str) -> None:
    """Say that a negative prompt changes nothing where no step is guided."""
    if negative_prompt and all(s.guidance_scale == 1 for s in (*plan.steps, plan.raw_noise) if s):
        note("no step of the schedule is guided: the negative prompt has no effect")


def check_npnet(model: ModelOptions, plans: "Sequence[Schedule]") -> None:
    """Refuse a network of golden noise that no schedule names.

    Raises:
        UserError: says how a schedule comes to name one.
    """
    if model.npnet is not None and not any(plan.npnet for plan in plans):
        raise UserError(
            f"--npnet {model.npnet}: no schedule here takes its golden noise; `stepsample make "
            f"SCHEDULE --golden-noise {model.npnet} -o FILE` writes one that does"
        )


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


def cost_of(plan: "Schedule") -> str:
    """What an image costs, in words."""
    return f"{counted(plan.num_steps, 'step')}, {counted(plan.passes, 'pass')} per image"


def numbers_of(option: str, text: str | None, count: int) -> list[float]:
    """So many numbers with commas between.

    Raises:
        UserError: something else.
    """
    try:
        numbers = [float(part) for part in (text or "").split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise UserError(f"{option} must be {count} numbers with commas between, got {text!r}")
    return numbers
