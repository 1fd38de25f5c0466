import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from stepsearch.engine.stopping import no_gain, stopped

RNG = np.random.default_rng(0)
BLOCKS = RNG.normal(size=20) * 0.1  # what the seeds have in common


def trial(value, noise=0.01, origin=None, excess=-1.0, state=TrialState.COMPLETE):
    left_out = value + BLOCKS + RNG.normal(size=20) * noise
    attrs = {"left_out": left_out.tolist()} | ({"origin": origin} if origin else {})
    return create_trial(
        state=state,
        value=value if state == TrialState.COMPLETE else None,
        params={},
        distributions={},
        user_attrs=attrs,
        system_attrs={"constraints:alignment": excess},
    )


def study_of(*trials):
    study = optuna.create_study()
    for one in trials:
        study.add_trial(one)
    return study


def test_a_search_that_gains_goes_on():
    study = study_of(trial(9.0, origin="baseline"), trial(8.0), trial(7.0), trial(6.0))
    assert stopped(study, 2) is None
    assert stopped(study, None) is None


def test_a_search_without_a_gain_stops_and_says_so():
    study = study_of(trial(9.0, origin="baseline"), trial(6.0), trial(7.0), trial(8.0))
    assert stopped(study, 3) is None  # the three brought 9 down to 6
    assert stopped(study, 2) == "the last 2 of the algorithm improved FD by 0.000 ± 0.000"


def test_a_gain_within_the_noise_is_none():
    study = study_of(trial(6.0), trial(5.99, noise=0.1), trial(7.0))
    reason = no_gain(study.trials, 2)
    assert reason is not None
    assert reason.startswith("the last 2 of the algorithm improved FD by 0.010 ± ")
    assert no_gain(study_of(trial(6.0), trial(5.5), trial(7.0)).trials, 2) is None


def test_pruned_and_misaligned_trials_are_no_gain():
    worse = [trial(1.0, excess=0.1), trial(9.0, state=TrialState.PRUNED)]
    assert no_gain(study_of(trial(6.0), *worse).trials, 2) is not None


def test_known_points_do_not_count_and_are_waited_for():
    known = [trial(6.0 + i, origin=f"baseline {i}") for i in range(4)]
    study = study_of(*known, trial(7.0))
    assert stopped(study, 2) is None
    study.add_trial(trial(7.0))
    study.enqueue_trial({})
    assert stopped(study, 2) is None


def test_what_was_said_stays_until_another_patience_asks():
    study = study_of(trial(6.0), trial(7.0), trial(7.0))
    reason = stopped(study, 2)
    study.add_trial(trial(3.0))
    assert reason
    assert stopped(study, 2) == reason
    assert stopped(study, 3) is None


@pytest.mark.parametrize("patience", [1, 2])
def test_without_an_aligned_trial_there_is_nothing_to_compare(patience):
    assert no_gain(study_of(*[trial(6.0, excess=0.1)] * 3).trials, patience) is None
