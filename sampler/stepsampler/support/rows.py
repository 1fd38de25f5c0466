"""The rows of the files that caption sets come in: where each stands, and what it holds.

A row that cannot be read is a row with a fault, so that it costs itself alone.
"""

import csv
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from stepsampler.errors import UserError

COLUMNS = ("prompt", "caption", "text", "prompts")  # in any case, taken in this order
DELIMITERS = (",", ";", "\t")  # of a .csv: the first that gives its header a column of captions
SPAN = 100  # lines at most of a record of CSV: beyond, its quote was never closed
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
    rows: list[Row]
    notes: list[str]  # what else a person should know


def read_table(path: Path, column: str | None) -> Table:
    """All rows of a file, of the kind that its suffix names.

    Raises:
        UserError: a file that cannot be read, is of another kind or shape, or lacks the column.
    """
    readers: dict[str, Callable[[Path, str | None], Table]] = {
        ".json": _json,
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".csv": _csv,
        ".tsv": _tsv,
        ".parquet": _parquet,
    }
    suffix = path.suffix.lower()
    try:
        if suffix in readers:
            return readers[suffix](path, column)
        if suffix not in ("", ".txt"):
            raise UserError(f"{path}: the suffix must be .txt or {', '.join(readers)}")
        if column is not None:
            raise UserError(f"{path}: a text file has no column {column!r}")
        with _opened(path, None) as file:
            lines = ((n, line.strip()) for n, line in enumerate(file, 1))
            return Table([Row(f"line {n}", line, plain=True) for n, line in lines if line], [])
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def fault(value: Any) -> str | None:
    """Why a value is no caption; None if it is one."""
    if not isinstance(value, str):
        kinds = {type(None): "null", dict: "an object, not a text", list: "a list, not a text"}
        return kinds.get(type(value), f"{_short(repr(value))}, not a text")
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
def _opened(path: Path, newline: str | None) -> Iterator[IO[str]]:
    """A file of UTF-8, with or without a byte order mark; other bytes become surrogates."""
    with path.open("rb") as raw:
        if raw.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"{path}: the file is UTF-16; save it as UTF-8")
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline) as file:
        yield file


def _short(text: str, width: int = 40) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


class _Object(dict[str, Any]):
    """A JSON object that has a key twice: dict would keep the last one in silence."""

    pairs: Sequence[tuple[str, Any]] = ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    found = _Object(plain)
    found.pairs = pairs
    return found


