"""A GP that is told the variance of each trial: Optuna's own, with a diagonal more."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch
from optuna._gp import gp, prior
from optuna.samplers import GPSampler
from optuna.trial import TrialState

SCRIPTS = Path(__file__).parents[2] / "scripts" / "bench" / "evaluation"


@pytest.fixture
def noise(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import study_noise

    return study_noise


def fitted(x, y):
    return gp.fit_kernel_params(
        X=x,
        Y=y,
        is_categorical=np.zeros(x.shape[1], bool),
        log_prior=prior.default_log_prior,
        minimum_noise=prior.DEFAULT_MINIMUM_NOISE_VAR,
        deterministic_objective=False,
    )


def test_the_mean_is_that_of_the_closed_form(noise):
    """k(x, X) (K + diag(variances + noise))^-1 y; Rasmussen and Williams 2006, eq. 2.25."""
    draw = np.random.default_rng(0)
    x, new, y = draw.random((12, 2)), draw.random((5, 2)), draw.normal(size=12)
    variances = draw.uniform(0, 0.5, 12)
    with noise.known(variances):
        model = fitted(x, y)
    assert type(fitted(x, y)) is gp.GPRegressor  # and nothing stays behind
    mean, _ = model.posterior(torch.from_numpy(new))
    points = torch.from_numpy(x)
    inner = model.kernel(points, points).numpy() + np.diag(variances + model.noise_var.item())
    across = model.kernel(torch.from_numpy(new), points).numpy()
    np.testing.assert_allclose(mean.numpy(), across @ np.linalg.solve(inner, y), rtol=1e-6)


def suggestions(sampler):
    study = optuna.create_study(sampler=sampler)
    for _ in range(14):
        trial = study.ask()
        x = trial.suggest_float("x", 0, 1)
        trial.set_constraint("floor", x - 0.9)
        study.tell(trial, (x - 0.3) ** 2)
    return [t.params["x"] for t in study.trials]


def test_without_variances_it_asks_what_optunas_own_asks(noise):
    own = suggestions(GPSampler(seed=1))
    assert suggestions(noise.Noisy(noise.none, seed=1)) == own
    told = suggestions(noise.Noisy(lambda trials: np.linspace(0, 0.1, len(trials)), seed=1))
    assert told[:10] == own[:10]
    assert told != own


def trial(state, value, n=50, **attrs):
    steps = {50: value} if n == 50 else {50: value + 4, n: value}
    if state == TrialState.COMPLETE:
        steps.pop(n, None)
        steps[50] = value + 4
    shown = {"value": np.log(value), "intermediate_values": steps, "last_step": max(steps)}
    return SimpleNamespace(**shown, user_attrs={"images": n, **attrs})


def test_variances_are_of_log_distances(noise):
    left_out = {"left_out": [9.0, 11.0]}  # 10 ± 1
    whole = trial(TrialState.COMPLETE, 10.0, 250, **left_out)
    failed = trial(TrialState.COMPLETE, 10.0, 250, error="not finite")
    np.testing.assert_allclose(noise.jackknife([whole, failed]), [0.01, 0])


def test_a_pruned_trial_is_as_sure_as_the_rungs_agree(noise):
    """Of finished trials the first rung was 3, 4 and 5 above the last: a spread of 1."""
    whole = [trial(TrialState.COMPLETE, v, 250) for v in (10.0, 12.0, 14.0)]
    for t, shift in zip(whole, (3, 4, 5), strict=True):
        t.intermediate_values = {50: np.exp(t.value) + shift}
    pruned = trial(TrialState.PRUNED, 20.0)
    np.testing.assert_allclose(noise.rung([*whole, pruned]), [0, 0, 0, 1 / 400])


def test_a_simulated_search_ends_with_a_finalist(noise, monkeypatch):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for arm in noise.ARMS:
        assert 0 < noise.simulated(arm, 0, 13) < 200
