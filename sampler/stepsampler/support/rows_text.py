"""Caption sets in plain text: a prompt a line, and folders with a text beside each image."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from stepsampler.errors import UserError
from stepsampler.support.rows import COLUMNS, Row, Table, opened, shortened

TEXTS = (".txt", ".caption")  # as img2dataset, kohya's scripts and DPG-Bench have them
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif")
METADATA = "metadata"  # of a folder of images of Hugging Face's datasets
FILE_NAME = ("file_name", "image_file_name")


def read_lines(path: Path) -> Table:
    """A prompt a line.

    Raises:
        UserError: the lines are JSON.
    """
    with opened(path, None) as file:
        lines = [(n, text) for n, line in enumerate(file, 1) if (text := line.strip())]
    notes = []
    if lines:
        number, first = lines[0]
        if _is_json(first):
            raise UserError(
                f"{path}: line {number} is JSON, {shortened(first)}: such a file is named .json or "
                ".jsonl"
            )
        header = next((h for mark in ",\t;|" if (h := _column(first.split(mark)))), None)
        if header:
            notes.append(
                f"line {number} looks like the header of a table: to read its column {header} "
                "alone, name the file .csv"
            )
    return Table([Row(f"line {n}", line, plain=True) for n, line in lines], notes)


def _is_json(line: str) -> bool:
    """An object, a list of texts or objects, or the first line of one."""
    if line in ("[", "{"):
        return True
    try:
        found = json.loads(line) if line[0] in "[{" else None
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) or (
        isinstance(found, list) and any(isinstance(item, str | dict) for item in found)
    )


def _column(cells: list[str]) -> str | None:
    """The column of captions, where all cells are like names of columns."""
    if len(cells) < 2 or not all(cell.isidentifier() for cell in cells):
        return None
    return next((cell for cell in cells if cell.lower() in COLUMNS), None)


def read_folder(
    folder: Path, column: str | None, readers: Mapping[str, Callable[[Path, str | None], Table]]
) -> Table:
    """metadata.jsonl, .csv or .parquet beside images; else of each text file its whole content.

    The images are those that the metadata names, or that lie beside the texts.

    Raises:
        UserError: neither is there.
    """
    for suffix in readers:
        file = folder / f"{METADATA}{suffix}"
        if file.is_file():
            return _with_names(file, column, readers[suffix])
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in TEXTS and p.is_file())
    names = [(path, path.relative_to(folder)) for path in paths]
    names = [(path, name) for path, name in names if not _hidden(name)]
    if not names:
        raise UserError(
            f"{folder}: a folder of captions has {METADATA}.jsonl, .csv or .parquet, or a text "
            "(.txt, .caption) for each image; else give one of its files"
        )
    if column is not None:
        raise UserError(f"{folder}: text files have no column {column!r}")
    rows = []
    for path, name in names:
        with opened(path, None) as content:
            text = content.read()
        images = [name.with_suffix(s) for s in IMAGES if path.with_suffix(s).is_file()]
        image = (images or [name.with_suffix("")])[0].as_posix()
        rows.append(Row(name.as_posix(), text, image))
    return Table(rows, [])


def _with_names(
    file: Path, column: str | None, reader: Callable[[Path, str | None], Table]
) -> Table:
    table = reader(file, column)
    for name in FILE_NAME:
        try:
            images = [row.value for row in reader(file, name).rows]
        except UserError:  # no such column
            continue
        if len(images) == len(table.rows):
            rows = [
                row._replace(image=image if isinstance(image, str) else None)
                for row, image in zip(table.rows, images, strict=True)
            ]
            return Table(rows, table.notes)
    return table


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
