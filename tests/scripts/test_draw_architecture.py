"""The picture of the architecture is drawn from the contracts, and docs/ has that of today."""

import importlib.util
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "draw_architecture.py"

spec = importlib.util.spec_from_file_location("draw_architecture", SCRIPT)
drawing = importlib.util.module_from_spec(spec)
spec.loader.exec_module(drawing)


def shown(svg):
    return [text.text for text in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_the_picture_in_the_docs_is_that_of_todays_contracts():
    now = drawing.draw(drawing.packages(ROOT))
    there = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert there == now, "run python scripts/draw_architecture.py"


def test_the_picture_shows_other_contracts_as_they_are(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        """
        [project.scripts]
        low = "lower.cli:main"
        high = "upper.cli:main"
        [tool.hatch.build.targets.wheel]
        packages = ["src/upper", "src/lower"]
        [[tool.importlinter.contracts]]
        name = "lower stands alone"
        type = "forbidden"
        source_modules = ["lower"]
        forbidden_modules = ["upper"]
        [[tool.importlinter.contracts]]
        name = "floors of lower"
        type = "layers"
        containers = ["lower"]
        layers = ["cellar"]
        [[tool.importlinter.contracts]]
        name = "floors of upper"
        type = "layers"
        containers = ["upper"]
        layers = ["attic", "left | right"]
        """
    )
    texts = {
        "upper/__init__.py": "It stands above.",
        "upper/attic.py": "Old things -> dust. Nobody comes.\n\nNot this.",
        "upper/left/__init__.py": "Here & there.",
        "upper/right.py": "`there`",
        "lower/__init__.py": "It stands below.",
        "lower/cellar.py": "Wine.",
    }
    for name, text in texts.items():
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'"""{text}"""\n', encoding="utf-8")
    upper, lower = drawing.packages(tmp_path)
    assert (upper.name, upper.command, upper.sentence) == ("upper", "high", "It stands above")
    assert (lower.name, lower.command) == ("lower", "low")
    assert [[tuple(wing) for wing in floor] for floor in upper.floors] == [
        [("attic", "Old things → dust")],
        [("left", "Here & there"), ("right", "there")],
    ]
    svg = drawing.draw([upper, lower])
    words = shown(svg)
    assert [w for w in words if w in ("attic", "left", "right", "cellar")] == [
        "attic", "left", "right", "cellar",
    ]  # fmt: skip
    assert {"study file", "high", "schedule file", "low", "images", "Here & there"} <= set(words)


def test_no_text_leaves_its_box():
    """In a font as wide as DejaVu Sans, which is wider than what browsers have by these names."""
    from matplotlib.textpath import TextPath

    svg = drawing.draw(drawing.packages(ROOT))
    root = ET.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    boxes = [
        [float(rect.get(key)) for key in ("x", "y", "width", "height")]
        for rect in root.iter(f"{space}rect")
    ]
    width = float(root.get("width"))
    checked = 0
    for text in root.iter(f"{space}text"):
        if text.get("text-anchor"):
            continue
        x, y, size = (float(text.get(key)) for key in ("x", "y", "font-size"))
        long = TextPath((0, 0), text.text, size=size).get_extents().width
        inside = [b for b in boxes if b[0] <= x <= b[0] + b[2] and b[1] <= y <= b[1] + b[3]]
        smallest = min(inside, key=lambda b: b[2] * b[3])
        assert x + long <= smallest[0] + smallest[2] < width, text.text
        checked += 1
    assert checked > 40
