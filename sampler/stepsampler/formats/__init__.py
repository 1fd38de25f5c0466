"""Schedules in other tools' words, and back: ComfyUI, stable-diffusion.cpp, stock diffusers.

What a tool cannot hold is refused, or, where it is asked for, left out and listed.
"""

from collections.abc import Callable
from typing import NamedTuple

from stepsampler.errors import UserError
from stepsampler.formats import comfyui, sdcpp, stock
from stepsampler.formats.common import Target, Text
from stepsampler.schedule import Schedule

__all__ = ["FORMATS", "Target", "Text", "export", "read"]


class Format(NamedTuple):
    """One tool."""

    export: Callable[[Schedule, str | None, float], Text]
    read: Callable[[str, Target], Schedule]


FORMATS = {
    "comfyui": Format(comfyui.export, comfyui.read),
    "sd.cpp": Format(sdcpp.export, sdcpp.read),
    "diffusers": Format(stock.export, stock.read),
}
WITHOUT = ("a1111", "forge")  # no documented way in


def export(schedule: Schedule, to: str, *, lossy: bool = False, shift: float = 1.0) -> Text:
    """The text for `to`: a key of FORMATS, diffusers with the scheduler's name after a colon.

    `shift` is that of the flow scheduler that gets the sigmas.

    Raises:
        UserError: an unknown format, or one that cannot hold the schedule and `lossy` is false.
    """
    name, _, detail = to.partition(":")
    text = _format(name).export(schedule, detail or None, shift)
    if text.lost and not lossy:
        raise UserError(f"{to} cannot hold {'; '.join(text.lost)} (--lossy leaves it out)")
    return text


def read(text: str, source: str, target: Target) -> Schedule:
    """A schedule from another tool's text; what the text does not say is taken from `target`.

    `source` is as for `export`; a diffusers text names its scheduler itself.

    Raises:
        UserError: an unknown format, or a text that is not of it.
    """
    return _format(source.partition(":")[0]).read(text, target)


def _format(name: str) -> Format:
    if name in WITHOUT:
        raise UserError(f"{name} has no documented way to take sigmas or guidance per step")
    if name not in FORMATS:
        raise UserError(f"the format must be one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]
