"""Prompts from the files that caption sets come in."""

import random
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from stepsampler.errors import UserError, counted, note
from stepsampler.support.files import meant
from stepsampler.support.rows import Row, Table, fault, listed, shortened
from stepsampler.support.rows_cells import read_csv, read_parquet, read_tsv
from stepsampler.support.rows_json import read_json, read_jsonl
from stepsampler.support.rows_text import read_folder, read_lines

READERS: dict[str, Callable[[Path, str | None], Table]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}
# What A1111, ComfyUI, wildcard extensions, kohya's scripts and Midjourney would not take as text
FOREIGN = re.compile(
    r"<(?:lora|lyco|hypernet):[^<>]*>|\([^()]*[^\W\d][^()]*:\d*\.?\d+\)|\bBREAK\b|"
    r"\bembedding:\w+|__[\w/*-]+__|\{[^{}]*\|[^{}]*\}|(?<!\S)--[a-z][\w-]*"
)


class Caption(NamedTuple):
    """A prompt, and the image that it describes, where the file says which."""

    text: str
    image: str | None = None


class LeftOut(NamedTuple):
    """A row that is no caption: where it stands, such as line 3, and why."""

    place: str
    reason: str


class CaptionSet(NamedTuple):
    """What a file holds, row by row: those that are no captions keep their places."""

    path: Path
    items: list[Caption | LeftOut]
    notes: list[str]  # what else a person should know of how the file was read

    @property
    def captions(self) -> list[Caption]:
        return [item for item in self.items if isinstance(item, Caption)]

    @property
    def said(self) -> list[str]:
        """A sentence for each thing that is not as one would expect; mostly none."""
        notes = [f"{self.path}: {note}" for note in self.notes]
        lost = [item for item in self.items if isinstance(item, LeftOut)]
        if lost:
            count = f"{len(lost):,} of {counted(len(self.items), 'caption')}"
            notes.append(f"{self.path}: {count} left out: {shown(lost)}")
        return notes


def read_set(
    path: Path,
    column: str | None = None,
    limit: int | None = None,
    shuffle_seed: int | None = None,
) -> CaptionSet:
    """The captions of a file, by its suffix, or of a folder.

    .json: COCO captions (2014 or 2017), of each image the one with the lowest annotation id that is
    not empty, by image id; or a list of texts or of objects with a prompt, as preference data has
    it; or an object of them by the image's id, as MJHQ-30K has it. .jsonl: such an item a line.
    .csv, .tsv and .parquet: a column, by name in any case, or by number from 0 where there is no
    header; in .tsv a quote is plain text. .txt or no suffix: one prompt a line, without empty
    lines. A folder: `read_folder`. All but .parquet may be packed by gzip. `shuffle_seed` mixes the
    rows, and `limit` takes the first ones after that.

    Raises:
        UserError: a file that cannot be read, is of another kind or shape, or has no caption.
    """
    rows, notes = _table(path, column)
    items = [(row.place, _judged(row)) for row in rows]
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(items)
    items = items[:limit]
    foreign = foreign_syntax((at, item.text) for at, item in items if isinstance(item, Caption))
    found = CaptionSet(path, [item for _, item in items], [*notes, *foreign])
    if not found.captions:
        lost = [item for item in found.items if isinstance(item, LeftOut)]
        why = f"; left out: {shown(lost)}" if lost else ""
        raise UserError(f"{path}: no caption in it{why}")
    return found


def read_captions(
    path: Path,
    column: str | None = None,
    limit: int | None = None,
    shuffle_seed: int | None = None,
) -> list[Caption]:
    """Those of `read_set` that can be shown; the others are named on stderr."""
    found = read_set(path, column, limit, shuffle_seed)
    for sentence in found.said:
        note(sentence)
    return found.captions


def given_prompts(given: Sequence[str] | None, file: Path | None) -> tuple[list[str], bool]:
    """The texts of --prompt, and then those of the file of --prompts; whether it had others."""
    for sentence in foreign_syntax(("--prompt", text) for text in given or ()):
        note(f"prompts: {sentence}")
    if file is None:
        return list(given or ()), False
    found = read_set(file)
    for sentence in found.said:
        note(sentence)
    texts = [caption.text for caption in found.captions]
    return [*(given or ()), *texts], len(texts) < len(found.items)


def foreign_syntax(texts: Iterable[tuple[str, str]]) -> list[str]:
    """Of (place, text): a sentence about what other tools obey in a prompt, if anything."""
    found = [(at, match[0]) for at, text in texts if (match := FOREIGN.search(text))]
    if not found:
        return []
    some = listed([f"{at} ({shortened(syntax)})" for at, syntax in found])
    return [f"{len(found):,} with syntax of other tools, which is plain text here: {some}"]


def shown(lost: Sequence[LeftOut]) -> str:
    """The first few, with their reasons."""
    return listed([f"{item.place} ({item.reason})" for item in lost])


def _judged(row: Row) -> Caption | LeftOut:
    reason = row.fault or fault(row.value)
    if reason:
        return LeftOut(row.place, reason)
    return Caption(row.value if row.plain else " ".join(row.value.split()), row.image)


def _table(path: Path, column: str | None) -> Table:
    """All rows of a file, of the kind that its suffix names, or of a folder.

    Raises:
        UserError: a file that cannot be read, is of another kind or shape, or lacks the column.
    """
    plain = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    suffix = plain.suffix.lower()
    try:
        if path.is_dir():
            return read_folder(path, column, READERS)
        if suffix in READERS:
            return READERS[suffix](path, column)
        if suffix not in ("", ".txt"):
            raise UserError(
                f"{path}: the suffix must be .txt or {', '.join(READERS)}, with or without .gz"
            )
        if column is not None:
            raise UserError(f"{path}: a text file has no column {column!r}")
        return read_lines(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}{meant(path)}") from error
