"""The measuring scripts run, at sizes that conclude nothing."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(name):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_coverage_prints_its_passes_and_a_line_for_each_distance(tmp_path, capsys):
    options = ["--images", "12", "--draws", "3", "--steps", "2", "--run", str(tmp_path)]
    script("check_coverage").main(options)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "3 draws of 12 images, 144 passes"
    assert [line.split()[0] for line in lines] == ["FD", "FD-infinity", "KID"]
    assert all("% of the intervals hold the mean" in line for line in lines)
    assert lines[0].endswith("(marked conservative)")  # 12 images, 128 axes
    made = sorted(path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors"))
    script("check_coverage").main(options)
    assert capsys.readouterr().out.splitlines() == [first, *lines]  # resumed: nothing anew
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")) == made


@pytest.mark.parametrize("option", ["--help", "--dry-run"])
def test_the_study_of_rankings_says_what_it_would_cost(option, tmp_path):
    command = [sys.executable, str(SCRIPTS / "study_ranking.py"), option]
    if option == "--dry-run":
        command += ["--run", str(tmp_path / "run"), "--docs", str(tmp_path / "docs")]
        command += ["--batch", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "docs").exists()
    if option == "--dry-run":
        assert " passes, about " in done.stdout
        assert " hours " in done.stdout


def test_the_benchmark_of_distances_agrees_with_its_rivals(capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script("bench_distance").main(["--sizes", "60x8", "--repeats", "1"])
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["n", "x", "d", "ours"]
    assert line.split()[0] == "60x8"
    ratio, agreement = line.split()[3:5]  # of torchmetrics
    assert ratio.endswith("x")
    assert float(agreement) < 1e-6
