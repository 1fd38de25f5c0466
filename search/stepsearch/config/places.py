"""Where a study file says what: the line of a key, values given on the command line, and the key of
what is an option of a command."""

import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

from stepsampler.errors import UserError
from stepsampler.support.options import choices_of, commands, flag_of

_NAME = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_NAME}(?:\s*\.\s*{_NAME})*"
_TABLE = re.compile(rf"\s*\[\s*({_DOTTED})\s*\]")
_KEY = re.compile(rf"\s*({_DOTTED})\s*=")


def line_of(text: str, place: Sequence[str | int]) -> int | None:
    """The line of the innermost part of `place` that a TOML text names, from 1; None: of nothing.

    A line within a string or a list that looks like a key can be taken for one.
    """
    wanted = tuple(str(part) for part in place)
    table: tuple[str, ...] = ()
    best, found = 0, None
    for number, line in enumerate(text.splitlines(), 1):
        if named := _TABLE.match(line):
            table = here = _parts(named[1])
        elif named := _KEY.match(line):
            here = (*table, *_parts(named[1]))
        else:
            continue
        both = min(len(here), len(wanted))
        if both > best and here[:both] == wanted[:both]:
            best, found = both, number
    return found


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in re.findall(_NAME, dotted))


def given_values(settings: Iterable[str]) -> dict[str, dict[str, Any]]:
    """["search.trials=100", "model.id=tiny"] -> values by section and key.

    Values are as TOML has them; what is none is text.

    Raises:
        UserError: no section, no key or no value.
    """
    found: dict[str, dict[str, Any]] = {}
    for setting in settings:
        place, sign, text = setting.partition("=")
        section, _, key = place.strip().partition(".")
        if not (sign and section and key):
            raise UserError(f"--set must be section.key=value, got {setting!r}")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except ValueError:  # also of an integer of thousands of digits
            value = text.strip()
        except RecursionError as error:
            raise UserError(f"--set {section}.{key}: its lists are nested too deep") from error
        found.setdefault(section, {})[key] = value
    return found


def joined(*several: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Values by section and key; of the same key the last."""
    found: dict[str, dict[str, Any]] = {}
    for given in several:
        for section, values in given.items():
            found[section] = {**found.get(section, {}), **values}
    return found


def as_keys(text: str) -> str:
    """A sentence about the options of a model, such as --clip-skip, in the words of a study, which
    has `model.clip_skip`."""
    for known in commands():
        flag, key = flag_of(known), f"model.{known.name}"
        if bool in get_args(known.type):
            text = text.replace(f"--no-{flag.removeprefix('--')}", f"{key} = false")
            key += " = true"
        flag = rf"(?<![\w-]){flag}(?![\w-])"
        if choices := choices_of(known):
            text = re.sub(rf"{flag} ({'|'.join(choices)})\b", rf'{key} = "\1"', text)
        text = re.sub(flag, key, text)
    return text


@contextmanager
def in_keys() -> Iterator[None]:
    """Let a mistake of a study's model be told `as_keys`: models are loaded by commands as well."""
    try:
        yield
    except UserError as error:
        error.args = tuple(as_keys(str(part)) for part in error.args)
        raise
