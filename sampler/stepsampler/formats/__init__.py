"""Schedules in other tools' words, and back: ComfyUI, stable-diffusion.cpp, stock diffusers.

What a tool cannot hold is refused, or, where it is asked for, left out and listed; so is what a
text says and a schedule does not hold.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from stepsampler.errors import UserError
from stepsampler.formats import comfyui, comfyui_workflow, sdcpp, stock
from stepsampler.formats.common import Options, Reading, Target, Text
from stepsampler.schedule import Schedule

__all__ = ["FORMATS", "Options", "Reading", "Target", "Text", "export", "read", "reading"]


class Format(NamedTuple):
    """One tool."""

    export: Callable[[Schedule, Options], Text]
    read: Callable[[str, Target], Reading]


FORMATS = {
    "comfyui": Format(comfyui.export, comfyui.read),
    "comfyui-workflow": Format(comfyui_workflow.export, comfyui.read),
    "sd.cpp": Format(sdcpp.export, sdcpp.read),
    "diffusers": Format(stock.export, stock.read),
}
WITHOUT = ("a1111", "forge")  # no documented way in


def export(
    schedule: Schedule,
    to: str,
    *,
    lossy: bool = False,
    shift: float = 1.0,
    scheduler_config: Mapping[str, Any] | None = None,
    mu: float | None = None,
    checkpoint: str | None = None,
    version: str | None = None,
) -> Text:
    """The text for `to`: a key of FORMATS, diffusers with the scheduler's name after a colon.

    `shift` is that of the flow scheduler that gets the sigmas; or `scheduler_config` is its whole
    config, kept as it is, and `mu` what the pipeline passes to it. `checkpoint` is the file that a
    workflow loads, `version` one of `sdcpp.VERSIONS`.

    Raises:
        UserError: an unknown format, or one that cannot hold the schedule and `lossy` is false.
    """
    detail = to.partition(":")[2]
    _check_options(to, shift, scheduler_config, mu, checkpoint, version)
    options = Options(detail or None, shift, scheduler_config, mu, checkpoint, version)
    text = _format(to).export(schedule, options)
    if text.lost and not lossy:
        raise UserError(f"{to} cannot hold {'; '.join(text.lost)} (--lossy leaves it out)")
    return text


def reading(text: str, source: str, target: Target, *, lossy: bool = False) -> Reading:
    """A schedule from another tool's text; what the text does not say is taken from `target`.

    `source` is as for `export`; a diffusers text names its scheduler itself.

    Raises:
        UserError: an unknown format, a text that is not of it, or one that says more of how images
            are made than a schedule holds and `lossy` is false.
    """
    if '"stepsearch.schedule/' in text[:1000]:
        raise UserError("the file is a schedule already: it needs no import")
    found = _format(source).read(text, target)
    if found.lost and not lossy:
        lost = "; ".join(found.lost)
        raise UserError(f"a schedule does not hold {lost} (--lossy leaves it out)")
    return found


def read(text: str, source: str, target: Target) -> Schedule:
    """`reading`, for the schedule alone."""
    return reading(text, source, target).schedule


def _check_options(
    to: str,
    shift: float,
    scheduler_config: Mapping[str, Any] | None,
    mu: float | None,
    checkpoint: str | None,
    version: str | None,
) -> None:
    """
    Raises:
        UserError: an option of another format, or two of which one would have no say.
    """
    flow = f"diffusers:{stock.FLOW}"
    for option, given, of in (
        ("--shift", shift != 1, flow),
        ("--scheduler-config", scheduler_config is not None, flow),
        ("--mu", mu is not None, flow),
        ("--checkpoint", checkpoint is not None, "comfyui-workflow"),
        ("--for-version", version is not None, "sd.cpp"),
    ):
        if given and to != of:
            raise UserError(f"{option} is of {of}, got --to {to}")
    if scheduler_config is not None and shift != 1:
        raise UserError("--shift: the scheduler that is kept has its own")
    if mu is not None and scheduler_config is None:
        raise UserError("--mu is of --scheduler-config, which is not given")


def _format(source: str) -> Format:
    name, colon, _ = source.partition(":")
    if colon and name in FORMATS and name != "diffusers":
        raise UserError(f"{name} has no kinds, got {source!r}")
    if name in WITHOUT:
        raise UserError(f"{name} has no documented way to take sigmas or guidance per step")
    if name not in FORMATS:
        raise UserError(f"the format must be one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]
