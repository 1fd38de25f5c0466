"""Draw docs/gallery.webp and docs/few-steps.webp: the same prompts and seeds at 3 to 8 steps.

    python scripts/gallery.py

The schedules and their scores are those of docs/benchmarks.json, at 3, 4, 5, 6 and 8 guided steps:
of each budget the best rival above what the search found. The images are of the bundled model, one
of each class, at the first test seeds: none is chosen by its looks. Beside them goes a page with
the numbers, docs/gallery.md.
"""

import json
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from stepsampler import models
from stepsampler.generate import generate
from stepsampler.grids import make_schedule
from stepsampler.schedule import Schedule
from stepsearch.metrics.alignment import load_prompts
from stepsearch.metrics.evaluator import TEST, seeds_of
from stepsearch.paths import write_whole

DOCS = Path(__file__).parents[1] / "docs"
STEPS = (3, 4, 5, 6, 8)
METRIC, OTHER = "fd_texture128_5k", "fd_lite0128_5k"
SIDE, GAP, LABEL, HEAD = 72, 3, 236, 26  # pixels
INK, FAINT, OURS = "#1f2328", "#59636e", "#0a7d4f"

TAIL = """
    Lower is better. A distance of thousands of images says little of one of them, and one image
    says little of a schedule: look for shapes that are whole, and for contrast. Under {other},
    which the search did not see, the found one is ahead of the rival above it at {ahead} steps, and
    behind it at {behind}:
    [how-good.md](how-good.md#under-an-extractor-that-the-search-did-not-see).
    """


@dataclass(frozen=True)
class Row:
    """A line of a picture."""

    name: str
    note: str
    schedule: Schedule
    ours: bool = False
    first: bool = False  # of a group


def measured(steps: int, told: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The best rival and ours of a budget, by the distance that our search went by."""
    (entry,) = (e for e in told["steps"] if e["steps"] == steps)
    ours = next(c for c in entry["contenders"] if c["name"] == "ours")
    rivals = [
        c
        for c in entry["contenders"]
        if not c["name"].startswith("ours") and c["passes"] <= entry["passes"]
    ]
    return min(rivals, key=lambda c: float(c["scores"][METRIC]["value"])), ours


def rows_of(told: dict[str, Any]) -> list[Row]:
    """Two lines for each budget, and the model's own hundred steps."""
    found = []
    for steps in STEPS:
        for c in measured(steps, told):
            schedule = Schedule.from_json(json.dumps(c["schedule"]))
            ours = c["name"] == "ours"
            name = "found by the search" if ours else f"{steps} guided steps: best rival"
            note = f"{c['passes']:g} passes, FD {c['scores'][METRIC]['value']:.1f}"
            name_of = c["name"].replace(", w ", ", w=")  # stays on one line
            note = note if ours else f"{name_of}\n{note}"
            found.append(Row(name, note, schedule, ours, not ours))
    last = next(c for c in told["steps"][0]["contenders"] if c["passes"] > 100)
    schedule = Schedule.from_json(json.dumps(last["schedule"]))
    note = f"{last['passes']:g} passes, FD {last['scores'][METRIC]['value']:.1f}"
    return [*found, Row(f"{last['steps']} steps", note, schedule, first=True)]


def few(told: dict[str, Any], model: models.Model) -> list[Row]:
    """What fewer steps do to evenly spaced ones, and what the search found at three."""
    plain = [
        make_schedule(
            "linspace", n, model.noise, solver="ddim", order=1, guidance_scale=2.0, model=model.spec
        )
        for n in (50, 8, 3)
    ]
    lines = [
        Row(f"{plan.num_steps} steps", f"evenly spaced, {plan.passes} passes", plan, first=True)
        for plan in plain
    ]
    _, ours = measured(3, told)
    schedule = Schedule.from_json(json.dumps(ours["schedule"]))
    return [*lines, Row("found", f"{schedule.passes} passes", schedule, ours=True, first=True)]


def draw(rows: Sequence[Row], model: models.Model, path: Path) -> None:
    """A picture with a line of images for each row, all of the same prompts and seeds."""
    told = load_prompts("fashion-mnist")
    seeds = seeds_of(TEST, 10)
    prompts = [told[seed % len(told)].text for seed in seeds]
    cell = SIDE + GAP
    tops, y = [], HEAD
    for row in rows:
        y += 10 if row.first and tops else 0
        tops.append(y)
        y += cell
    sheet = Image.new("RGB", (LABEL + cell * len(seeds), y), "white")
    pen = ImageDraw.Draw(sheet)
    large, small = (ImageFont.load_default(size) for size in (14, 12))
    for k, prompt in enumerate(prompts):
        word = re.sub(r"^(a photo of )?(a |an )?(pair of )?", "", prompt)
        pen.text((LABEL + k * cell + SIDE / 2, 6), word, FAINT, small, anchor="ma")
    for row, top in zip(rows, tops, strict=True):
        color = OURS if row.ours else INK
        lines = [part for line in row.note.split("\n") for part in textwrap.wrap(line, 38)]
        y = top + SIDE / 2 - 8 * len(lines)
        pen.text((8, y), row.name, color, large, anchor="lm")
        for k, line in enumerate(lines, 1):
            pen.text((8, y + 2 + 15 * k), line, FAINT, small, anchor="lm")
        if row.ours:
            pen.rectangle((0, top, 2, top + SIDE - 1), OURS)
        (batch,) = generate(model, row.schedule, prompts, seeds, batch_size=len(seeds))
        for k, image in enumerate(batch.images):
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            picture = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            sheet.paste(picture, (LABEL + k * cell, top))
    write_whole(path, lambda p: sheet.save(p, "WEBP", quality=82, method=6))


def wrapped(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), 120, break_on_hyphens=False)


