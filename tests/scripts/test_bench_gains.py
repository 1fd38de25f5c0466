"""The benchmark of rivals with a gain, on a handful of images: what it tests, and what it says."""

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from stepsampler.grids import make_schedule
from stepsampler.models import load

ROOT = Path(__file__).resolve().parents[2]


def test_rivals_are_tested_as_published_and_with_the_gain_that_is_best(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    import bench_gains

    from peers.measure import Entry

    model = load("tiny")
    two, three, own, four = (
        make_schedule("linspace", n, model.noise, guidance_scale=w, model=model.spec)
        for n, w in ((2, 2.0), (3, 2.0), (2, 1.5), (4, 2.0))
    )
    has_gain = replace(own, steps=tuple(replace(step, gain=1.02) for step in own.steps))
    known = [
        ("ours", "ours", has_gain),
        ("half way", "part", own),
        ("linspace", "placement", two),
        ("4 steps", "long", four),
        ("3 steps", "long", three),
    ]
    rows = [
        {"name": name, "kind": kind, "stages": {}, "minutes": 0} | {"schedule": plan.to_json()}
        for name, kind, plan in known
    ]
    for row in rows:
        row["schedule"] = json.loads(row["schedule"])
    found = {"steps": [{"steps": 2, "passes": 4, "contenders": rows}]}
    (tmp_path / "benchmarks.json").write_text(json.dumps(found))
    # Searches have tests of their own; of three seeds the second is the median.
    scales = {0: 1.2, 1: 1.6, 2: 3.0}
    plans = [replace(own, steps=two.steps[:1] + own.steps[1:]), own, two]
    monkeypatch.setattr(
        bench_gains.Bench,
        "searched",
        lambda self, n, seed: Entry(f"seed {scales[seed]}", plans[seed], "now", {"search": 9}),
    )
    monkeypatch.setattr(bench_gains.Bench, "rivals", lambda self, rows: {})
    options = ["--steps", "2", "--gains", "1", "1.07", "1.2", "--selection", "8", "12"]
    options += ["--images", "24", "--batch", "12", "--run", str(tmp_path / "run")]
    options += ["--trial-images", "20", "--iterations", "1"]
    bench_gains.main([*options, "--docs", str(tmp_path)])
    (column,) = json.loads((tmp_path / "gains.json").read_text())
    by_name = {row["name"]: row for row in column["contenders"]}
    assert "half way" not in by_name, "a part of a search is no rival"
    assert "4 steps" not in by_name, "of many steps the shortest is there"
    assert not any(name.startswith("ours, gain") for name in by_name), "it has gains of its own"
    gained = (r for r in by_name.values() if ", gain " in r["name"] and r["kind"] != "polish")
    chosen = {row["name"]: row for row in gained}
    assert {name.rpartition(" ")[2] for name in chosen} <= {"1.07", "1.2"}
    for name, row in chosen.items():
        gain = float(name.rpartition(" ")[2])
        assert {step["gain"] for step in row["schedule"]["steps"]} == {gain}
    (polished,) = (row for row in by_name.values() if row["kind"] == "polish")
    assert polished["name"].startswith("linspace")
    assert polished["name"].endswith(", polished")
    choosing = 4 * (3 * 8 + 2 * (12 - 8))
    assert polished["search_passes"] > choosing + 2 * 4 * 40  # both checks, and gradients
    for row in by_name.values():
        values = [s["value"] for name, s in row["scores"].items() if name != "alignment"]
        assert len(values) == 4, "two extractors and two rulers"
        assert row["mean"][0] == pytest.approx(prod(values) ** 0.25)
    ours = sorted((r for r in by_name.values() if r["kind"] == "now"), key=lambda r: r["mean"][0])
    assert [row["headline"] for row in ours] == [False, True, False]
    for row in by_name.values():
        assert row["over"][0] == pytest.approx(ours[1]["mean"][0] / row["mean"][0] - 1)
    page = (tmp_path / "gains.md").read_text()
    assert page.count("\n| ") == 1 + len(by_name)
    assert "the best of many steps as published (3 steps)" in page
    measured = {file.name for file in (tmp_path / "run" / "test").iterdir()}
    bench_gains.main([*options, "--docs", str(tmp_path)])
    assert {file.name for file in (tmp_path / "run" / "test").iterdir()} == measured
    assert (tmp_path / "gains.md").read_text() == page
    # A rival that there was not: its rows alone are new, beside ours of the same seeds again.
    found = Entry("later", make_schedule("karras", 2, model.noise, model=model.spec), "cached")
    makers = {"later": lambda: found}
    monkeypatch.setattr(bench_gains.Bench, "rivals", lambda self, rows: makers)
    bench_gains.main([*options, "--docs", str(tmp_path), "--add"])
    (after,) = json.loads((tmp_path / "gains.json").read_text())
    count = len(column["contenders"])
    assert after["contenders"][:count] == column["contenders"]
    assert after["settings"] == column["settings"]
    new = after["contenders"][count:]
    (told,) = after["added"]
    assert told["rows"] == [row["name"] for row in new]
    assert [name.partition(", gain ")[0] for name in told["rows"]] == ["later"] * len(new)
    assert told["ours"] == pytest.approx(ours[1]["mean"]), "on one machine it is the same"
    assert new[0]["over"][0] == pytest.approx(ours[1]["mean"][0] / new[0]["mean"][0] - 1)
    page = (tmp_path / "gains.md").read_text()
    assert f"Later, in float32: {'; '.join(told['rows'])}." in page
    bench_gains.main([*options, "--docs", str(tmp_path), "--add"])
    assert (tmp_path / "gains.md").read_text() == page, "nothing is lacking any more"
    with pytest.raises(SystemExit, match="no column of 3 steps"):
        bench_gains.main([*options, "--steps", "3", "--docs", str(tmp_path), "--add"])
