"""The rows that are tested elsewhere, and what the page says of them."""

import json
from argparse import Namespace
from pathlib import Path
from typing import ClassVar

import pytest

from stepsampler import Schedule, Step

ROOT = Path(__file__).resolve().parents[2]


def row(name, kind, mean, headline=False, gain=1.0):
    plan = Schedule((Step(14.0, 2.0, gain=gain), Step(2.0, 3.0, gain=gain), Step(1.0, gain=gain)))
    data = {"name": name, "kind": kind, "mean": [mean, 0.5], "headline": headline}
    return data | {"schedule": json.loads(plan.to_json())}


ROWS = [
    row("ours", "ours", 20.0),
    row("grid", "placement", 30.0),
    row("grid, gain 1.07", "placement", 18.0, gain=1.07),
    row("other, gain 1.1", "search", 19.0, gain=1.1),
    row("other", "search", 25.0),
    row("many, gain 1.1", "long", 5.0),
    row("ours with gains, search seed 1", "now", 16.0, headline=True),
]
POLISHED = [
    {"schedule": "grid", "after": after, "passes": passes, "file": ROWS[0]["schedule"]}
    for passes in (5, 10)
    for after in (
        "",
        "a gain of 1.07, no search",
        "6 iterations, and gains",
        "6 iterations, and weights",
        "6 iterations, and gains, by values alone",
    )
]


class Bench:
    """Means that grow with the guidance, the prompts and the weights; and who was asked."""

    made: ClassVar = []

    def __init__(self, args):
        self.args = args
        Bench.made.append((args.held_out, args.model))

    def test(self, entries):
        first = entries[0].schedule.steps[0].guidance_scale
        factor = 1 + self.args.held_out + 2 * (self.args.model != "tiny") + (first - 2)
        rows = [
            {"name": e.name, "mean": [factor * (10 + k), 0.5]}
            | {"scores": {"alignment": {"value": 0.9 + factor / 100}}}
            for k, e in enumerate(entries)
        ]
        return {"contenders": rows, "n": 500, "seeds": [7, 506]}


def test_rows_are_tested_at_every_place_and_compared_with_what_they_are_of(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    from peers import gains_transfer

    column = {"steps": 3, "passes": 5, "contenders": ROWS}
    (tmp_path / "gains.json").write_text(json.dumps([column]))
    (tmp_path / "polish.json").write_text(json.dumps({"rows": POLISHED}))
    args = Namespace(docs=tmp_path, steps=[3], held_out=False, model="tiny", dtype="float32")
    args.images = 500
    gains_transfer.transfer(args, Bench)
    assert Bench.made == [
        (False, "tiny"),
        (True, "tiny"),
        (False, "tiny-second"),
        (False, "tiny"),
    ]
    (found,) = json.loads((tmp_path / "gains-transfer.json").read_text())
    names = [r["name"] for r in found["tests"]["as it was chosen"]["contenders"]]
    assert names == [
        "ours with gains, search seed 1",
        "grid, gain 1.07",
        "grid",
        "ours",
        "grid, before a polish",
        "grid, polished with gains",
        "grid, polished with weights",
    ]
    page = (tmp_path / "gains-transfer.md").read_text()
    assert "n = 500 each, seeds 7 to 506, in float32." in page
    (line,) = [line for line in page.splitlines() if line.startswith("| grid, gain 1.07 |")]
    assert line.count("-8 %") == 4, "11 of 12, whatever the place"
    assert line.endswith("| 91.0 % |")


def test_stronger_guidance_has_the_mean_that_is_named_and_leaves_out_the_unguided(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    from peers.gains_transfer import stronger
    from peers.measure import Entry

    plain = Entry("plain", Schedule((Step(14.0), Step(1.0))), "placement")
    guided = Entry("guided", Schedule.from_json(json.dumps(ROWS[2]["schedule"])), "placement")
    (found,) = stronger([plain, guided])
    scales = [step.guidance_scale for step in found.schedule.steps]
    # (2 + 3) / 2 * 1.5 is the mean; the excess over 1 stays as 1 to 2
    assert scales == pytest.approx([1 + 2.75 * 2 / 3, 1 + 2.75 * 4 / 3, 1.0])
    assert {step.gain for step in found.schedule.steps} == {1.07}
