"""The rows of the files that caption sets come in: where each stands, and what it holds.

A row that cannot be read is a row with a fault, so that it costs itself alone.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from stepsampler.errors import UserError

COLUMNS = ("prompt", "caption", "text", "prompts")  # in any case, taken in this order
LONGEST = 20_000  # characters of a caption: what has more is a damaged file
SHOWN = 12  # columns that an error names


class Row(NamedTuple):
    """`place` is in the file, such as line 3; `value` is what the column holds."""

    place: str
    value: Any = None
    image: str | None = None  # that it describes, where the file says which
    fault: str | None = None  # why there is no value
    plain: bool = False  # a line of text, whose inner spaces stay


class Table(NamedTuple):
    """All rows of a file."""

    rows: list[Row]
    notes: list[str]  # what else a person should know


def fault(value: Any) -> str | None:
    """Why a value is no caption; None if it is one."""
    if not isinstance(value, str):
        kinds = {type(None): "null", dict: "an object, not a text", list: "a list, not a text"}
        return kinds.get(type(value), f"{shortened(repr(value))}, not a text")
    if len(value) > LONGEST:
        return f"{len(value):,} characters, more than {LONGEST:,}"
    if half := re.search("[\ud800-\udfff]", value):
        code = ord(half[0])
        if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that is not UTF-8
            return f"not valid UTF-8 (byte 0x{code - 0xDC00:02x})"
        return f"half of a surrogate pair (\\u{code:04x})"
    if not any(c.isprintable() and not c.isspace() for c in value):
        return "nothing to be seen in it" if value.strip() else "empty"
    return None


@contextmanager
def opened(path: Path, newline: str | None) -> Iterator[IO[str]]:
    """A file of UTF-8, with or without a byte order mark; other bytes become surrogates."""
    with path.open("rb") as raw:
        if raw.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"{path}: the file is UTF-16; save it as UTF-8")
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline) as file:
        yield file


def shortened(text: str, width: int = 40) -> str:
    """Text of a file for a message, which a line of a megabyte must not fill."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def among(names: Sequence[str], wanted: str | None) -> list[int]:
    """Places of a column: as it is written, or else in any case; of COLUMNS, in their order."""
    if wanted is not None and wanted in names:
        return [i for i, name in enumerate(names) if name == wanted]
    plain = [name.strip().lower() for name in names]
    return [
        i
        for column in (COLUMNS if wanted is None else (wanted.lower(),))
        for i, name in enumerate(plain)
        if name == column
    ]


def find_column(path: Path, names: Sequence[str], wanted: str | None, notes: list[str]) -> int:
    """Place of the column that is wanted, or else of one of COLUMNS; `notes` is told of others.

    Raises:
        UserError: there is none, or it is there several times.
    """
    found = among(names, wanted)
    if not found:
        expected = ", ".join(COLUMNS) if wanted is None else repr(wanted)
        there = [shortened(name) for name in names[:SHOWN]] + ["…"] * (len(names) > SHOWN)
        number = path.suffix.lower() in (".csv", ".tsv") and bool(names)
        hint = "; of a file without a header give the number: --column 0" if number else ""
        raise UserError(
            f"{path}: no column {expected}; there are {', '.join(there) or 'none'}{hint}"
        )
    first, *others = found
    if others and (wanted is not None or names[first] in [names[i] for i in others]):
        raise UserError(
            f"{path}: the column {names[first]} is there {len(found)} times: "
            f"{', '.join(names[i] for i in found)}"
        )
    if others:
        rest = ", ".join(names[i] for i in others)
        notes.append(f"the column {names[first]} is taken, not {rest} (--column)")
    return first


def listed(said: Sequence[str], most: int = 5) -> str:
    """The first few."""
    return ", ".join(said[:most]) + (", …" if len(said) > most else "")
