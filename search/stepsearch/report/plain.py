"""Results as JSON: the one place where a command's `--json` and a page's data come from."""

import json
import sys
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from stepsearch.report.cards import Filled, fill
from stepsearch.report.sources import Source


def of_source(source: Source, cards: Iterable[Filled] | None = None) -> dict[str, Any]:
    """What the cards of a page show; of pictures only where they are from."""
    found: dict[str, Any] = {}
    for filled in fill(source) if cards is None else cards:
        if filled.data is None:
            found[filled.name] = {"why_not": filled.why_not}
            continue
        bulky = filled.card.bulky
        found[filled.name] = {k: v for k, v in filled.data.items() if k not in bulky}
    told = {"title": source.title, "state": source.state, "problems": list(source.problems)}
    return plain({**told, "cards": found})  # type: ignore[no-any-return]


def plain(data: Any) -> Any:
    """JSON has no NaN, no infinity, no tuples and no paths."""
    if isinstance(data, float):
        return data if isfinite(data) else None
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    return str(data) if isinstance(data, Path) else data


def print_json(data: Any, indent: int | None = 1) -> None:
    """On stdout, with a line break at the end."""
    json.dump(plain(data), sys.stdout, indent=indent, allow_nan=False, ensure_ascii=False)
    sys.stdout.write("\n")
    sys.stdout.flush()
