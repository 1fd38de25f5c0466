"""Caption sets in columns: CSV, TSV and parquet."""

import csv
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stepsampler.errors import UserError, counted
from stepsampler.support.rows import (
    GZIP,
    HEAD,
    Row,
    Table,
    among,
    find_column,
    first_of,
    opened,
    refuse_others,
)

# Of a .csv: the first that gives its header a column of captions
DELIMITERS = (",", ";", "\t", "|")
EXCEL = re.compile(r"sep=(.)\s*")  # a first line of a .csv that says its delimiter
COMPARED = 20  # lines without a header that must have as many cells under another delimiter
SPAN = 100  # lines at most of a record of CSV: beyond, its quote was never closed


def read_tsv(path: Path, column: str | None) -> Table:
    """A quote is plain text, as in the files of Conceptual Captions and PartiPrompts."""
    with opened(path, "") as file:
        lines = ((n, line.rstrip("\r\n")) for n, line in enumerate(file, 1))
        return _cells(path, ((n, line.split("\t"), None) for n, line in lines if line), column)


def read_csv(path: Path, column: str | None) -> Table:
    """Cells between commas, or semicolons, tabs or bars where only these make a header of the
    column; without a header, where all lines have as many cells between these, and one by commas.
    """
    with opened(path, "") as file, _long_fields():
        lines = file.readlines()
        stated = EXCEL.fullmatch(lines[0].strip("\ufeff")) if lines else None
        first = 1 if stated else 0
        head = next((line for line in lines[first:] if line.strip()), "")
        header = column is None or not column.isdecimal()
        if stated:
            delimiter = stated[1]
        elif header:
            fitting = (d for d in DELIMITERS if among(_header(head, d), column))
            delimiter = next(fitting, DELIMITERS[0])
        else:
            fitting = (d for d in DELIMITERS if among(_header(head, d), None))
            delimiter = next(fitting, None) or _regular(lines)
        spaced = f"{delimiter} " in head if header else False
        records = _records(lines[first:], delimiter, header, spaced, first)
        return _cells(path, records, column)


def _regular(lines: Sequence[str]) -> str:
    """The delimiter that cuts every line into as many cells, of which there are several."""
    compared = [line for line in lines if line.strip()][:COMPARED]
    for delimiter in DELIMITERS if len(compared) > 1 else ():
        counts = {len(_header(line, delimiter)) for line in compared}
        if len(counts) == 1 and counts != {1}:
            return delimiter
    return DELIMITERS[0]


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

    def __init__(self, file: Iterable[str], before: int) -> None:
        self.file, self.ahead = iter(file), deque[str]()
        self.taken: list[str] = []
        self.number = before  # of lines before those taken

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


def _records(
    file: Iterable[str], delimiter: str, header: bool, spaced: bool, before: int
) -> Iterator[Record]:
    """Quoted cells may have several lines; a quote that ends no cell costs its line alone.

    Under a header, so does one that ends a cell of another line, of which there are then too many.
    Empty cells beyond those of the header are no cells. `spaced` is a space after a delimiter.
    """
    lines, width = _Lines(file, before), 0
    while True:
        lines.begin()
        wrong = None
        try:
            reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=spaced)
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            cells, wrong = [], "a quote that does not enclose a whole cell"
        width = width or len(cells)
        if header and len(cells) > width > 0 and not any(cell.strip() for cell in cells[width:]):
            del cells[width:]
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
        every = found[1:] if among(first[1][place : place + 1], None) else found  # a header
    else:
        if first[2]:
            raise UserError(f"{path}: line 1: {first[2]}")
        place, width = find_column(path, first[1], column, notes), len(first[1])
    rows = []
    for number, cells, wrong in every:
        if not wrong and len(cells) != width:
            wrong = f"{counted(len(cells), 'cell')}, not {width}"
        at = f"line {number}"
        rows.append(Row(at, fault=wrong) if wrong else Row(at, cells[place]))
    return Table(rows, notes)


def read_parquet(path: Path, column: str | None) -> Table:
    """A column of texts, be they strings, bytes or of a dictionary, or of lists of texts."""
    try:
        import pyarrow
        from pyarrow import parquet, types
    except ImportError as error:
        raise UserError(f"{path}: reading parquet needs pyarrow (pip install pyarrow)") from error
    notes: list[str] = []
    try:
        with path.open("rb") as file:
            head = file.peek(HEAD)[:HEAD]
            if head.startswith(GZIP):
                raise UserError(f"{path}: the file is packed by gzip: unpack it")
            if not head.startswith(b"PAR1"):
                refuse_others(path, head)
            table = parquet.ParquetFile(file)
            names = table.schema_arrow.names
            if column is not None and column.isdecimal() and column not in names:
                column = names[int(column)] if int(column) < len(names) else column
            name = names[find_column(path, names, column, notes)]
            values = table.read(columns=[name]).column(0)
        if types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if types.is_string(values.type):  # its bytes, as one that is not UTF-8 would stop all
            values = values.cast(pyarrow.binary())
        elif types.is_large_string(values.type):
            values = values.cast(pyarrow.large_binary())
        elif types.is_list(values.type) and types.is_string(values.type.value_type):
            values = values.cast(pyarrow.list_(pyarrow.binary()))
        found = values.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file system
        raise UserError(f"{path}: not a whole parquet file, or not a plain column") from error
    rows = [Row(f"row {i}", _decoded(value)) for i, value in enumerate(found)]
    return Table(first_of(rows, notes), notes)


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value
