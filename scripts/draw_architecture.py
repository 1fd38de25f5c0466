#!/usr/bin/env python3
"""Draw docs/architecture.svg: the wings, as import-linter's contracts in pyproject.toml name them.

    python scripts/draw_architecture.py

A wing's sentence begins its docstring, on the first line. Same contracts, same bytes.
"""

import ast
import textwrap
import tomllib
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
FILES = ("study file", "schedule file", "images")  # what goes in, between and out
TINTS = ("#3f51b5", "#00796b")
EDGE, COLUMN, GUTTER = 16, 424, 88  # pixels
LINE, PAD, GAP = 17, 10, 6
NAME, CHAR = 104, 6.7  # where a sentence begins beside a name; a character's width at 12 pixels
CHIPS, HEAD = 46, 66  # heights of the row of files and of a column's head


class Wing(NamedTuple):
    """A module or package under the name in its contract."""

    name: str
    sentence: str


class Package(NamedTuple):
    """One side: its command, its docstring's first sentence, and floors from top to ground."""

    name: str
    command: str
    sentence: str
    rule: str
    floors: tuple[tuple[Wing, ...], ...]


def packages(root: Path) -> list[Package]:
    """The packages with a contract of layers; those that may import another one come first."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    folders = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    commands = {main.split(".")[0]: name for name, main in project["project"]["scripts"].items()}
    found = []
    for contract in contracts:
        for name in contract.get("containers", ()):
            (folder,) = (root / f for f in folders if Path(f).name == name)
            floors = tuple(
                tuple(_wing(folder, wing.strip()) for wing in layer.split("|"))
                for layer in contract["layers"]
            )
            sentence, rule = _wing(folder.parent, name).sentence, contract["name"]
            found.append(Package(name, commands[name], sentence, rule, floors))
    closed = {name for c in contracts if c["type"] == "forbidden" for name in c["source_modules"]}
    return sorted(found, key=lambda package: package.name in closed)


def _wing(folder: Path, name: str) -> Wing:
    path = folder / name
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        raise SystemExit(f"{path} has no docstring to say what {name} is for")
    sentence = docstring.splitlines()[0].partition(". ")[0].removesuffix(".")
    for written, shown in (("`", ""), ("<->", "↔"), ("->", "→")):
        sentence = sentence.replace(written, shown)
    return Wing(name, sentence)


def draw(sides: list[Package]) -> str:
    """The picture as SVG: a column for each side, on common ground."""
    heights = [sum(_height(floor) + GAP for floor in side.floors) for side in sides]
    top = EDGE + CHIPS
    width = 2 * EDGE + len(sides) * COLUMN + (len(sides) - 1) * GUTTER
    ground = top + HEAD + max(heights)
    parts = [_rect(0, 0, width, ground + EDGE, "#ffffff", rx=12)]
    for i, (side, height, tint) in enumerate(zip(sides, heights, TINTS, strict=True)):
        x, y = EDGE + i * (COLUMN + GUTTER), float(top)
        parts += [_rect(x - 8, y, COLUMN + 16, ground - y + 4, tint, 0.07, rx=10)]
        parts += [_text(x + 2, y + 24, side.name, tint, 18, bold=True, mono=True)]
        parts += [_text(x + 2, y + 42, side.sentence, "#424242", 11)]
        parts += [_text(x + 2, y + 58, side.rule, "#757575", 11)]
        y += HEAD
        more = (max(heights) - height) / len(side.floors)  # so that all end on the same ground
        for n, floor in enumerate(side.floors):
            strength = 0.30 - 0.22 * n / max(1, len(side.floors) - 1)
            parts += _floor(floor, (x, y, _height(floor) + more), tint, strength)
            y += _height(floor) + more + GAP
        if i:  # whoever comes first may import it
            parts += _imports(x - GUTTER, (top + ground) / 2)
    parts += _files(sides, width)
    size = f'width="{width}" height="{ground + EDGE}" viewBox="0 0 {width} {ground + EDGE}"'
    names = " and ".join(side.name for side in sides)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Helvetica, Arial, '
            'sans-serif" role="img">',
            "<!-- made by scripts/draw_architecture.py -->",
            f"<title>The wings of {names}, from the command line down to the ground</title>",
            *parts,
            "</svg>\n",
        ]
    )


def _files(sides: list[Package], width: int) -> list[str]:
    """The way through: file, command, file, command, images."""
    chip, y = 108, EDGE - 4
    step = (width - 2 * EDGE - chip) / len(sides)
    parts = []
    for i, name in enumerate(FILES):
        x = EDGE + i * step
        parts += [_rect(x, y, chip, 28, "#fff3e0", rx=6, line="#ef6c00")]
        parts += [_text(x + chip / 2, y + 18, name, "#bf360c", 12, bold=True, middle=True)]
    for i, side in enumerate(sides):
        start, end = EDGE + i * step + chip + 8, EDGE + (i + 1) * step - 8
        parts += [_arrow(start, end, y + 14, TINTS[i])]
        label = (start + end) / 2
        wide = 8 * len(side.command) + 20
        parts += [_rect(label - wide / 2, y + 2, wide, 24, "#ffffff")]
        parts += [_text(label, y + 18, side.command, TINTS[i], 13, mono=True, middle=True)]
    return parts


def _imports(x: float, y: float) -> list[str]:
    middle = x + GUTTER / 2
    return [
        _text(middle, y - 8, "imports", "#616161", 12, middle=True),
        _arrow(x + 14, x + GUTTER - 14, y, "#616161"),
        _text(middle, y + 19, "never back", "#616161", 12, middle=True),
    ]


def _floor(
    floor: tuple[Wing, ...], place: tuple[float, float, float], tint: str, strength: float
) -> list[str]:
    """One wing: name and sentence side by side; several, which may not import each other: boxes."""
    x, y, height = place
    parts, wide = [], (COLUMN - GAP * (len(floor) - 1)) / len(floor)
    first = y + PAD + 11 + (height - _height(floor)) / 2
    for i, wing in enumerate(floor):
        left = x + i * (wide + GAP)
        parts += [_rect(left, y, wide, height, tint, strength)]
        parts += [_text(left + PAD, first, wing.name, "#212121", 13, bold=True, mono=True)]
        for n, line in enumerate(_lines(wing, len(floor))):
            across, down = (NAME, n) if len(floor) == 1 else (PAD, n + 1)
            parts += [_text(left + across, first + LINE * down, line, "#212121", 12)]
    return parts


def _height(floor: tuple[Wing, ...]) -> int:
    lines = max(len(_lines(wing, len(floor))) for wing in floor)
    return 2 * PAD + LINE * (lines if len(floor) == 1 else lines + 1) - 4


def _lines(wing: Wing, beside: int) -> list[str]:
    room = COLUMN - NAME - PAD if beside == 1 else COLUMN / beside - 2 * PAD
    return textwrap.wrap(wing.sentence, int(room / CHAR), break_on_hyphens=False)


def _rect(
    x: float, y: float, width: float, height: float, fill: str, opacity: float = 1.0,
    rx: int = 5, line: str = "none",
) -> str:  # fmt: skip
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{rx}" '
        f'fill="{fill}" fill-opacity="{opacity:.3f}" stroke="{line}"/>'
    )


def _text(
    x: float, y: float, text: str, fill: str, size: int, *,
    bold: bool = False, mono: bool = False, middle: bool = False,
) -> str:  # fmt: skip
    options = ' font-weight="bold"' if bold else ""
    options += ' font-family="Menlo, Consolas, monospace"' if mono else ""
    options += ' text-anchor="middle"' if middle else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}"{options}>{escape(text)}</text>'
    )


def _arrow(start: float, end: float, y: float, tint: str) -> str:
    return (
        f'<path d="M{start:g} {y:g}H{end - 7:g}" stroke="{tint}" stroke-width="2"/>'
        f'<path d="M{end:g} {y:g}l-10 -5v10z" fill="{tint}"/>'
    )


def main() -> None:
    """Write the picture."""
    path = ROOT / "docs" / "architecture.svg"
    path.write_text(draw(packages(ROOT)), encoding="utf-8")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
