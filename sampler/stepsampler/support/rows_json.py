"""Caption sets in JSON: COCO captions, lists, objects by id, and an item a line."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepsampler.errors import UserError, counted
from stepsampler.support.rows import (
    Row,
    Table,
    among,
    fault,
    find_column,
    first_of,
    listed,
    opened,
    shortened,
)


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


def read_json(path: Path, column: str | None) -> Table:
    """COCO captions, a list of items, an object of them by the image's id, or an item a line."""
    with opened(path, None) as file:
        text = file.read()
    try:
        data = _parsed(text)
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            return read_jsonl(path, column)  # as some libraries call a file of an object a line
        raise UserError(f"{path}: not JSON: {error}") from error
    if isinstance(data, list):
        return _items(path, _numbered("item", data), column)
    if isinstance(data, dict) and isinstance(data.get("annotations"), list):
        return _coco(data["annotations"], column or "caption")
    found = _object_of_items(path, data, column) if isinstance(data, dict) and data else None
    if found is None:
        raise UserError(
            f"{path}: expected COCO captions (annotations), a list of texts or objects, or an "
            "object of them by id"
        )
    return found


def _object_of_items(path: Path, data: dict[str, Any], column: str | None) -> Table | None:
    """One item, columns, a list beside other things, or items by the image's id; or None of them.

    Columns are lists, or objects by the row's name, as pandas writes them.
    """
    keys = list(data)
    for key in [keys[i] for i in among(keys, column)]:
        value = data[key]
        if isinstance(value, str):
            return _items(path, [("the object", None, data)], column)
        if isinstance(value, list):
            inner = column if any(isinstance(item, dict) for item in value) else None
            return _items(path, _numbered(f"{key} item", value), inner)
        if isinstance(value, dict) and not among(list(value), column):
            texts = [(f"{key} {shortened(repr(k))}", None, text) for k, text in value.items()]
            return _items(path, texts, None)
    lists = [key for key, value in data.items() if isinstance(value, list) and value]
    holding = any(isinstance(v, dict) and among(list(v), column) for v in data.values())
    lists = ["rows"] if "rows" in lists else lists
    if len(lists) == 1 and not holding:
        table = _items(path, _numbered(f"{lists[0]} item", data[lists[0]]), column)
        return Table(table.rows, [*table.notes, f"its list {shortened(repr(lists[0]))} is read"])
    pairs = data.pairs if isinstance(data, _Object) else data.items()
    plain = not any(isinstance(value, list) for value in data.values())
    if plain or any(isinstance(value, dict) for value in data.values()):
        named = [(f"id {shortened(repr(key))}", key, value) for key, value in pairs]
        return _items(path, named, column)
    return None


def _numbered(what: str, items: Sequence[Any]) -> list[tuple[str, str | None, Any]]:
    return [(f"{what} {i}", None, item) for i, item in enumerate(items)]


def read_jsonl(path: Path, column: str | None) -> Table:
    """An item a line; a line that is not JSON has a fault. Or one list of items, by its bracket."""
    items: list[tuple[str, str | None, Any]] = []
    with opened(path, None) as file:
        lines = file.readlines()
    if next((line for line in lines if line.strip()), "").startswith("["):
        try:
            return _items(path, _numbered("item", _parsed("".join(lines))), column)
        except ValueError:
            pass  # then by its lines
    for number, line in enumerate(lines, 1):
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
    items = [(place, image, _bare(item)) for place, image, item in items]
    keys = list(dict.fromkeys(key for *_, item in items if isinstance(item, dict) for key in item))
    texts = any(isinstance(item, str) for *_, item in items)
    name = ""
    if keys and not (texts and column is None and not among(keys, None)):
        name = keys[find_column(path, keys, column, notes)]
    elif column is not None and items:
        raise UserError(f"{path}: no column {column!r}: its items are no objects")
    rows = [_item(place, image, item, name) for place, image, item in items]
    return Table(first_of(rows, notes) if name else rows, notes)


def _bare(item: Any) -> Any:
    """A row of the Hugging Face's datasets server lies in an object with its number."""
    return item["row"] if isinstance(item, dict) and {"row", "row_idx"} <= item.keys() else item


def _item(place: str, image: str | None, item: Any, name: str) -> Row:
    if isinstance(item, Row):  # a line that is not JSON
        return item._replace(place=place)
    if not isinstance(item, dict):
        return Row(place, item, image)
    if isinstance(item, _Object) and [key for key, _ in item.pairs].count(name) > 1:
        return Row(place, image=image, fault=f"has {shortened(name)} twice")
    if name not in item:
        return Row(
            place, image=image, fault=f"no {shortened(name)}" if name else "an object, not a text"
        )
    return Row(place, item[name], image)


def _coco(annotations: list[Any], name: str) -> Table:
    """Of each image the annotation with the lowest id that has a caption, by image id."""
    best: dict[tuple[str, int | str], tuple[tuple[bool, int], Row]] = {}
    strays, passed = [], []
    for i, item in enumerate(annotations):
        place = f"annotation {i}"
        image = _name(item.get("image_id")) if isinstance(item, dict) else None
        number = _name(item.get("id", i)) if isinstance(item, dict) else None
        if image is None or not isinstance(number, int) or name not in item:
            reason = f"has no image_id, id and {shortened(name)}, as COCO's captions do"
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
        count = f"{counted(len(lower), 'annotation')} left out, whose images have others"
        notes.append(f"{count}: {listed(lower)}")
    return Table([row for _, (_, row) in sorted(best.items(), key=lambda e: e[0])] + strays, notes)


def _name(value: Any) -> int | str | None:
    """A whole number, be it in quotes, or another name."""
    if isinstance(value, str):
        return int(value) if re.fullmatch("[0-9]{1,18}", value) else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None
