"""The benchmark of the rivals passes through all of its parts; its numbers mean nothing here."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from stepsampler.noise import NoiseSchedule
from stepsearch.space import SearchSpace

ROOT = Path(__file__).parents[2]
TINY = shlex.split(
    "--steps 2 --searching 2 --rivals dmn --scales 2 --rungs 8 10 --trials 2 --images 8 "
    "--rival-images 16 --finalists 1 --selection 8 --teacher-steps 3 --long 3 5 --test 1 "
    "--images-test 16 --batch 16 --processes 2 --dtype bfloat16"
)


def bench(folder, *options):
    command = [sys.executable, str(ROOT / "scripts/bench_peers.py"), *TINY, *options]
    command += ["--run", str(folder / "run"), "--docs", str(folder / "docs")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(1800)
def test_every_part_is_run_written_and_recalled(tmp_path):
    assert "stopped at 0 hours; run again to go on" in bench(tmp_path, "--hours", "0")
    assert not (tmp_path / "docs").exists()

    said = bench(tmp_path)
    assert "passes, about" in said
    assert "peers.md" in said
    found = json.loads((tmp_path / "docs/peers.json").read_text())
    (rows,) = found["steps"]
    names = [row["name"] for row in rows["contenders"]]
    assert names[0] == "ours"
    assert names[-2:] == ["OYS-like", "USF-like"]
    assert {row["passes"] for row in rows["contenders"]} <= {2, 3, 4}
    assert rows["n"] == 16
    assert rows["seeds"][0] == 60_000_000
    metrics = [m["name"] for m in rows["metrics"]]
    assert metrics == ["fd_texture128", "fd_lite0128"]
    assert len(rows["differences"]) >= 2 * (len(names) - 1)
    places = {row["placement"] for row in rows["screening"]}
    assert {"dmn", "karras", "ays-sd15"} <= places
    assert {row["guided"] for row in rows["screening"]} == {True, False}
    by_name = {row["name"]: row for row in rows["contenders"]}
    assert by_name["OYS-like"]["search_passes"] > 0 < by_name["ours"]["search_passes"]
    assert {row["steps"] for row in found["long"]["contenders"]} == {3, 5}
    assert (tmp_path / "docs/peers.png").stat().st_size > 1000
    table = (tmp_path / "docs/peers.md").read_text()
    assert "| ours | " in table
    assert "AYS (SD1.5 values)" in table

    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.safetensors")}
    bench(tmp_path)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.safetensors")} == files


def test_the_ablation_adds_axis_after_axis_at_one_budget(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from peers.studies import ablation

    args = SimpleNamespace(
        trials=9, finalists=2, selection=10, images=20, dtype="bfloat16", batch=10, rivals=["dmn"]
    )
    args.rungs, args.scales, args.teacher_steps = [10, 20], [2.0], 5
    rows = ablation(args, 5)
    assert next(iter(rows)) == "placement"
    assert list(rows)[-1] == "+ Free-U"
    noise = NoiseSchedule.scaled_linear()
    boxes = [
        SearchSpace(c.space, noise, noise.spec("sd", "epsilon"), "power") for c in rows.values()
    ]
    axes = [set(box.distributions) for box in boxes]
    sizes = [len(names) for names in axes]
    assert sizes == sorted(set(sizes))
    centre = {name: (d.low + d.high) / 2 for name, d in boxes[0].distributions.items()}
    assert boxes[0].schedule(centre).final_sigma == 0
    assert {c.space.passes for c in rows.values()} == {10}
    assert len({c.search.model_dump_json() for c in rows.values()}) == 1
    assert len({c.name for c in rows.values()}) == 5
