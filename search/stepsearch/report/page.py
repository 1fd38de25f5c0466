"""One HTML file that needs nothing else: no network, no server, no other file.

Templates escape whatever they are given. The page's own policy forbids requests, and any script
but the one of this package.
"""

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from stepsampler.errors import percent
from stepsampler.support.files import write_text
from stepsearch.compare.figures import with_error
from stepsearch.report.cards import Filled, fill
from stepsearch.report.cards.health import states
from stepsearch.report.cards.held_out import interval
from stepsearch.report.sources import DAMAGED, Source

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
PAGE = "report.html"  # in the folder of a run
# no favicon, no font, no image from elsewhere; styles are those of the page and of its charts
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{}'"


def write_page(source: Source, path: Path) -> list[Filled]:
    """Write the page of a run or an evaluation; return its cards."""
    cards = list(fill(source))
    write_text(path, render(source, cards))
    return cards


def render(source: Source, cards: Sequence[Filled]) -> str:
    """The page as text."""
    from markupsafe import Markup

    script = (HERE / "page" / "page.js").read_text(encoding="utf-8")
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shown = []
    for filled in cards:
        filled, charts = _drawn(filled)
        drawn = {name: Markup(svg) for name, svg in charts.items()}  # matplotlib's
        shown.append({"filled": filled, "charts": drawn})
    return _environment().get_template("page/page.html").render(
        source=source,
        cards=shown,
        style=Markup((HERE / "page" / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=POLICY.format(digest),
    )  # fmt: skip


def _drawn(filled: Filled) -> tuple[Filled, dict[str, str]]:
    """A card with its charts as SVG; what cannot be drawn costs the card, and not the page."""
    if filled.data is None:
        return filled, {}
    try:
        return filled, filled.card.charts(filled.data)
    except DAMAGED as error:
        why = f"{filled.card.needs} cannot be drawn: {error!r}"
        return replace(filled, data=None, why_not=why), {}


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"pm": _pm, "percent": _percent, "number": _number, "interval": interval}
    made.filters["states"] = states
    return made


def _pm(value: float, se: float | None) -> str:
    return with_error(value, float("nan") if se is None else se)


def _percent(share: float | None) -> str:
    return "" if share is None or not isfinite(share) else percent(share)


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}g}"
