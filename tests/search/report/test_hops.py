"""Paths between schedules, and schedules whose numbers have moved."""

import json
from dataclasses import replace

import pytest
from reporting import command, toy_run
from running import SD, SPEC, ToyWorkers

from stepsampler.grids import GRIDS, from_sigmas
from stepsampler.schedule import Schedule
from stepsearch.report import measuring
from stepsearch.report.hops import hops, jittered


def schedule(n=3, grid="karras", w=2.0, order=2, final=None, solver="dpmpp-midpoint"):
    *sigmas, end = GRIDS[grid](n, SD)
    return from_sigmas(sigmas, end if final is None else final, [w] * n, order, solver, SPEC)


def test_each_hop_changes_its_own_numbers_and_the_last_is_the_end():
    start = schedule()
    end = schedule(4, "power", 3.0, final=0.01, solver="unipc-bh2")
    end = replace(end, steps=tuple(replace(step, gain=1.05) for step in end.steps))
    path = hops(start, end)
    names, plans = zip(*path, strict=True)
    assert names == (
        "number of steps",
        "placement",
        "guidance",
        "final sigma",
        "gain",
        "solver, orders and the rest",
    )
    assert plans[-1] == end
    resampled, placed, guided, landed, gained, _ = plans
    assert resampled.num_steps == 4
    assert (resampled.steps[0].sigma, resampled.steps[-1].sigma) == pytest.approx(
        (start.steps[0].sigma, start.steps[-1].sigma)
    )
    assert [s.sigma for s in placed.steps] == [s.sigma for s in end.steps]
    assert [s.guidance_scale for s in placed.steps] == [2.0] * 4
    assert [s.guidance_scale for s in guided.steps] == [3.0] * 4
    assert (guided.final_sigma, landed.final_sigma) == (start.final_sigma, 0.01)
    assert {s.gain for s in landed.steps} == {1.0}
    assert {s.gain for s in gained.steps} == {1.05}
    assert gained.solver == "dpmpp-midpoint"


def test_what_changes_nothing_is_no_hop():
    start = schedule()
    assert hops(start, start) == []
    assert [name for name, _ in hops(start, schedule(w=4.0))] == ["guidance"]


def test_a_change_that_is_no_schedule_comes_with_the_next():
    *levels, _ = GRIDS["power"](3, SD)
    start = from_sigmas(levels, 0.5 * levels[-1], [2.0] * 3, 2, "dpmpp-midpoint", SPEC)
    end = from_sigmas([14.0, 1.0, 0.3 * levels[-1]], 0.0, [2.0] * 3, 2, "dpmpp-midpoint", SPEC)
    names = [name for name, _ in hops(start, end)]
    assert names == ["placement and guidance and final sigma"]
    assert hops(start, end)[-1][1] == end


def test_an_analytic_first_step_comes_with_the_number_of_steps():
    end = schedule(4)
    first = replace(end.steps[0], analytic=0.95, guidance_scale=1.0, order=1)
    end = replace(end, steps=(first, replace(end.steps[1], order=1), *end.steps[2:]))
    path = dict(hops(schedule(), end))
    assert path["number of steps"].steps[0].analytic == 0.95
    assert path["number of steps"].passes == end.passes


@pytest.mark.parametrize("share", [0.01, 0.05])
def test_jitter_moves_every_number_by_its_share_and_no_other(share):
    plan = schedule(4, w=3.0, final=0.01)
    plan = replace(plan, steps=(*plan.steps[:2], replace(plan.steps[2], guidance_scale=1.0),
                                plan.steps[3]))  # fmt: skip
    moved = jittered(plan, share, 1)
    assert moved != jittered(plan, share, 2)
    assert moved == jittered(plan, share, 1)
    for i, (a, b) in enumerate(zip(plan.steps, moved.steps, strict=True)):
        if i:  # the first may not go beyond the model's noise
            assert abs(b.sigma / a.sigma - 1) == pytest.approx(share)
        wanted = 0 if a.guidance_scale == 1 else share
        assert abs(b.guidance_scale / a.guidance_scale - 1) == pytest.approx(wanted)
        assert (b.order, b.gain) == (a.order, 1.0)
    assert moved.steps[0].sigma <= plan.steps[0].sigma


def test_both_are_measured_on_the_test_seeds_and_shown(tmp_path, monkeypatch):
    """The toy's distance is known: the path adds up, and its ends are the test's own."""
    folder = tmp_path / "run"
    result = toy_run(folder)
    monkeypatch.setattr(
        measuring, "Evaluator", lambda config, cache, device: ToyWorkers(config, cache)
    )
    said = command("report", folder, "--ablation", "--jitter", "-o", tmp_path / "page.html")
    assert said.exit_code == 0, said.exception
    assert "test images each: " in said.output + said.stderr
    path = json.loads((folder / "ablation.json").read_text())["rows"]
    best = min(result.of_kind("baseline"), key=lambda row: row.score.value)
    assert path[0]["value"] == pytest.approx(best.score.value)
    assert path[-1]["value"] == pytest.approx(result.found.score.value)
    brought = sum(row["minus_above"] for row in path[1:])
    assert brought == pytest.approx(result.found.score.value - best.score.value)
    assert Schedule.from_json(json.dumps(path[-1]["schedule"])).steps == (
        result.found.candidate.schedule.steps
    )
    jitter = json.loads((folder / "jitter.json").read_text())
    assert [row["share"] for row in jitter["rows"]] == [0.01, 0.02, 0.05]
    assert all(row["minus_se"] > 0 for row in jitter["rows"])
    page = (tmp_path / "page.html").read_text()
    assert path[-1]["change"] in page
    assert "when every number moves by so much" in page


def test_without_a_found_schedule_there_is_nothing_to_measure(tmp_path):
    from reporting import begun

    begun(tmp_path / "run")
    said = command("report", tmp_path / "run", "--jitter")
    assert said.exit_code != 0
    assert "--ablation and --jitter are of a found schedule" in str(said.exception)
