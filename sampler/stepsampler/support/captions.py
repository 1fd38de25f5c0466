"""Prompts from the files that caption sets come in."""

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stepsampler.errors import UserError

COLUMNS = ("prompt", "caption", "text", "TEXT")  # taken where no column is named, in this order


class Caption(NamedTuple):
    """A prompt, and the image that it describes, where the file says which."""

    text: str
    image: str | None = None


def read_captions(
    path: Path,
    column: str | None = None,
    limit: int | None = None,
    shuffle_seed: int | None = None,
) -> list[Caption]:
    """The captions of a file, by its suffix.

    .json: COCO captions (2014 or 2017), of each image the one with the lowest annotation id, by
    image id; or a list of objects with a prompt, as preference data has it. .jsonl: such an object
    a line. .csv, .tsv and .parquet: a column. .txt or no suffix: one prompt a line, without empty
    lines. `shuffle_seed` mixes them, and `limit` takes the first ones after that.

    Raises:
        UserError: a file that cannot be read, is of another kind or shape, or has no caption.
    """
    readers = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
    suffix = path.suffix.lower()
    try:
        if suffix in readers:
            captions = readers[suffix](path, column)
        elif suffix not in ("", ".txt"):
            raise UserError(f"{path}: the suffix must be .txt or {', '.join(readers)}")
        elif column is not None:
            raise UserError(f"{path}: a text file has no column {column!r}")
        else:
            lines = _text(path).split("\n")
            captions = [Caption(line.strip()) for line in lines if line.strip()]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: {error}") from error
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(captions)
    captions = captions[:limit]
    if not captions:
        raise UserError(f"{path}: no caption in it")
    return captions


def given_prompts(given: Sequence[str] | None, file: Path | None) -> list[str]:
    """The texts of --prompt, and then those of the file of --prompts."""
    return [*(given or []), *(caption.text for caption in (read_captions(file) if file else []))]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")


def _json(path: Path, column: str | None) -> list[Caption]:
    data = _parsed(str(path), _text(path))
    if isinstance(data, dict) and isinstance(data.get("annotations"), list):
        return _coco(path, data["annotations"])
    if not (isinstance(data, list) and all(isinstance(row, dict) for row in data)):
        raise UserError(f"{path}: expected COCO captions (annotations) or a list of objects")
    return _objects(path, data, column)


def _jsonl(path: Path, column: str | None) -> list[Caption]:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            rows.append(_parsed(f"{path}: line {number}", line))
            if not isinstance(rows[-1], dict):
                raise UserError(f"{path}: line {number} must be a JSON object")
    return _objects(path, rows, column)


def _parsed(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON: {error}") from error


def _objects(path: Path, rows: list[dict[str, Any]], column: str | None) -> list[Caption]:
    name = _column(path, list(dict.fromkeys(key for row in rows for key in row)), column)
    return [_caption(path, i, name, row.get(name)) for i, row in enumerate(rows)]


def _coco(path: Path, annotations: list[Any]) -> list[Caption]:
    first: dict[int, tuple[int, str]] = {}  # image id -> annotation id, caption
    for i, row in enumerate(annotations):
        try:
            image, number, text = int(row["image_id"]), int(row["id"]), row["caption"]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{path}: annotation {i} must have image_id, id and caption, as COCO's captions do"
            ) from error
        text = _caption(path, i, "caption", text).text
        if image not in first or number < first[image][0]:
            first[image] = (number, text)
    return [Caption(text, str(image)) for image, (_, text) in sorted(first.items())]


def _csv(path: Path, column: str | None) -> list[Caption]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        name = _column(path, list(rows.fieldnames or []), column)
        return [_caption(path, i, name, row[name]) for i, row in enumerate(rows)]


def _parquet(path: Path, column: str | None) -> list[Caption]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path}: reading parquet needs pyarrow (pip install pyarrow)") from error
    try:
        with path.open("rb") as file:
            table = parquet.ParquetFile(file)
            name = _column(path, table.schema_arrow.names, column)
            values = table.read(columns=[name]).column(0).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
    return [_caption(path, i, name, value) for i, value in enumerate(values)]


def _column(path: Path, names: list[str], wanted: str | None) -> str:
    found = [name for name in ([wanted] if wanted else COLUMNS) if name in names]
    if not found:
        expected = f"no column {wanted!r}" if wanted else f"no column {', '.join(COLUMNS)}"
        raise UserError(f"{path}: {expected}; there are {', '.join(map(str, names)) or 'none'}")
    return found[0]


def _caption(path: Path, row: int, name: str, value: Any) -> Caption:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{path}: row {row}: {name} must be a text that is not empty")
    return Caption(" ".join(value.split()))
