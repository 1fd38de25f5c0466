"""The measuring scripts run, at sizes that conclude nothing."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from stepsampler.grids import make_schedule
from stepsampler.models import load
from stepsampler.sample import sample

SCRIPTS = Path(__file__).parents[2] / "scripts"
EVALUATION = SCRIPTS / "bench" / "evaluation"


def script(name, folder=EVALUATION):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_coverage_is_printed_written_and_resumed(tmp_path, capsys):
    cache, docs = tmp_path / "run", tmp_path / "docs"
    options = ["--images", "12", "14", "--draws", "3", "--steps", "2", "--dtype", "bfloat16"]
    options += ["--run", str(cache), "--docs", str(docs)]
    main = script("check_coverage").main
    main([*options, "--hours", "0"])
    said = capsys.readouterr().out
    assert said.startswith("3 draws of 14 images: 168 passes, about ")
    assert "stopped at 0 hours, 0 draws are there; run it again" in said
    assert not docs.exists()
    main(options)
    _, *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["FD", "FD-infinity", "KID"] * 4
    assert all("% of the intervals hold the mean" in line for line in lines)
    assert lines[0].endswith("(marked conservative)")  # 12 images, 128 axes
    assert last.endswith("docs: coverage.json, coverage.md")
    table = (docs / "coverage.md").read_text()
    assert "check_coverage.py --images 12 14 --draws 3" in table
    assert "| KID | 12 | in turn | 3 |" in table
    assert "| KID | 14 | at random | 3 |" in table
    data = json.loads((docs / "coverage.json").read_text())
    assert data["dtype"] == "bfloat16"
    assert [(row["n"], row["draws"]) for row in data["rows"]] == [(12, 3)] * 6 + [(14, 3)] * 6
    made = sorted(path.stat().st_mtime_ns for path in cache.glob("*.safetensors"))
    main(options)
    assert capsys.readouterr().out.splitlines()[1:] == [*lines, last]  # nothing anew
    assert sorted(path.stat().st_mtime_ns for path in cache.glob("*.safetensors")) == made


def test_the_study_of_rankings_says_what_it_would_cost(tmp_path):
    command = [sys.executable, str(EVALUATION / "study_ranking.py"), "--dry-run", "--batch", "4"]
    command += ["--schedules", "5", "0", "--run", str(tmp_path / "run")]
    command += ["--docs", str(tmp_path / "docs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "docs").exists()
    assert " passes, about " in done.stdout
    assert " hours " in done.stdout


def test_the_benchmark_of_distances_agrees_with_its_rivals(capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(EVALUATION))
    script("bench_distance").main(["--sizes", "60x8", "--repeats", "1"])
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["n", "x", "d", "once", "ours"]
    assert line.split()[0] == "60x8"
    ratio, agreement = line.split()[4:6]  # of torchmetrics
    assert ratio.endswith("x")
    assert float(agreement) < 1e-6


def test_methods_are_compared_at_their_best_guidance_and_resumed(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    methods = script("compare_methods", SCRIPTS)
    options = ["--steps", "2", "--scales", "2", "3", "--images", "12", "--selection", "8", "12"]
    options += ["--trajectories", "2", "--taught", "4", "--iterations", "1", "--part", "2"]
    options += ["--trials", "1", "--trial-images", "8", "--batch", "12"]
    options += ["--dtype", "float32", "--no-compile"]
    model = load("tiny")
    plan = make_schedule("linspace", 3, model.noise, guidance_scale=1.5, model=model.spec)
    monkeypatch.setattr("methods.bench.search", lambda *_: (plan, 123))  # has tests of its own
    (own,) = model.statistics  # those of two samples would overflow, of more take time
    (tmp_path / "run").mkdir()
    replace(own, guidance_scale=3.0).save(tmp_path / "run" / "statistics-3.safetensors", {})
    options += ["--run", str(tmp_path / "run"), "--docs", str(tmp_path)]
    plain = ["UniPC", "DPM-Solver-v3", "AMED, static", "AMED, learned", "NeuralSolver-like"]
    golden = ["UniPC, raw golden noise", "DPM-Solver-v3, learned golden noise"]
    methods.main([*options, "--methods", *plain, *golden, methods.OURS])
    page = (tmp_path / "methods.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert [row[0].removeprefix("| ") for row in rows] == [*plain, *golden, methods.OURS]
    assert {row[1] for row in rows[:-1]} <= {"2 (2, 3)", "3 (2, 3)"}
    raw = {row[0] for row in rows if "raw golden noise" in row[0]}
    assert {row[2] for row in rows if row[0] in raw} == {"8"}, "two guided calls more"
    assert {row[2] for row in rows[:-1] if row[0] not in raw} == {"4"}
    assert rows[-1][1:3] == ["its own", "6"]
    assert rows[-1][-1] == "123 + 0 |"
    assert rows[0][4] == ""
    assert all(row[4][0] in "+-" for row in rows[1:]), "paired with UniPC"
    assert page.count("lose to UniPC: ") == 2
    assert page.endswith("## 8 calls\n\nNot measured.\n")
    absent = page.split("Not measured here: ")[1].splitlines()[0].rstrip(".").split("; ")
    assert {*absent, *plain, *golden, methods.OURS} == {*methods.EVERY}
    losers = page.split("these lose to UniPC: ")[1].splitlines()[0].rstrip(".").split("; ")
    assert [n for n in losers if n != "none"] == [
        row[0].removeprefix("| ") for row in rows if row[4].endswith("(loses)")
    ]
    spent = json.loads((tmp_path / "run" / "spent.json").read_text())
    # 2 trajectories: a teacher's call in each third of the interval, the student's two calls, and
    # the second one's gradient; each under guidance
    assert spent["AMED, learned 2"]["passes"] == 2 * 2 * (3 + 2 + 3)
    assert spent["UniPC 2 choosing"]["passes"] == (2 * 8 + 2 * 4) * 4
    asked = page.split("`python scripts/compare_methods.py ")[1].split("`")[0]
    assert "--selection 8 12" in asked
    assert str(tmp_path) not in page
    (tmp_path / "methods.md").unlink()
    capsys.readouterr()
    methods.main([*options, "--page"])
    assert (tmp_path / "methods.md").read_text() == page
    methods.main([*options, "--methods", "AMED, static"])
    assert ": training" not in capsys.readouterr().out
    again = (tmp_path / "methods.md").read_text()
    assert [line for line in again.splitlines() if line.startswith("| ")] == [
        line for line in page.splitlines() if line.startswith("| ")
    ], "what is measured stays"


def test_weights_that_are_learned_from_a_teacher_come_nearer_to_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from methods.learned import Teacher, learn

    model = load("tiny")
    teacher = Teacher(model, ["a photo of a bag"], 2.0, 4, tmp_path / "goals.safetensors")
    goals = teacher.goals(4)
    assert teacher.passes == 4 * 50 * 2
    plan, _ = learn(teacher, 3, 12, 4)
    assert [len(step.weights) for step in plan.steps] == [1, 2, 3], "of all predictions so far"
    assert {step.guidance_scale for step in plan.steps} == {2.0}
    before = make_schedule("linspace", 3, model.noise, guidance_scale=2.0, model=model.spec)
    part = teacher.part(range(4))
    distances = [
        float((sample(part, part.latents, each) - goals).square().mean()) for each in (before, plan)
    ]
    assert distances[1] < 0.8 * distances[0]
