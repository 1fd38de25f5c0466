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
    "front",
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
    of: tuple[str, ...] = ("run", "evaluation", "front")  # kinds of sources on whose page it is


@dataclass(frozen=True)
class Filled:
    """A card with what it has to say of a source."""

    name: str
    card: Card
    data: Data | None
    why_not: str = ""


def fill(source: Source) -> Iterator[Filled]:
    """Every card of such a source. What one cannot make sense of is said on it; others stand."""
    for name in NAMES:
        card: Card = import_module(f"{__name__}.{name}").CARD
        if source.kind not in card.of:
            continue
        try:
            yield Filled(name, card, card.data(source))
        except NotYet as why:
            yield Filled(name, card, None, str(why))
        except DAMAGED as error:
            said = f"{card.needs} cannot be read: {error!r}"
            yield Filled(name, card, None, said)
