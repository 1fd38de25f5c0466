"""Long searches: what a GP is fitted to does not grow for ever."""

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import GPSampler
from optuna.trial import TrialState, create_trial

from stepsearch.engine import algorithms
from stepsearch.engine.algorithms import few, make_algorithm
from stepsearch.engine.pareto import dominated


def study_of(values, infeasible=(), alignment=None):
    """Finished trials at 1/n, 2/n, …, after one that failed and before one that runs."""
    directions = ["minimize"] if alignment is None else ["minimize", "maximize"]
    study = optuna.create_study(directions=directions)
    study.add_trial(create_trial(state=TrialState.FAIL))
    for k, value in enumerate(values):
        study.add_trial(
            create_trial(
                params={"x": (k + 1) / len(values)},
                distributions={"x": FloatDistribution(0, 1)},
                values=[value] if alignment is None else [value, alignment[k]],
                constraints={"alignment": 1.0 if k in infeasible else -1.0},
            )
        )
    study.add_trial(create_trial(state=TrialState.RUNNING))
    return study


def test_the_best_are_kept_and_others_of_the_whole_search(monkeypatch):
    monkeypatch.setattr(algorithms, "MOST", 20)
    draw = np.random.default_rng(0)
    trials = study_of(draw.permutation(20) + 1.0).trials
    assert few(trials) == trials
    values = draw.permutation(100) * 1.0
    trials = study_of(values, infeasible=[int(values.argmin())]).trials
    kept = few(trials)
    states = [TrialState.FAIL, *[TrialState.COMPLETE] * 20, TrialState.RUNNING]
    assert [t.state for t in kept] == states
    found = {t.value for t in kept[1:-1]}
    assert set(np.arange(1.0, 11.0)) <= found, "the ten best feasible ones"
    numbers = [t.number for t in kept[1:-1] if t.value not in np.arange(1.0, 11.0)]
    assert len(numbers) == 10
    assert numbers[0] <= 5
    assert numbers[-1] >= 95
    assert max(np.diff(numbers)) < 25, "nowhere a gap"


def test_of_two_objectives_the_front_is_kept(monkeypatch):
    monkeypatch.setattr(algorithms, "MOST", 40)
    draw = np.random.default_rng(0)
    points = draw.uniform(size=(100, 2))
    kept = few(study_of(points[:, 0].tolist(), alignment=points[:, 1].tolist()).trials)
    best = ~np.array(dominated([(fd, -alignment) for fd, alignment in points]))
    assert 2 < best.sum() < 20
    assert set(np.flatnonzero(best) + 1) <= {t.number for t in kept}
    assert len(kept) == 42


@pytest.mark.parametrize("algorithm", ["gp", "gp-local", "gp-cmaes"])
def test_a_gp_is_fitted_to_so_many_trials_at_most(algorithm, monkeypatch):
    fitted = []
    think = GPSampler._sample_relative_impl

    def noted(self, study, complete, running, box):
        fitted.append(len(complete))
        return think(self, study, complete, running, box)

    monkeypatch.setattr(GPSampler, "_sample_relative_impl", noted)
    monkeypatch.setattr(algorithms, "MOST", 16)
    study = study_of(np.random.default_rng(0).uniform(1, 2, 60).tolist())
    study.sampler = make_algorithm(algorithm, 0, trials=200)
    study.ask().suggest_float("x", 0, 1)
    assert fitted == [16]
