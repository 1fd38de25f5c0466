"""Optuna's search algorithms, and what they are shown of trials that were pruned or failed."""

import copy
import warnings
from collections.abc import Callable, Container, Sequence
from math import inf, log
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, TrialState

from stepsearch.engine.store.dashboard import unlisted

POPULATION = 20  # of a generation of nsga2; searches have a hundred trials or a few
HANDOVER = 0.6  # of the trials of gp-cmaes are the GP's
NEAR = 0.05  # of a side of the box: how far CMA-ES looks around them at first
WHOLE = 0.2  # of the trials of gp-local, at first, and every FOURTH after them, see the whole box
FOURTH = 4
SIDE = 0.25  # of a side of the box: how far the others lie apart, around the best trial
MOST = 300  # trials that a GP is fitted to, as that takes the cube of their number in seconds
ERROR = "error"  # attribute of a trial that failed by itself: the reason
SMALLEST = 1e-9  # a distance below it has no useful logarithm


def make_algorithm(name: str, *entropy: int, trials: int = 0) -> BaseSampler:
    """Optuna's search algorithm by our name for it, for a search of that many trials."""
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    if name == "gp":
        return Informed(_gp(seed))
    if name == "tpe":
        return Informed(TPESampler(seed=seed))
    if name == "gp-cmaes":
        return Informed(Handover(_gp(seed), int(HANDOVER * trials), seed))
    if name == "gp-local":
        near = _gp(seed + 1, startup=1)
        return Informed(Local(_gp(seed), int(WHOLE * trials), near))
    if name == "cmaes":
        return Informed(CmaEsSampler(seed=seed))
    if name == "nsga2":  # with one objective an ordinary genetic algorithm
        return Informed(NSGAIISampler(seed=seed, population_size=POPULATION))
    return RandomSampler(seed=seed)


def _gp(seed: int, startup: int = 10) -> BaseSampler:
    gp = GPSampler(seed=seed, deterministic_objective=False, n_startup_trials=startup)
    return Informed(gp, few)


