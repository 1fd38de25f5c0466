"""Charts as SVG that follows the page: its colours, light or dark, and its font.

matplotlib draws, in colours that stand for variables of the page's style sheet. Series differ in
line and marker too, never in colour alone. Charts are as wide as a phone, so that their letters
are as large as the text around them; wide screens show several in a row.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from math import isfinite
from textwrap import shorten
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 5.2, 3.6  # inches of 72 CSS pixels
INK, GRID = "#010101", "#020202"
SERIES = ("#030301", "#030302", "#030303", "#030304", "#030305", "#030306")
STYLES = ("-", "--", "-.", ":", (0, (6, 2)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
VARIABLES = {INK: "--ink", GRID: "--rule"} | {c: f"--s{i}" for i, c in enumerate(SERIES)}
SETTINGS = {
    "svg.fonttype": "none",  # letters stay letters
    "text.parse_math": False,  # a name with dollars is a name
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 10,
}
NAMES = 44  # letters of a name in a legend


@dataclass(frozen=True)
class Axis:
    """How an axis looks."""

    label: str
    log: bool = False
    whole: bool = False  # ticks at whole numbers
    low: float | None = None  # where it begins


@dataclass(frozen=True)
class Series:
    """Points under a name."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    line: bool = True
    marker: bool = True
    steps: bool = False  # a stair: the value holds until the next point
    se: Sequence[float] | None = None


def lines(key: str, series: Sequence[Series], x: Axis, y: Axis) -> str:
    """One chart of several series, its legend below. `key` makes its identifiers the page's own."""
    figure = _figure(HEIGHT + 0.22 * len(series))
    axes = figure.subplots()
    handles = _draw(axes, series, x, y)
    names = [_safe(s.name) for s in series]
    figure.legend(handles, names, loc="outside lower left", handlelength=3.2)
    return _svg(figure, key)


def panels(key: str, titled: Sequence[tuple[str, Sequence[Series]]], y: Axis) -> str:
    """Small charts of one vertical axis, two in a row; a name stands below each."""
    rows = -(-len(titled) // 2)
    figure = _figure(2.1 * rows)
    grid = figure.subplots(rows, 2, sharey=True, squeeze=False)
    for axes, (title, series) in zip(grid.flat, titled, strict=False):
        _draw(axes, series, Axis(title), y if axes in grid[:, 0] else Axis(""))
    for axes in list(grid.flat)[len(titled) :]:
        axes.set_axis_off()
    return _svg(figure, key)


def bars(key: str, named: Sequence[tuple[str, float]], label: str) -> str:
    """Lying bars, the first on top, each with its number."""
    figure = _figure(0.8 + 0.3 * len(named))
    axes = figure.subplots()
    values = [value for _, value in named]
    drawn = axes.barh(range(len(named)), values, color=SERIES[0], height=0.6)
    axes.bar_label(drawn, [f"{v:.2f}" for v in values], padding=4)
    axes.set_yticks(range(len(named)), [_safe(name) for name, _ in named])
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.margins(x=0.15)
    return _svg(figure, key)


def _figure(height: float) -> "Figure":
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams.update(SETTINGS)
    return Figure(figsize=(WIDTH, height), layout="constrained")


def _draw(axes: "Axes", series: Sequence[Series], x: Axis, y: Axis) -> list[Any]:
    """Draw all series; returns what stands for each in a legend."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    handles = []
    for i, s in enumerate(series):
        k = i % len(SERIES)
        look: dict[str, Any] = {
            "color": SERIES[k],
            "linestyle": STYLES[k] if s.line else "none",
            "marker": MARKERS[k] if s.marker else "none",
            "markersize": 5 if s.line else 4,
            "linewidth": 2.4 if i == 0 else 1.6,
            "drawstyle": "steps-post" if s.steps else "default",
            "zorder": 10 - i,
        }
        handles.append(axes.errorbar(s.x, s.y, s.se, capsize=3, **look))
    axes.set_xlabel(x.label)
    axes.set_ylabel(y.label)
    axes.grid(True, linewidth=0.6)
    axes.set_axisbelow(True)
    if y.log and all(v > 0 for s in series for v in s.y):
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        digits: tuple[float, ...] = (1.0,) if high > 30 * low else (1.0, 2.0, 5.0)
        digits = digits if high > 3 * low else (1.0, 1.5, *map(float, range(2, 10)))
        axes.yaxis.set_major_locator(LogLocator(subs=digits))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if x.whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if y.low is not None:
        top = axes.get_ylim()[1]  # whose margin is of the values alone, and too little for markers
        axes.set_ylim(y.low, top + 0.05 * (top - y.low))
    return handles


def _safe(name: str) -> str:
    """A name for a legend: short, and with no first letter that matplotlib would hide it for."""
    said = shorten(name, NAMES, placeholder="…") or name[:NAMES]
    return f"\u200b{said}" if said.startswith("_") else said


def _svg(figure: "Figure", key: str) -> str:
    """Without metadata, head and names that nothing refers to, in the page's colours."""
    out = StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", text))

    def own(match: re.Match[str]) -> str:
        return f' id="{key}-{match[1]}"' if match[1] in used else ""

    text = re.sub(r' id="([^"]*)"', own, text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{key}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", text, count=1)
    text = re.sub(r'<svg([^>]*?) height="[^"]*"', r"<svg\1", text, count=1)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r"(-?\d+\.\d\d)\d+", r"\1", text)
    return text.replace(
        "<svg", '<svg aria-hidden="true" focusable="false"', 1
    )  # its frame says what it is


def finite(values: Sequence[float]) -> list[float]:
    """Those that a chart can hold."""
    return [value for value in values if isfinite(value)]