def _parsed(text: str) -> Any:
    """
    Raises:
        ValueError: not JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _json(path: Path, column: str | None) -> Table:
    with _opened(path, None) as file:
        text = file.read()
    try:
        data = _parsed(text)
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            return _jsonl(path, column)  # as some libraries call a file of an object a line
        raise UserError(f"{path}: not JSON: {error}") from error
    if isinstance(data, list):
        return _items(path, [(f"item {i}", None, item) for i, item in enumerate(data)], column)
    if isinstance(data, dict) and isinstance(data.get("annotations"), list):
        return _coco(data["annotations"], column or "caption")
    if isinstance(data, dict) and data:
        if any(key.lower() in COLUMNS and isinstance(data[key], str) for key in data):
            return _items(path, [("the object", None, data)], column)
        pairs = data.pairs if isinstance(data, _Object) else data.items()
        plain = not any(isinstance(value, list) for value in data.values())
        if plain or any(isinstance(value, dict) for value in data.values()):
            named = [(f"id {_short(repr(key))}", key, value) for key, value in pairs]
            return _items(path, named, column)
    raise UserError(
        f"{path}: expected COCO captions (annotations), a list of texts or objects, or an object "
        "of them by id"
    )


def _jsonl(path: Path, column: str | None) -> Table:
    items: list[tuple[str, str | None, Any]] = []
    with _opened(path, None) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    value = _parsed(line)
                except ValueError as error:
                    value = Row("", fault=f"not JSON: {error}")
                items.append((f"line {number}", None, value))
    return _items(path, items, column)


def _items(path: Path, items: Sequence[tuple[str, str | None, Any]], column: str | None) -> Table:
    """Of (place, image, item): each a text, or an object of which one key is the text."""
    notes: list[str] = []
    keys = list(dict.fromkeys(key for *_, item in items if isinstance(item, dict) for key in item))
    texts = any(isinstance(item, str) for *_, item in items)
    name = ""
    if keys and not (texts and column is None and not _among(keys, None)):
        name = keys[_column(path, keys, column, notes)]
    elif column is not None and items:
        raise UserError(f"{path}: no column {column!r}: its items are no objects")
    return Table([_item(place, image, item, name) for place, image, item in items], notes)


def _item(place: str, image: str | None, item: Any, name: str) -> Row:
    if isinstance(item, Row):  # a line that is not JSON
        return item._replace(place=place)
    if not isinstance(item, dict):
        return Row(place, item, image)
    if isinstance(item, _Object) and [key for key, _ in item.pairs].count(name) > 1:
        return Row(place, image=image, fault=f"has {name} twice")
    if name not in item:
        return Row(place, image=image, fault=f"no {name}" if name else "an object, not a text")
    return Row(place, item[name], image)


def _coco(annotations: list[Any], name: str) -> Table:
    """Of each image the annotation with the lowest id that has a caption, by image id."""
    best: dict[tuple[str, int | str], tuple[tuple[bool, int], Row]] = {}
    strays, passed = [], []
    for i, item in enumerate(annotations):
        place = f"annotation {i}"
        image = _image_id(item.get("image_id")) if isinstance(item, dict) else None
        number = _image_id(item.get("id")) if isinstance(item, dict) else None
        if image is None or not isinstance(number, int) or name not in item:
            reason = f"has no image_id, id and {name}, as COCO's captions do"
            strays.append(Row(place, fault=reason))
            continue
        row = Row(place, item[name], str(image))
        rank, key = (fault(row.value) is not None, number), (type(image).__name__, image)
        if key not in best or rank < best[key][0]:
            best[key] = (rank, row)
        if rank[0]:
            passed.append((key, number, f"{place} ({fault(row.value)})"))
    lower = [
        said for key, number, said in passed if not best[key][0][0] and number < best[key][0][1]
    ]
    notes = []
    if lower:
        count = f"{len(lower)} annotations left out, whose images have others"
        notes.append(f"{count}: {listed(lower)}")
    return Table([row for _, (_, row) in sorted(best.items(), key=lambda e: e[0])] + strays, notes)


def _image_id(value: Any) -> int | str | None:
    """A whole number, be it in quotes, or another name."""
    if isinstance(value, str):
        return int(value) if re.fullmatch("[0-9]{1,18}", value) else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _tsv(path: Path, column: str | None) -> Table:
    """A quote is plain text, as in the files of Conceptual Captions and PartiPrompts."""
    with _opened(path, "") as file:
        lines = ((n, line.rstrip("\r\n")) for n, line in enumerate(file, 1))
        return _cells(path, ((n, line.split("\t"), None) for n, line in lines if line), column)


def _csv(path: Path, column: str | None) -> Table:
    with _opened(path, "") as file, _long_fields():
        head = file.readline()
        file.seek(0)
        fitting = (d for d in DELIMITERS if _among(_header(head, d), column))
        delimiter = next(fitting, DELIMITERS[0])
        header = column is None or not column.isdecimal()
        return _cells(path, _records(file, delimiter, header), column)


def _header(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter), [])


@contextmanager
def _long_fields() -> Iterator[None]:
    """A cell of any length is read: its length is its own fault, not that of the file."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


