"""The cards of a page, a file each with its template beside it.

A card says what it shows as plain JSON first (`data`, which `--json` prints), or raises `NotYet`
with a sentence. `charts` draws that JSON; the template shows both.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from stepsearch.report.sources import DAMAGED, Source

Data = dict[str, Any]
NAMES = (
    "verdict",
    "held_out",
    "schedules",
    "same_seeds",
    "ablation",
    "history",
    "health",
    "use_it",
    "provenance",
)


class NotYet(Exception):  # noqa: N818
    """A sentence that says why a card does not apply, or not yet."""


@dataclass(frozen=True)
class Card:
    """One card."""

    title: str
    needs: str  # a word on what it is made of
    data: Callable[[Source], Data]  # plain JSON; raises NotYet
    charts: Callable[[Data], dict[str, str]] = lambda data: {}  # SVG by name
    bulky: tuple[str, ...] = ()  # keys that `--json` leaves out: pictures


@dataclass(frozen=True)
class Filled:
    """A card with what it has to say of a source."""

    name: str
    card: Card
    data: Data | None
    why_not: str = ""


def fill(source: Source) -> Iterator[Filled]:
    """Every card in turn. What a card cannot make sense of is said on it; the others stand."""
    for name in NAMES:
        card: Card = import_module(f"{__name__}.{name}").CARD
        try:
            yield Filled(name, card, card.data(source))
        except NotYet as why:
            yield Filled(name, card, None, str(why))
        except DAMAGED as error:
            said = f"{card.needs} cannot be read: {error!r}"
            yield Filled(name, card, None, said)
