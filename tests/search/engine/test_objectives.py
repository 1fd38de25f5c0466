"""Two objectives, FD and alignment, and alignment as a floor."""

import numpy as np
import pytest
from running import run, settings

from stepsampler import UserError, load
from stepsearch.config import StudyConfig
from stepsearch.engine.pareto import dominated
from stepsearch.engine.study import distance_of, finished, open_study
from stepsearch.metrics.evaluator import Evaluator
from stepsearch.report.summary import as_data, table, verdict, write


def trade_off(schedule):
    """The nearer the last sigma to the target, 0.05, the lower are FD and alignment."""
    if schedule.num_steps > 15:
        return 1.0
    return float(np.clip(np.log(schedule.steps[-1].sigma / 0.05) / 3, 0.1, 1.0))


def test_what_another_one_beats_nowhere_is_not_dominated():
    points = [(1, 3), (2, 2), (3, 1), (2, 3), (2, 2), (3, 3)]
    assert dominated(points) == [False, False, False, True, False, True]


@pytest.mark.parametrize("algorithm", ["random", "tpe", "gp", "gp-local"])
def test_two_objectives_end_with_a_front(tmp_path, algorithm):
    config = settings(trials=25, algorithm=algorithm, objectives=["fd", "alignment"])
    result, config, _ = run(tmp_path, config, aligned=trade_off)
    trials = finished(open_study(tmp_path, config))
    assert all(len(t.values) == 2 and not t.constraints for t in trials)
    front = [row for row in result.test if row.candidate.kind in ("found", "front")]
    assert len(front) >= 3
    measured = [row for row in result.selection if row.candidate.kind == "front"]
    points = [(row.score.value, -row.measurement.alignment) for row in measured]
    assert not any(dominated(points))
    write(result, config, tmp_path)
    files = sorted(p.name for p in (tmp_path / "front").iterdir())
    others = [row.candidate for row in result.of_kind("front")]
    assert files == sorted(f"trial-{c.trial}.json" for c in others)
    first = load(tmp_path / "front" / files[0])
    assert {first.provenance["trial"]} < {c.trial for c in others}
    assert f"{len(others)} more on the front of FD and alignment" in verdict(result, config)
    assert len(table(result, config).rows) == len(as_data(result, config)["test"])


def test_of_two_objectives_the_exported_one_still_keeps_the_alignment(tmp_path):
    """Else the lowest FD would win, whatever its images show."""
    config = settings(trials=25, objectives=["fd", "alignment"], alignment_drop=0.3)
    result, _, _ = run(tmp_path, config, aligned=trade_off)
    lowest = min(result.of_kind("front"), key=lambda row: row.score.value)
    assert result.found.measurement.alignment > 0.6
    assert lowest.measurement.alignment < 0.6
    assert lowest.score.value < result.found.score.value
    assert result.winner.kind in ("found", "baseline")


def test_a_front_of_before_leaves_no_files(tmp_path):
    config = settings(trials=12, objectives=["fd", "alignment"])
    result, config, _ = run(tmp_path, config, aligned=trade_off)
    write(result, config, tmp_path)
    (tmp_path / "front" / "trial-99.json").write_text("{}")
    write(result, config, tmp_path)
    assert "trial-99.json" not in {p.name for p in (tmp_path / "front").iterdir()}


def test_the_floor_is_a_setting(tmp_path):
    """With a floor that all keep, the best by FD is chosen; with a strict one it is not."""
    found = {}
    for drop in (0.95, 0.5):
        config = settings(alignment_drop=drop)
        result, _, _ = run(tmp_path / str(drop), config, aligned=trade_off)
        found[drop] = result.found
        for trial in finished(open_study(tmp_path / str(drop), config)):
            missing = 1.0 - drop - trial.user_attrs["alignment"]  # the teacher shows everything
            assert trial.constraints["alignment"] == pytest.approx(missing)
    assert found[0.95].score.value < found[0.5].score.value
    assert found[0.5].measurement.alignment > 0.4 > found[0.95].measurement.alignment


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"objectives": ["alignment"]}, r'must be \["fd"\] or \["fd", "alignment"\], got \["al'),
        ({"objectives": []}, r"got \[\]"),
        ({"objectives": ["fd", "alignment"], "algorithm": "cmaes"}, "cmaes has one objective; gp"),
        ({"alignment_drop": -0.1}, "greater than or equal to 0"),
    ],
)
def test_objectives_that_cannot_be_are_refused(search, message):
    with pytest.raises(ValueError, match=message):
        settings(**search)


def test_alignment_is_no_objective_where_nothing_judges_it(tmp_path):
    (tmp_path / "p.txt").write_text("a fox\n")
    config = StudyConfig.model_validate(
        {
            "name": "t",
            "space": {"num_steps": 3, "passes": 6},
            "evaluation": {"prompts": str(tmp_path / "p.txt")},
            "search": {"objectives": ["fd", "alignment"]},
        }
    )
    message = "search.objectives: alignment is unknown, because the prompts of .*have no classes"
    with pytest.raises(UserError, match=message):
        Evaluator(config, tmp_path)


def test_distance_is_the_first_value(tmp_path):
    config = settings(trials=3, objectives=["fd", "alignment"])
    run(tmp_path, config)
    trials = finished(open_study(tmp_path, config))
    assert [distance_of(t) for t in trials] == [t.values[0] for t in trials]