def listed(numbers: Sequence[int]) -> str:
    """3, 4 and 5; none."""
    *some, last = map(str, numbers or ["none"])
    return f"{', '.join(some)} and {last}" if some else last


def page(told: dict[str, Any]) -> str:
    """docs/gallery.md."""
    pairs = {steps: measured(steps, told) for steps in STEPS}

    def words(ahead: bool) -> str:
        other = {n: [c["scores"][OTHER]["value"] for c in pair] for n, pair in pairs.items()}
        return listed([n for n, (best, ours) in other.items() if (ours < best) == ahead])

    head = f"""
        The same ten prompts and seeds at 3, 4, 5, 6 and 8 guided steps of the bundled model: of
        each budget the best rival, and below it what the search found for no more passes. The last
        row is 100 steps. The seeds are the first of the test, so that no image is here for its
        looks. Schedules and numbers are those of [benchmarks.md](benchmarks.md), which has the
        other rivals, too; the best rival is that of the lowest {METRIC}.
        """
    lines = [
        "# Gallery",
        "",
        *wrapped(head),
        "",
        "![Ten prompts; two rows a budget, the best rival above the found one](gallery.webp)",
        "",
        f"| guided steps | best rival | passes | {METRIC} | found: passes | {METRIC} |",
        "|---|---|---|---|---|---|",
    ]
    for steps in STEPS:
        best, ours = pairs[steps]
        (a, b) = (c["scores"][METRIC] for c in (best, ours))
        lines.append(
            f"| {steps} | {best['name']} | {best['passes']:g} | {a['value']:.2f} ± "
            f"{a['standard_error']:.2f} | {ours['passes']:g} | {b['value']:.2f} ± "
            f"{b['standard_error']:.2f} |"
        )
    lines += [
        "",
        *wrapped(TAIL.format(other=OTHER, ahead=words(True), behind=words(False))),
        "",
        "`python scripts/gallery.py` draws and writes this page.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    told = json.loads((DOCS / "benchmarks.json").read_text(encoding="utf-8"))
    model = models.load("tiny")
    torch.set_num_threads(1)
    draw(rows_of(told), model, DOCS / "gallery.webp")
    draw(few(told, model), model, DOCS / "few-steps.webp")
    write_whole(DOCS / "gallery.md", lambda p: p.write_text(page(told), encoding="utf-8"))


if __name__ == "__main__":
    main()
