"""The rows of the files that caption sets come in: where each stands, and what it holds.

A row that cannot be read is a row with a fault, so that it costs itself alone.
"""

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, NamedTuple

from stepsampler.errors import UserError, counted

COLUMNS = ("prompt", "caption", "text", "prompts", "captions")  # in any case, taken in this order
LONGEST = 20_000  # characters of a caption: what has more is a damaged file
SHOWN = 12  # columns that an error names
HEAD = 4096  # bytes at the start of a file that tell its kind
GZIP = b"\x1f\x8b"
UTF_32 = (b"\xff\xfe\0\0", b"\0\0\xfe\xff")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
# What else bears the name of a caption set, by its beginning
OTHERS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run git lfs pull",
    b"PAR1": "parquet, whose name must end with .parquet",
    b"PK\x03\x04": "a zip, or a workbook of Excel: unpack it, or save the sheet as .csv",
    b"ARROW1": "a file of Arrow: save it as .parquet",
    b"\x28\xb5\x2f\xfd": "a file of zstd: unpack it",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"%PDF": "a PDF",
}
WEB_PAGES = (b"<!doctype html", b"<html")


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
    return "a NUL character in it" if "\0" in value else None


@contextmanager
def opened(path: Path, newline: str | None) -> Iterator[IO[str]]:
    """A file of UTF-8, with or without a byte order mark; other bytes become surrogates.

    It may be packed by gzip, or a pipe: it is opened once, and read forwards.
    """
    with path.open("rb") as raw:
        packed = raw.peek(HEAD).startswith(GZIP)
        file = gzip.GzipFile(fileobj=raw) if packed else raw
        try:
            refuse_others(path, file.peek(HEAD)[:HEAD])
            yield TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path}: a file of gzip that is damaged or cut off") from error


def refuse_others(path: Path, head: bytes) -> None:
    """
    Raises:
        UserError: the file is no text in UTF-8, or a text of another kind, by how it begins.
    """
    for begins, kind in OTHERS.items():
        if head.startswith(begins):
            raise UserError(f"{path}: the file is {kind}")
    if head.lstrip().lower().startswith(WEB_PAGES):
        raise UserError(f"{path}: the file is a web page: download the file itself")
    # Half of the bytes of plain letters in UTF-16 are 0, with or without a mark.
    half = max(head[:256][i::2].count(0) for i in (0, 1)) > len(head[:256]) // 4
    if head.startswith(UTF_32):
        raise UserError(f"{path}: the file is UTF-32; save it as UTF-8")
    if head.startswith(UTF_16) or half:
        raise UserError(f"{path}: the file is UTF-16; save it as UTF-8")


def shortened(text: str, width: int = 40) -> str:
    """Text of a file for a message, which a line of a megabyte must not fill, nor what is no text
    make unprintable."""
    text = text if len(text) <= width else f"{text[: width - 1]}…"
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


def among(names: Sequence[str], wanted: str | None) -> list[int]:
    """Places of a column: as it is written, or else in any case; of COLUMNS, in their order."""
    if wanted is not None and wanted in names:
        return [i for i, name in enumerate(names) if name == wanted]
    plain = [name.strip("\ufeff \t\r\n").lower() for name in names]
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
            f"{path}: the column {shortened(names[first])} is there {len(found)} times: "
            f"{listed([shortened(names[i]) for i in found])}"
        )
    if others:
        rest = listed([shortened(names[i]) for i in others])
        notes.append(f"the column {shortened(names[first])} is taken, not {rest} (--column)")
    return first


def first_of(rows: Sequence[Row], notes: list[str]) -> list[Row]:
    """Of a row with a list of captions of one image the first that is one; `notes` is told."""
    found, several = [], 0
    for row in rows:
        texts = [_inner(item) for item in row.value] if isinstance(row.value, list) else []
        if texts and all(isinstance(text, str) for text in texts):
            several += len(texts) > 1
            row = row._replace(value=next((t for t in texts if not fault(t)), texts[0]))
        found.append(row)
    if several:
        count = f"{several:,} of {counted(len(found), 'row')}"
        notes.append(f"{count} with several captions, of which the first is read")
    return found


def _inner(item: Any) -> Any:
    """The text of a caption that is an object, as in Karpathy's splits of COCO."""
    if not isinstance(item, dict):
        return item
    names = [name for name in (*COLUMNS, "raw") if isinstance(item.get(name), str)]
    return item[names[0]] if names else item


def listed(said: Sequence[str], most: int = 5) -> str:
    """The first few."""
    return ", ".join(said[:most]) + (", …" if len(said) > most else "")