class Informed(BaseSampler):
    """An algorithm to which trials are shown as `change` makes them.

    By `shown` it learns from pruned and failed trials too, and sees log distances. Optuna's
    algorithms use finished trials only: a GP would ask for a failed point again and again, as
    nothing that it knows has changed. The logarithm keeps a few hopeless trials from flattening the
    differences between good ones.
    """

    def __init__(
        self,
        inner: BaseSampler,
        change: "Callable[[Sequence[FrozenTrial]], list[FrozenTrial]] | None" = None,
    ) -> None:
        self.inner, self.change = inner, change or shown

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.inner.infer_relative_search_space(_Seen(study, self.change), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.inner.sample_relative(_Seen(study, self.change), trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        return self.inner.sample_independent(_Seen(study, self.change), trial, name, distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.inner.before_trial(_Seen(study, self.change), trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self.inner.after_trial(_Seen(study, self.change), trial, state, values)

    def reseed_rng(self) -> None:
        self.inner.reseed_rng()


class _Wide(BaseSampler):
    """A GP of the whole box; who inherits says what else is asked, and when.

    Nothing is kept: which algorithm asks, and around what, follow from the study, so that a resumed
    search and every worker agree.
    """

    def __init__(self, whole: BaseSampler, trials: int) -> None:
        self.whole, self.trials = whole, trials  # so many ended trials are its own at least

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.whole.infer_relative_search_space(study, trial)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        return self.whole.sample_independent(study, trial, name, distribution)


class Handover(_Wide):
    """A GP, then CMA-ES around its best trial; Optuna keeps CMA-ES's state in the trials."""

    def __init__(self, whole: BaseSampler, trials: int, seed: int) -> None:
        super().__init__(whole, trials)
        self.seed = seed

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))[: self.trials]
        if len(ended) < max(1, self.trials):
            return self.whole.sample_relative(study, trial, search_space)
        best = min(_feasible(ended) or ended, key=_value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # Optuna 6 will have no x0 and no sigma0
            local = CmaEsSampler(x0=best.params, sigma0=NEAR, seed=self.seed)
        return local.sample_relative(study, trial, search_space)


class Local(_Wide):
    """A GP of the whole box, and one around the best trial (cf. TuRBO, Eriksson et al. 2019).

    A box of twenty numbers has more corners than a search has trials: one GP goes on looking into
    them. The other one knows the better half of the trials, in the scale of the neighbourhood. A
    front of two objectives has no best trial: there the first one is alone.
    """

    def __init__(self, whole: BaseSampler, trials: int, near: BaseSampler) -> None:
        super().__init__(whole, trials)
        self.near = near

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        feasible = _feasible(ended)
        early = len(ended) < self.trials or not feasible
        if early or trial.number % FOURTH == 0 or len(study.directions) > 1:
            return self.whole.sample_relative(study, trial, search_space)
        best = min(feasible, key=_value)
        part: dict[str, BaseDistribution] = {
            name: _around(best.params[name], side) for name, side in search_space.items()
        }
        return self.near.sample_relative(_Seen(study, better_half), trial, part)


def _feasible(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [t for t in trials if not any(value > 0 for value in t.constraints.values())]


def _around(value: float, side: BaseDistribution) -> FloatDistribution:
    """The part of a side of the box that is SIDE of it wide, less where it would leave the box."""
    assert isinstance(side, FloatDistribution)
    if side.log:
        reach = (side.high / side.low) ** (SIDE / 2)
        low, high = value / reach, value * reach
    else:
        reach = (side.high - side.low) * SIDE / 2
        low, high = value - reach, value + reach
    return FloatDistribution(max(low, side.low), min(high, side.high), log=side.log)


def better_half(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Without the complete trials that are worse than their median.

    Those that failed stay, as bad as it: the neighbourhood has to be told of them.
    """
    whole = [t for t in trials if t.state == TrialState.COMPLETE]
    measured = [_value(t) for t in whole if ERROR not in t.user_attrs]
    bound = float(np.median(measured)) if measured else inf
    found = []
    for trial in trials:
        if trial.state == TrialState.COMPLETE and _value(trial) > bound:
            if ERROR not in trial.user_attrs:
                continue
            trial = copy.copy(trial)
            trial.value = bound
        found.append(trial)
    return found


def few(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """At most `MOST` of the complete trials: half of them the best, half spread over the search."""
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    if len(complete) <= MOST:
        return list(trials)
    ranked, best = _best_first(complete), MOST // 2
    others = sorted(ranked[best:], key=lambda t: t.number)
    places = np.linspace(0, len(others) - 1, MOST - best).astype(int)
    kept = {t.number for t in (*ranked[:best], *(others[place] for place in places))}
    return [t for t in trials if t.state != TrialState.COMPLETE or t.number in kept]


def _best_first(complete: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Feasible trials by their distance, and the others; of two objectives front after front."""
    if len(complete[0].values) == 1:
        feasible = {t.number for t in _feasible(complete)}
        return sorted(complete, key=lambda t: (t.number not in feasible, _value(t)))
    left = sorted(complete, key=lambda t: (t.values[0], -t.values[1]))  # FD, alignment
    found: list[FrozenTrial] = []
    while len(found) < MOST // 2:
        front, behind, most = list[FrozenTrial](), list[FrozenTrial](), -inf
        for trial in left:
            (front if trial.values[1] > most else behind).append(trial)
            most = max(most, trial.values[1])
        found, left = found + front, behind
    return found + left


def _value(trial: FrozenTrial) -> float:
    """Of a complete trial of one objective."""
    return trial.value  # type: ignore[return-value]


class _Seen(optuna.Study):
    """The study as an algorithm sees it; what it writes goes to the same storage."""

    def __init__(
        self,
        study: optuna.Study,
        change: Callable[[Sequence[FrozenTrial]], list[FrozenTrial]],
    ) -> None:
        super().__init__(study.study_name, study._storage, study.sampler, study.pruner)
        self.study, self.change = study, change

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        trials = self.change(self.study._get_trials(deepcopy=False, use_cache=use_cache))
        return [trial for trial in trials if states is None or trial.state in states]


def shown(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Copies with log distances; pruned trials are complete, with their value predicted.

    Those that failed by themselves, not with their worker, are complete as well, as bad as the
    worst. Trials of several objectives have their own values.
    """
    trials = [unlisted(trial) for trial in trials]
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    found = []
    for trial in trials:
        if trial.state == TrialState.FAIL and ERROR in trial.user_attrs and complete:
            trial = _worst(trial, complete)
        value = trial.values[0] if trial.values and len(trial.values) == 1 else None
        if trial.state == TrialState.PRUNED:
            value = predicted(trial, complete)
        if value is not None:
            trial = copy.copy(trial)
            trial.state, trial.value = TrialState.COMPLETE, log(max(value, SMALLEST))
        found.append(trial)
    return found


def _worst(trial: FrozenTrial, complete: Sequence[FrozenTrial]) -> FrozenTrial:
    """A failed trial as if it had been measured, with the worst values of those that were."""
    trial = copy.copy(trial)
    trial.system_attrs = {**trial.system_attrs}
    trial.state = TrialState.COMPLETE
    first, *others = zip(*(t.values for t in complete), strict=True)  # FD, alignment
    trial.values = [max(first), *map(min, others)]
    for key in complete[0].constraints.keys() - trial.constraints.keys():
        trial.set_constraint(key, max(t.constraints.get(key, 0.0) for t in complete))
    return trial


def predicted(trial: FrozenTrial, complete: Sequence[FrozenTrial]) -> float | None:
    """The distance that a pruned trial would have had with all images; None if it has none.

    The bias of FD at n images is about c / n (Chong and Forsyth 2020), with a c that hardly depends
    on the schedule: the mean difference between the rungs in finished trials is taken off. What was
    pruned is not believed to be better than the best of those.
    """
    if trial.last_step is None:
        return None
    n = trial.last_step
    pairs = [(t.intermediate_values[n], t.value) for t in complete if n in t.intermediate_values]
    whole = [(short, float(full)) for short, full in pairs if full is not None]
    if not whole:
        return trial.intermediate_values[n]
    shift = float(np.mean([short - full for short, full in whole]))
    return max(trial.intermediate_values[n] - shift, min(full for _, full in whole))
