"""The table of clients and schedules in docs/schedules.md, between its markers."""

import importlib.metadata
import re
from pathlib import Path

import engine
from cases import GROUPS, MEASURED
from flows import FLOWS

PAGE = Path(__file__).parents[2] / "docs" / "schedules.md"
BEGIN, END = "<!-- scripts/test_comfyui --write-table -->\n", "<!-- end -->\n"
COMFYUI = f"ComfyUI {engine.VERSION}"
DIFFUSERS = f"diffusers {importlib.metadata.version('diffusers')}"
COLUMNS = {
    "node": f"{COMFYUI}, our node",
    "core": f"{COMFYUI}, core nodes",
    "allowed": "the same, start and timesteps allowed for",
    "k-diffusion": f"k-diffusion {importlib.metadata.version('k-diffusion')}",
    "stock": f"{DIFFUSERS}, stock schedulers",
    "StepScheduler": f"{DIFFUSERS}, StepScheduler",
}


def rows():
    """A group of schedules a line: in each column the greatest difference, and of how many."""
    lines = [
        "| schedules | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (1 + len(COLUMNS)) + "|",
    ]
    for group, members in (GROUPS | {"flows": FLOWS}).items():
        cells = [f"{group} ({len(members)})"]
        for column in COLUMNS:
            found = [MEASURED.get((column, f"{group}: {name}")) for name in members]
            found = [max(values) for values in found if values]
            cells.append(_cell(found, len(members)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values, count):
    if not values:
        return "-"
    return f"{max(values):.0e}" + (f" ({len(values)})" if len(values) < count else "")


def written():
    """The table that the page has."""
    return PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]


def write():
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + BEGIN + rows() + END + rest.split(END)[1], encoding="utf-8")


def without_numbers(text):
    """Schedules, clients and how many: what does not depend on a processor's last digits."""
    return re.sub(r"\de-\d\d", "", text)
