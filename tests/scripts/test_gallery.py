"""The gallery is of the schedules that were measured, and its page has their numbers."""

import json
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import gallery  # noqa: E402

DOCS = ROOT / "docs"
TOLD = json.loads((DOCS / "benchmarks.json").read_text(encoding="utf-8"))


def test_the_page_has_the_numbers_of_the_benchmark():
    assert (DOCS / "gallery.md").read_text(encoding="utf-8") == gallery.page(TOLD)


def test_of_each_budget_it_has_the_best_rival_above_ours_and_neither_costs_more():
    rows = gallery.rows_of(TOLD)
    assert [row.ours for row in rows] == [False, True] * 5 + [False]
    for steps, best, ours in zip(gallery.STEPS, rows[0:10:2], rows[1:10:2], strict=True):
        assert max(best.schedule.passes, ours.schedule.passes) <= 2 * steps
        assert best.name.startswith(f"{steps} guided steps")
        (entry,) = (e for e in TOLD["steps"] if e["steps"] == steps)
        rivals = [c for c in entry["contenders"] if not c["name"].startswith("ours")]
        affordable = [c for c in rivals if c["passes"] <= 2 * steps]
        lowest = min(c["scores"][gallery.METRIC]["value"] for c in affordable)
        assert best.note.endswith(f"FD {lowest:.1f}")
    assert rows[-1].schedule.passes == 200


def test_numbers_are_listed_in_words():
    assert gallery.listed([]) == "none"
    assert gallery.listed([3]) == "3"
    assert gallery.listed([3, 5, 8]) == "3, 5 and 8"


def test_the_pictures_are_small_and_whole():
    sizes = 0
    for name in ("gallery.webp", "few-steps.webp"):
        sizes += (DOCS / name).stat().st_size
        with Image.open(DOCS / name) as picture:
            picture.load()
            assert picture.width == gallery.LABEL + 10 * (gallery.SIDE + gallery.GAP)
    assert sizes < 300_000
