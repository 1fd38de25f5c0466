"""The scripts that measure workers and storages run, at sizes that conclude nothing."""

import importlib
import importlib.util
import os
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from postgres import program

from stepsearch.engine.study import finished, open_study

SCRIPTS = Path(__file__).parents[2] / "scripts" / "bench"
ECHO = """
import os
from cluster.builds import serve

def answer(request):
    print("what a library prints", flush=True)
    return os._exit(3) if request["die"] else [os.environ["PYTHONPATH"], request]

serve(answer)
"""


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return script


class Here:
    """Builds that are this very process."""

    def __init__(self, answer):
        self.answer = answer

    def ask(self, **request):
        return self.answer(request)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_builds_run_under_their_own_code_and_take_turns(load, tmp_path):
    builds = importlib.import_module("cluster.builds")
    echo, other = tmp_path / "echo.py", tmp_path / "other"
    echo.write_text(f"import sys\nsys.path.insert(0, {str(SCRIPTS)!r})\n{ECHO}")
    (other / "search" / "stepsearch").mkdir(parents=True)
    with builds.Build(str(echo)) as this, builds.Build(str(echo), other) as that:
        places = [build.ask(die=False, k=k)[0] for k, build in enumerate((this, that))]
        assert places[0].startswith(str(SCRIPTS.parents[1] / "search"))
        assert places[1].startswith(str(other / "search"))
        with pytest.raises(SystemExit, match="died"):
            that.ask(die=True)
        assert this.ask(die=False, k=7)[1] == {"die": False, "k": 7}
    with pytest.raises(SystemExit, match="no checkout"):
        builds.Build(str(echo), tmp_path)
    assert builds.turns(["a", "b"], 3) == [["a", "b"], ["b", "a"], ["a", "b"]]
    assert builds.interval([2.0] * 5) == "2 [2, 2]"


def test_time_that_others_had_the_cores_does_not_count(load):
    """Two processes on one core: each has half of the time, and its clock says so."""
    builds, before = importlib.import_module("cluster.builds"), os.sched_getaffinity(0)
    code = f"import os\nos.sched_setaffinity(0, {{{min(before)}}})\nwhile True: pass"
    busy = subprocess.Popen([sys.executable, "-c", code])
    try:
        time.sleep(0.3)
        os.sched_setaffinity(0, {min(before)})
        began, wall, cpu = builds.clock(), time.monotonic(), time.thread_time()
        while time.thread_time() - cpu < 0.3:
            pass
        counted, passed = builds.clock() - began, time.monotonic() - wall
    finally:
        os.sched_setaffinity(0, before)
        busy.kill()
        busy.wait()
    assert passed > 0.4
    assert counted == pytest.approx(0.3, abs=0.1)


def test_a_worker_is_compared_with_the_very_calls_of_its_trial(load, monkeypatch, capsys, threads):
    worker = load("worker")
    noted, repeated = [], worker.repeated

    def noting(calls, device):
        noted.append([(call.__name__, len(inputs[0])) for call, inputs, _ in calls])
        return repeated(calls, device)

    monkeypatch.setattr(worker, "repeated", noting)
    both = {name: Here(worker.Served()) for name in ("this build", "that build")}
    monkeypatch.setattr(worker, "builds", lambda *_: both)
    worker.main(["networks", "--trials", "1", "--images", "12"])
    assert len(noted) == 2
    for calls, served in zip(noted, both.values(), strict=True):
        rows = {name: sum(n for call, n in calls if call == name) for name, _ in calls}
        assert rows["decode"] == rows["features"] == 12
        assert rows["_call"] in range(12, 6 * 12 + 1, 12), "six passes at most, some of them known"
        evaluator = served.answer.evaluator
        assert "_call" not in vars(evaluator.model), "it is left as it was"
        assert "decode" not in vars(evaluator.model.pipeline.vae)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("this build: ")
    assert said[1].startswith("this build: speed of a worker / bare loop: ")
    assert said[-1].startswith("speed of a worker, this build / that: ")


