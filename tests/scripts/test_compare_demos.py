"""Two builds: builds of a few lines here, which write what a run writes."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

BUILD = """
import json, sys, time
from pathlib import Path

def main():
    at = dict(zip(sys.argv, sys.argv[1:]))
    assert sys.argv[1] == "run", sys.argv
    folder = Path(at["--run"])
    folder.mkdir(parents=True, exist_ok=True)
    print(sys.argv, file=open(folder.parent / "calls", "a"))
    if at["--seed"] == "1" and not (folder / "half").exists():
        (folder / "half").touch()
        sys.exit("out of memory")
    until = time.process_time() + WORK
    while time.process_time() < until:
        pass
    test = [
        {"kind": "baseline", "fd": 20.0, "se": 1.0, "alignment": 0.9, "passes": 6, "n": 1000},
        {"kind": "found", "fd": FD + int(at["--seed"]), "se": 0.5, "alignment": 0.96,
         "passes": 6, "n": 1000},
    ]
    data = {"test": test, "passes": {"teacher": TEACHER, "trials": 100}}
    (folder / "result.json").write_text(json.dumps(data))
"""


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import compare_demos

    return compare_demos


@pytest.fixture
def before(bench, tmp_path, monkeypatch):
    def make(name, **values):
        package = tmp_path / name / "search" / "stepsearch"
        package.mkdir(parents=True)
        text = BUILD
        for key, value in values.items():
            text = text.replace(key, str(value))
        (package / "__init__.py").touch()
        (package / "cli.py").write_text(text)
        return tmp_path / name

    monkeypatch.setattr(bench, "HERE", make("now", WORK=0.1, FD=9.0, TEACHER=1000))
    return make("before", WORK=0.5, FD=9.5, TEACHER=3000)


def test_both_run_once_each_and_are_compared(bench, before, tmp_path, capsys):
    call = [str(before), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "demo")]
    call += ["--seeds", "0", "--options", "quick"]
    bench.main(call)
    made = json.loads((tmp_path / "demo.json").read_text())["rows"]
    assert [(row["build"], row["fd"]) for row in made] == [("before", 9.5), ("now", 9.0)]
    assert made[0]["passes"] == {"teacher": 3000, "trials": 100, "test": 12_000}
    assert made[0]["processor"] > 0.5
    assert made[1]["processor"] > 0.1
    assert "| now | 0 |" in (tmp_path / "demo.md").read_text()
    calls = (tmp_path / "runs" / "calls").read_text().splitlines()
    assert len(calls) == 2
    assert all("--quick" in line for line in calls)
    said = capsys.readouterr().out
    assert f"{13_100 / 15_100:.2f} of the passes" in said
    assert "an FD of -0.50 to that of before" in said
    bench.main(call)
    assert len((tmp_path / "runs" / "calls").read_text().splitlines()) == 2


def test_a_run_that_was_cut_off_goes_on_and_its_time_adds_up(bench, before, tmp_path):
    call = [str(before), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "demo")]
    call += ["--seeds", "1"]
    took = tmp_path / "runs" / "before-1.json"
    with pytest.raises(subprocess.CalledProcessError):
        bench.main(call)
    first = json.loads(took.read_text())
    assert (first["done"], first["processor"] > 0) == (False, True)
    (tmp_path / "runs" / "now-1").mkdir()
    (tmp_path / "runs" / "now-1" / "half").touch()  # that one goes through
    bench.main(call)
    whole = json.loads(took.read_text())
    assert whole["done"]
    assert whole["processor"] > first["processor"] + 0.5
    assert whole["seconds"] > first["seconds"]