class _Lines:
    """The lines of a file, of which those that a record took can be given back."""

    def __init__(self, file: Iterable[str]) -> None:
        self.file, self.ahead = iter(file), deque[str]()
        self.taken: list[str] = []
        self.number = 0  # of lines before those taken

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if len(self.taken) == SPAN:
            raise StopIteration
        self.taken.append(self.ahead.popleft() if self.ahead else next(self.file))
        return self.taken[-1]

    def begin(self) -> None:
        self.number += len(self.taken)
        self.taken.clear()

    def give_back(self) -> None:
        """All but the first."""
        self.ahead.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


Record = tuple[int, list[str], str | None]  # line, cells, or what is wrong with them


def _records(file: Iterable[str], delimiter: str, header: bool) -> Iterator[Record]:
    """Quoted cells may have several lines; a quote that ends no cell costs its line alone.

    Under a header, so does one that ends a cell of another line, of which there are then too many.
    """
    lines, width = _Lines(file), 0
    while True:
        lines.begin()
        wrong = None
        try:
            cells = next(csv.reader(lines, delimiter=delimiter, strict=True))
        except StopIteration:
            return
        except csv.Error:
            cells, wrong = [], "a quote that does not enclose a whole cell"
        width = width or len(cells)
        if wrong or (header and len(cells) != width):
            lines.give_back()
        if cells or wrong:
            yield lines.number + 1, cells, wrong


def _cells(path: Path, records: Iterator[Record], column: str | None) -> Table:
    """Of records: the first is the header, unless the column is a number, from 0, without one."""
    notes: list[str] = []
    first = next(records, (1, [], None))
    every: Iterable[Record] = records
    if column is not None and column.isdecimal() and column not in first[1]:
        place, found = int(column), [first, *records]
        widths = Counter(len(cells) for _, cells, wrong in found if not wrong)
        width = widths.most_common(1)[0][0] if widths else 0
        if place >= width:
            raise UserError(f"{path}: no column {column}, counted from 0: there are {width}")
        every = found[1:] if _among(first[1][place : place + 1], None) else found  # a header
    else:
        if first[2]:
            raise UserError(f"{path}: line 1: {first[2]}")
        place, width = _column(path, first[1], column, notes), len(first[1])
    rows = []
    for number, cells, wrong in every:
        if not wrong and len(cells) != width:
            wrong = f"{len(cells)} cells, not {width}"
        at = f"line {number}"
        rows.append(Row(at, fault=wrong) if wrong else Row(at, cells[place]))
    return Table(rows, notes)


def _parquet(path: Path, column: str | None) -> Table:
    try:
        import pyarrow
        from pyarrow import parquet, types
    except ImportError as error:
        raise UserError(f"{path}: reading parquet needs pyarrow (pip install pyarrow)") from error
    notes: list[str] = []
    try:
        with path.open("rb") as file:
            table = parquet.ParquetFile(file)
            names = table.schema_arrow.names
            if column is not None and column.isdecimal() and column not in names:
                column = names[int(column)] if int(column) < len(names) else column
            name = names[_column(path, names, column, notes)]
            values = table.read(columns=[name]).column(0)
        if types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if types.is_string(values.type):  # its bytes, as one that is not UTF-8 would stop all
            values = values.cast(pyarrow.binary())
        elif types.is_large_string(values.type):
            values = values.cast(pyarrow.large_binary())
        found = values.to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a whole parquet file, or not a plain column") from error
    texts = (v.decode(errors="surrogateescape") if isinstance(v, bytes) else v for v in found)
    return Table([Row(f"row {i}", text) for i, text in enumerate(texts)], notes)


def _among(names: Sequence[str], wanted: str | None) -> list[int]:
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


def _column(path: Path, names: Sequence[str], wanted: str | None, notes: list[str]) -> int:
    found = _among(names, wanted)
    if not found:
        expected = ", ".join(COLUMNS) if wanted is None else repr(wanted)
        there = [_short(name) for name in names[:SHOWN]] + ["…"] * (len(names) > SHOWN)
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
    return ", ".join(said[:most]) + (", …" if len(said) > most else "")
