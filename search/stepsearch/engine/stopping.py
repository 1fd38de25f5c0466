"""When more search no longer pays.

Optuna's terminator is deprecated, and does not fit: its bound on the regret knows neither of
constraints nor of pruned trials, and on the bundled model it never came within five times of the
noise in 60 trials. This rule asks what the last trials have brought, against the error of that very
difference, which common seeds make small.
"""

from collections.abc import Sequence

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from stepsearch.engine.ladder import infeasible
from stepsearch.metrics.distance import Score

STOPPED = "stopped"  # attribute of the study: [patience, reason]


def stopped(study: optuna.Study, patience: int | None) -> str | None:
    """Why the search ends before its budget does, or None; once said, it stays.

    Another patience asks again.
    """
    if patience is None:
        return None
    before, reason = study.user_attrs.get(STOPPED, (None, None))
    if before == patience:
        return str(reason)
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.WAITING)
    trials = study.get_trials(deepcopy=False, states=states)
    if any(t.state == TrialState.WAITING for t in trials):  # a known point comes next
        return None
    reason = no_gain(trials, patience)
    if reason:
        study.set_user_attr(STOPPED, [patience, reason])
    return reason


def no_gain(trials: Sequence[FrozenTrial], patience: int) -> str | None:
    """Say that the last `patience` points of the algorithm's own did not beat the noise, or None.

    The noise is the standard error of the paired difference between the best feasible trial now and
    the best before them, by the jackknife over the common seeds.
    """
    own = [t.number for t in trials if "origin" not in t.user_attrs]
    if len(own) < patience:
        return None
    earlier = [t for t in trials if t.number < own[-patience]]
    then, now = best(earlier), best(trials)
    if then is None or now is None:
        return None
    gain, se = then.minus(now)
    if gain > se:
        return None
    return f"the last {patience} of the algorithm improved FD by {gain:.3f} ± {se:.3f}"


def best(trials: Sequence[FrozenTrial]) -> Score | None:
    """Score of the best feasible trial that was measured on all images."""
    values = [
        (float(t.value), t.user_attrs["left_out"])
        for t in trials
        if t.state == TrialState.COMPLETE and t.value is not None and not infeasible(t)
    ]
    if not values:
        return None
    value, left_out = min(values)
    return Score(value, np.array(left_out))
