"""Trials that fail: others can be measured, and the algorithms keep away from what failed."""

import pytest
from optuna.trial import TrialState
from running import ToyWorkers, run, settings

from stepsampler import UserError
from stepsearch.engine.algorithms import better_half, shown
from stepsearch.engine.run import run_study
from stepsearch.engine.study import failed, finished, open_study
from stepsearch.engine.tracking import NoTracking
from stepsearch.report.summary import as_data

ALGORITHMS = ("gp-local", "gp", "tpe", "cmaes", "gp-cmaes", "nsga2", "random")


def broken(schedule):
    """What all algorithms are drawn to: the lower the last sigma, the better."""
    return schedule.num_steps < 15 and schedule.steps[-1].sigma < 0.25


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_region_whose_images_are_not_finite_ends_no_search(tmp_path, algorithm):
    config, news = settings(trials=16, algorithm=algorithm), []
    result, _, _ = run(tmp_path, config, news=news, broken=broken)
    assert result.trials == 16
    trials = failed(open_study(tmp_path, config))
    assert as_data(result, config)["failed"] == len(trials) > 0
    said = [line[-1] for line in news]
    for trial in trials:
        assert f"trial {trial.number} failed: the images are not finite" in said


def test_two_objectives_learn_of_failures_too(tmp_path):
    config = settings(trials=14, algorithm="gp", objectives=("fd", "alignment"))
    result, _, _ = run(tmp_path, config, broken=broken)
    assert result.trials == 14
    assert result.failed


def test_a_search_where_nearly_everything_fails_ends(tmp_path):
    config = settings(trials=12, algorithm="random")

    class Few(ToyWorkers):
        measured = 0

        def measure(self, jobs, seeds=None):
            if seeds is not None:
                Few.measured += 1
                self.broken = lambda schedule: Few.measured > 2
            else:
                self.broken = lambda schedule: False
            return super().measure(jobs, seeds)

    workers = Few(config, tmp_path)
    result = run_study(config, tmp_path, workers, NoTracking(), lambda *_: None)
    assert result.trials == 2
    assert result.failed == 12


def test_a_trial_that_does_not_fit_into_the_memory_is_one_that_fails(tmp_path):
    config = settings(trials=8, algorithm="random")

    class Full(ToyWorkers):
        measured = 0

        def measure(self, jobs, seeds=None):
            if seeds is not None:
                Full.measured += 1
                if Full.measured == 3:
                    raise UserError("a batch of 50 does not fit into the memory of cuda")
            return super().measure(jobs, seeds)

    workers = Full(config, tmp_path)
    result = run_study(config, tmp_path, workers, NoTracking(), lambda *_: None)
    assert (result.trials, result.failed) == (8, 1)
    (trial,) = failed(open_study(tmp_path, config))
    assert trial.user_attrs["error"] == "a batch of 50 does not fit into the memory of cuda"


def test_failed_trials_look_like_the_worst_and_in_a_neighbourhood_like_its_worse_half(tmp_path):
    config = settings(trials=16, algorithm="random")
    run(tmp_path, config, broken=broken, aligned=lambda s: 0.5 + 0.5 * (s.num_steps > 15))
    study = open_study(tmp_path, config)
    trials = study.get_trials()
    whole = [t.value for t in shown(finished(study))]
    seen = {t.number: t for t in shown(trials)}
    half = {t.number: t for t in better_half(list(seen.values()))}
    numbers = [t.number for t in failed(study)]
    assert numbers
    for number in numbers:
        assert seen[number].state == TrialState.COMPLETE
        assert seen[number].value == pytest.approx(max(whole))
        assert min(whole) < half[number].value < max(whole)
        assert seen[number].constraints["alignment"] > 0  # as all the others
        assert trials[number].state == TrialState.FAIL
        assert "alignment" not in trials[number].constraints
