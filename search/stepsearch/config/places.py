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
# Of a sentence: a command, or an option with the word behind it
_OPTION = re.compile(r"`[^`]*`|(?<![\w-])(?P<flag>--[\w-]+)(?P<after> \w+)?")
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
    has `model.clip_skip`; commands in it stay as they are."""
    known = {flag_of(option): option for option in commands()}

    def key(found: re.Match[str]) -> str:
        flag, after = found["flag"] or "", found["after"] or ""
        off = flag.replace("--no-", "--", 1)
        option = known.get(flag) or known.get(off)
        if option is None:
            return found[0]
        name = f"model.{option.name}"
        if bool in get_args(option.type):
            return f"{name} = {'true' if flag in known else 'false'}{after}"
        value = after.strip()
        return f'{name} = "{value}"' if value in choices_of(option) else name + after

    return _OPTION.sub(key, text)


@contextmanager
def in_keys() -> Iterator[None]:
    """Let a mistake of a study's model be told `as_keys`: models are loaded by commands as well."""
    try:
        yield
    except UserError as error:
        error.args = tuple(as_keys(str(part)) for part in error.args)
        raise
