"""Options that several commands share: which model, where, and how its images are made."""

import errno
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from stepsampler.errors import UserError, counted, note
from stepsampler.support.options import ModelOptions, choices_of, commands, flag_of, key_of

if TYPE_CHECKING:
    from dataclasses import Field

    from stepsampler.noise import Noise
    from stepsampler.schedule import ModelSpec, Schedule

SHORT = ("sd", "sdxl", "sd3", "flux", "dit")  # models whose noise is known without their files
SD = ModelOptions(SHORT[0])
SHIFTS = {"sd3": 3.0, "flux": 3.158}  # FLUX.1's at 1024 x 1024, e^1.15
SHOWN = 40  # characters of a name that is too long
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


Command = Callable[..., None]


def with_model(command: Command) -> Command:
    """A command whose parameter `model` is a `ModelOptions` has an option for each field of it."""
    return _with(command, commands())


def with_model_of_schedule(command: Command) -> Command:
    """The same for the fields on which a schedule depends; some models go by a short name, too."""
    return _with(command, commands(of_schedule=True), f"{', '.join(SHORT)}, or ")


def with_loading(command: Command) -> Command:
    """The same without the model itself, which is an argument of the command."""
    return _with(command, [f for f in commands(of_schedule=True) if f.name != "id"])


def _with(command: Command, known: "Sequence[Field[Any]]", others: str = "") -> Command:
    """`others` are what a model may be beside what its field says."""
    own = inspect.signature(command)
    options = {key_of(f): f for f in known}

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
            about = (others if field.name == "id" else "") + field.metadata["help"]
            shown = typer.Option(flag, help=about)
            usual = getattr(parameter.default, field.name)
            default = None if isinstance(usual, tuple) else usual
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


def model_of_schedule(options: ModelOptions) -> "tuple[Noise, ModelSpec, str]":
    """Noise, spec and kind of guidance: of a well-known model by a short name, or a loaded one.

    Raises:
        UserError: as `open_model`, or options of files beside a short name.
    """
    from stepsampler.noise import FlowSchedule, NoiseSchedule
    from stepsampler.presets import MODELS

    name = options.id
    others = options.flags_beside(replace(SD, id=name))
    if name in SHORT and others:
        raise UserError(f"{others[0]} goes with the files of a model, and {name} has none")
    if name in SHIFTS:
        guidance = "distilled" if name == "flux" else "classifier-free"
        return FlowSchedule(SHIFTS[name]), MODELS[name], guidance
    if name in SHORT:
        noise = NoiseSchedule.linear() if name == "dit" else NoiseSchedule.scaled_linear()
        return noise, MODELS["sd15" if name == "sd" else name], "classifier-free"
    from stepsampler.models import open_model

    loaded = open_model(options)
    return loaded.noise, loaded.spec, loaded.guidance


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


def check_used(model: ModelOptions, plans: "Sequence[Schedule]") -> None:
    """Refuse a network of golden noise, and statistics, that no schedule goes by.

    Raises:
        UserError: says how a schedule comes to name a network, or which statistics they go by.
    """
    if model.npnet is not None and not any(plan.npnet for plan in plans):
        raise UserError(
            f"--npnet {model.npnet}: no schedule here takes its golden noise; `stepsample make "
            f"SCHEDULE --golden-noise {model.npnet} -o FILE` writes one that does"
        )
    if not model.statistics:
        return
    from stepsampler.statistics.file import read_spec

    named = [plan.statistics for plan in plans if plan.statistics]
    for place in model.statistics:
        spec = read_spec(place)
        like = [one for one in named if one.is_like(spec)]
        if not any(one.digest in (None, spec.digest) or not spec.digest for one in like):
            by = "; ".join(dict.fromkeys(map(str, named))) or "none"
            raise UserError(f"--statistics {place} is {spec}, but the schedules here go by {by}")


def check_folder(out: Path, name: str = "--out") -> None:
    """Refuse a folder that cannot be made or written to, before the work that would go there.

    Raises:
        UserError: it or what it should lie in is a file, or takes no file; or a name is too long.
    """
    import tempfile  # a twentieth of the time of --help

    _check_length(out, name)
    place = next(path for path in (out, *out.parents) if path.exists() or path.is_symlink())
    if not place.is_dir():
        what = "a file" if place.exists() else "a link to nowhere"
        raise UserError(f"{name} must be a folder, but {str(place)!r} is {what}")
    try:  # bits of permission say too little: of root, of a disk that is read-only, of /proc
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(
            f"{name}: nothing can be written in {str(place)!r}: {error.strerror}"
        ) from error


def _check_length(out: Path, name: str) -> None:
    """Each name alone, too: of what lies in a folder that is not there yet nothing else is said."""
    for path in (*map(Path, out.parts), out):
        try:  # `Path.exists` raises or not, by the version of Python
            path.lstat()
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                size, shown = len(os.fsencode(path)), str(path)[:SHOWN]
                raise UserError(
                    f"{name}: {shown}… has {size:,} bytes, a name longer than the disk takes"
                ) from error


def check_file(out: Path, name: str = "--out") -> None:
    """The same for a file that is to be written.

    Raises:
        UserError: it is a folder, a device or a pipe, in whose place the file would be put, or as
            `check_folder`.
    """
    _check_length(out, name)
    if out.exists() and not out.is_file():
        what = "a folder" if out.is_dir() else "a device or a pipe"
        raise UserError(f"{name} must name a file, but {str(out)!r} is {what}")
    check_folder(out.parent, f"the folder of {name}")


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
