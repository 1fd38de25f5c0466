"""Reading JSON that anybody may have written: each mistake is one sentence with its place."""

import json
from dataclasses import fields
from math import isfinite
from typing import Any

from stepsampler.errors import UserError

MAX_DEPTH = 20  # of nested values
TOLD = 40  # characters of a file's beginning that a message shows


class ScheduleError(UserError, ValueError):
    """The schedule cannot be sampled as written."""


def parse(text: str) -> Any:
    """JSON without NaN, infinities and deep nesting.

    Raises:
        ScheduleError: anything else.
    """
    try:
        data = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ScheduleError(f"not JSON: {error}") from error
    _check_depth(data)
    return data


def no_object(content: bytes) -> str | None:
    """What a file is that does not even begin as an object of JSON; None if it does."""
    begins = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    wanted = "a schedule is a JSON file, which begins with {"
    if begins.startswith(b"{"):
        return None
    if not begins:
        return f"{wanted}; this one is empty"
    try:
        line = content.decode("utf-8-sig").lstrip().splitlines()[0]
    except UnicodeDecodeError:
        return f"{wanted}; this one is no text in UTF-8"
    if not line.isprintable():
        return f"{wanted}; this one is no text"
    return f"{wanted}; this one is a text that begins with «{line[:TOLD]}»"


def keys(data: Any, cls: type, place: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ScheduleError(f"{place} must be an object, got {shown(data)}")
    names = [f.name for f in fields(cls)]
    for key in data:
        if key not in names:
            raise ScheduleError(f"{place}: unknown key {shown(key)}; known are {', '.join(names)}")
    return dict(data)


def number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ScheduleError(f"{place} must be a number, got {shown(value)}")
    try:
        return float(value)
    except OverflowError as error:
        raise ScheduleError(f"{place}: too large a number") from error


def one_of(place: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ScheduleError(f"{place} must be one of {', '.join(allowed)}, got {shown(value)}")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{shown(text)} is too large a number")
    return number


def _check_depth(data: Any) -> None:
    """Deeper values could be read but not always written again: both recurse."""
    level = [data]
    for _ in range(MAX_DEPTH):
        inner = [
            v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)
        ]
        level = [value for values in inner for value in values]
    if level:
        raise ScheduleError(f"values are nested more than {MAX_DEPTH} deep")


def shown(value: Any) -> str:
    """For one line of a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def numbers(data: Any, cls: type, place: str) -> dict[str, float]:
    values = keys(data, cls, place)
    for name in (f.name for f in fields(cls)):
        if name not in values:
            raise ScheduleError(f"{place}: {name} is missing")
    return {name: number(value, f"{place}: {name}") for name, value in values.items()}
