"""The benchmark of the polish on a handful of images: its rows and its files."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_each_start_has_a_row_as_it_was_with_a_gain_and_polished(tmp_path, monkeypatch):
    """And with another freedom, added to that table."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    import bench_polish

    few = ["--iterations", "1", "--images", "12", "--check-images", "8", "--images-test", "8"]
    few += ["--batch", "8", "--cache", str(tmp_path / "cache")]
    few += ["--starts", "kl-optimal, 3 steps, w 2", "--out", str(tmp_path / "polish")]
    for more in (["--freedoms", "gain"], ["--freedoms", "none", "--gains", "--add"]):
        monkeypatch.setattr(sys, "argv", ["bench_polish.py", *few, *more])
        bench_polish.main()
    data = json.loads((tmp_path / "polish.json").read_text(encoding="utf-8"))
    plain, gain, *polished = data["rows"]
    assert [row["spent"] for row in (plain, gain)] == [0, 0]
    for row, numbers in zip(polished, (10, 7), strict=True):
        assert row["spent"] == 6 * (12 * (1 + numbers) + 8 * len(row["checks"]))
        assert row["checks"][0]["iteration"] == 0
    assert polished[1]["after"].endswith(" iterations, levels and scales")
    assert {step["gain"] for step in gain["file"]["steps"]} == {1.07}
    assert str(tmp_path) not in json.dumps(data["settings"])
    table = (tmp_path / "polish.md").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("| kl-optimal") for line in table) == 4