def test_rates_of_workers_count_their_waits_out_and_the_leader_in(load, monkeypatch):
    """Two workers of ten seconds, one of which was kept from its core for five."""
    worker, start = load("worker"), datetime(2026, 1, 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)

    def trial(pid, ended, passes):
        attrs = {"worker": ["host", str(pid), "machine", "word"], "passes": passes}
        return SimpleNamespace(user_attrs=attrs, datetime_complete=start + timedelta(0, ended))

    trials = [trial(7, 4, 6), trial(7, 10, 6), trial(8, 9, 4)]
    began, ends = (100.0, {7: 1.0, 8: 2.0}), [(109.0, {7: 6.0, 8: 2.0}), (110.0, {7: 6.0, 8: 2.0})]
    found = worker.rates(trials, began, ends, 2.0, 10)
    assert found["wall"] == pytest.approx(3600 * (120 / 10 + 40 / 9))
    assert found["quiet"] == pytest.approx(3600 * (120 / (5 + 1) + 40 / (9 + 1)))
    alone = worker.rates(trials[:2], began, ends[1:], 2.0, 10)
    assert alone["quiet"] == pytest.approx(3600 * 120 / 5), "the leader has the other core"


def test_costs_are_those_of_a_filled_journal(load, tmp_path, monkeypatch, capsys, threads):
    storage = importlib.import_module("cluster.costs")
    main = load("storage").main
    both = {name: Here(storage.answer) for name in ("this build", "that build")}
    monkeypatch.setattr("cluster.costs.builds", lambda *_: both)
    options = ["--trials", "12", "24", "--algorithms", "random", "--rounds", "1"]
    monkeypatch.setattr("stepsearch.engine.stages.search.wait", quick)
    main(["costs", *options, "--asks", "2", "--turns", "2"])
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in said if not line.startswith("  ")] == [
        f"{n} trials, {what}, {build} build"
        for n in (12, 24)
        for what in ("a turn of the loop", "a trial by random, beside measuring it")
        for build in ("this", "that")
    ]
    folder = tmp_path / storage.NAME
    for count in (12, 24):
        storage.fill(folder, count, 3)
    trials = finished(open_study(folder, storage.settings(24)))
    assert len(trials) == 24
    assert all(len(t.params) == len(trials[0].params) > 5 for t in trials)
    monkeypatch.setattr(storage, "run_trials", full)
    request = {"what": "gp", "trials": 24, "asks": 2, "steps": 3, "folder": str(folder)}
    assert storage.answer(request) == []
    assert "gp at 24 trials" in capsys.readouterr().err
    storage.show(24, ["gp"], ["a"], {("gp", "a"): [[]]})
    assert "does not fit" in capsys.readouterr().out


def quick(futures, timeout):
    return set(), {future for future in futures if not future.done()}


def full(*_):
    raise MemoryError("of this machine")


def test_workers_that_sleep_share_a_budget_and_say_what_else_they_did(tmp_path):
    kinds = ["journal", *(["postgres"] if program("initdb") else [])]
    command = [sys.executable, str(SCRIPTS / "storage.py"), "waiting", "--storages", *kinds]
    command += ["--workers", "2", "--seconds", "0.2", "--each", "2"]
    paths = os.pathsep.join(str(SCRIPTS.parents[1] / half) for half in ("search", "sampler"))
    env = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[3:]]
    assert [row[:2] for row in rows] == [[kind, "2"] for kind in kinds]
    shares = np.array([[float(cell.rstrip("%")) for cell in row[2:4]] for row in rows])
    assert (shares > 0).all()
    assert (shares[:, 0] >= shares[:, 1]).all(), "the storage is part of what is not measuring"
    assert all(int(row[5]) > 0 for row in rows), "a worker computes"
    assert all(int(row[6]) > 0 and int(row[7]) >= 2 for row in rows[1:]), "so does a server"
