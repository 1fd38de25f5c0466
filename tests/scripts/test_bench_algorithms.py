"""The benchmark's searches on a toy, and its tables."""

import argparse
import importlib.util
import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stepsampler.errors import UserError
from stepsampler.noise import NoiseSchedule
from stepsearch.config import StudyConfig
from stepsearch.engine.claim import claim_folder, make_plan
from stepsearch.engine.study import enqueue, open_study, run_trials
from stepsearch.metrics.distance import Moments
from stepsearch.metrics.evaluator import Measurement
from stepsearch.space.box import SearchSpace

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "bench_algorithms.py"
SD = NoiseSchedule.scaled_linear()
SPEC = SD.spec("stable-diffusion", "epsilon")


@pytest.fixture
def bench(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_algorithms", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "bench_algorithms", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "Evaluator", lambda *_: Toy())
    return module


class Toy:
    """The distance grows with that of the last sigma from 0.1."""

    saved = 0
    model = SimpleNamespace(
        noise=SD,
        spec=SPEC,
        guidance="classifier-free",
        experts=SimpleNamespace(boundary=None),
        statistics=(),
    )
    reference = SimpleNamespace(search=Moments(np.zeros(2), np.eye(2), 100))
    identity = "toy"

    def measure(self, schedule, seeds):
        rows = np.array([np.random.default_rng(seed).normal(size=2) for seed in seeds])
        off = abs(np.log(schedule.steps[-1].sigma / 0.1))
        return Measurement((rows + off).astype(np.float32), np.ones(len(seeds), np.float32))


@pytest.fixture
def source(tmp_path):
    """A run with two known points and two of its own."""
    config = StudyConfig.model_validate(
        {
            "name": "toy",
            "space": {"num_steps": 3, "passes": 6},
            "evaluation": {"images": 40, "selection_images": 30},
            "search": {"algorithm": "random", "trials": 4, "finalists": 2},
        }
    )
    folder = tmp_path / "source"
    claim_folder(folder, config)
    make_plan(folder, "toy", "power", 0.5)
    space = SearchSpace(config.space, SD, SPEC, "power")
    study = open_study(folder, config)
    centre = dict.fromkeys(space.distributions, 1.0) | {"final_sigma": 0.1}
    enqueue(study, folder, [(centre, "one"), (centre | {"log_gap_0": 0.5}, "two")])
    run_trials(study, folder, config, space, Toy(), 0.5)
    return folder


def options(**given):
    defaults = {
        "ladder": None,
        "transfer": None,
        "algorithms": ["random"],
        "dtype": None,
        "seeds": 2,
        "trials": 10,
    }
    return argparse.Namespace(**(defaults | given))


def rows_of(bench, source, args, budgets):
    planned = bench.searches(bench.claimed(source), args)
    rows = []
    for i, search in enumerate(planned):
        job = (source, source / str(i), search, budgets, 1, time.time() + 60)
        rows += bench.one_search(*job)
        if i == 0:
            assert bench.one_search(*job) == rows  # a second call resumes, and searches no more
    return rows


def test_the_ladder_is_compared_with_all_images_at_equal_trials(bench, source):
    rows = rows_of(bench, source, options(ladder=[10, 20, 40]), [5, 10])
    assert len(rows) == 8
    last = {(r["arm"], r["seed"]): r for r in rows if r["trials"] == 10}
    for seed in (0, 1):
        plain, ladder = last["all images", seed], last["ladder", seed]
        assert plain["finished"] == 10 > ladder["finished"]
        assert plain["passes"] > ladder["passes"]
    table = bench.ladder_table(rows, 10)
    assert table.count("\n") == 4
    saved = 1 - sum(r["passes"] for k, r in last.items() if k[0] == "ladder") / sum(
        r["passes"] for k, r in last.items() if k[0] == "all images"
    )
    assert f"| {100 * saved:.0f} % |" in table.splitlines()[-1]
    assert "all images" in bench.summary(rows, [5, 10])


def test_other_weights_than_those_of_the_run_are_refused(bench, source, monkeypatch):
    (search, _) = bench.searches(bench.claimed(source), options())
    monkeypatch.setattr(Toy, "identity", "other")
    with pytest.raises(UserError, match="its run was of another model.*: 'toy', not 'other'"):
        bench.one_search(source, source / "0", search, [5], 1, time.time() + 60)


def test_a_run_that_has_not_ended_helps_no_other(bench, source, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench", str(source), "--transfer", str(source)])
    with pytest.raises(SystemExit, match="2"):
        bench.main()
    assert "source: no finished run" in capsys.readouterr().err


def test_transfer_reports_the_passes_until_the_cold_start_is_reached(bench, source):
    (source / "result.json").write_text(json.dumps({"selection": [{"trial": 2}, {"trial": None}]}))
    rows = rows_of(bench, source, options(transfer=source, seeds=1), [4, 8])
    arm = "from source"
    assert {r["arm"] for r in rows} == {"cold", arm}
    assert "| 0 |" in bench.transfer_table(rows, arm, [4, 8])
    made = [
        {"arm": "cold", "seed": 0, "trials": 8, "passes": 800, "fd": 5.0, "se": 0.1},
        {"arm": arm, "seed": 0, "trials": 4, "passes": 400, "fd": 6.0, "se": 0.1},
        {"arm": arm, "seed": 0, "trials": 6, "passes": 600, "fd": 4.9, "se": 0.1},
    ]
    assert bench.transfer_table(made, arm, [4, 6, 8]).endswith("| 800 | 600 | 25 % |")
    assert "not reached" in bench.transfer_table(made[:2], arm, [4, 8])
