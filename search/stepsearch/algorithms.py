"""Optuna's search algorithms, and what they are shown of trials that were pruned."""

import copy
import warnings
from collections.abc import Container, Sequence
from math import log
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, TrialState

POPULATION = 20  # of a generation of nsga2; searches have a hundred trials or a few
HANDOVER = 0.6  # of the trials of gp-cmaes are the GP's
NEAR = 0.05  # of a side of the box: how far CMA-ES looks around them at first
SMALLEST = 1e-9  # a distance below it has no useful logarithm


def make_algorithm(name: str, *entropy: int, trials: int = 0) -> BaseSampler:
    """Optuna's search algorithm by our name for it, for a search of that many trials."""
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    if name == "gp":
        return Informed(GPSampler(seed=seed, deterministic_objective=False))
    if name == "tpe":
        return Informed(TPESampler(seed=seed))
    if name == "gp-cmaes":
        gp = GPSampler(seed=seed, deterministic_objective=False)
        return Informed(Handover(gp, seed, int(HANDOVER * trials)))
    if name == "cmaes":
        return Informed(CmaEsSampler(seed=seed))
    if name == "nsga2":  # with one objective an ordinary genetic algorithm
        return Informed(NSGAIISampler(seed=seed, population_size=POPULATION))
    return RandomSampler(seed=seed)


class Informed(BaseSampler):
    """An algorithm that learns from pruned trials too, and sees the logarithm of the distance.

    Optuna's GP and CMA-ES use finished trials only, and would ask for a pruned point again. The
    logarithm keeps a few hopeless trials from flattening the differences between good ones.
    """

    def __init__(self, inner: BaseSampler) -> None:
        self.inner = inner

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.inner.infer_relative_search_space(_Shown(study), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.inner.sample_relative(_Shown(study), trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        return self.inner.sample_independent(_Shown(study), trial, name, distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.inner.before_trial(_Shown(study), trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self.inner.after_trial(_Shown(study), trial, state, values)

    def reseed_rng(self) -> None:
        self.inner.reseed_rng()


class Handover(BaseSampler):
    """A GP for the first `trials` ended trials, then CMA-ES around the best of them.

    Nothing is kept here: which algorithm asks, and where CMA-ES starts, follow from the study, so
    that a resumed search and every worker agree. Its own state Optuna keeps in the trials.
    """

    def __init__(self, gp: BaseSampler, seed: int, trials: int) -> None:
        self.gp, self.seed, self.trials = gp, seed, trials

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.gp.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))[: self.trials]
        if len(ended) < max(1, self.trials):
            return self.gp.sample_relative(study, trial, search_space)
        feasible = [t for t in ended if not any(v > 0 for v in t.constraints.values())]
        best = min(feasible or ended, key=lambda t: t.value)  # type: ignore[arg-type,return-value]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # Optuna 6 will have no x0 and no sigma0
            local = CmaEsSampler(x0=best.params, sigma0=NEAR, seed=self.seed)
        return local.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        return self.gp.sample_independent(study, trial, name, distribution)


class _Shown(optuna.Study):
    """The study as an algorithm sees it; what it writes goes to the same storage."""

    def __init__(self, study: optuna.Study) -> None:
        super().__init__(study.study_name, study._storage, study.sampler, study.pruner)

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        trials = shown(super()._get_trials(deepcopy=False, use_cache=use_cache))
        return [trial for trial in trials if states is None or trial.state in states]


def shown(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Copies with log distances; pruned trials are complete, with their value predicted.

    Trials of several objectives stay as they are.
    """
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    found = []
    for trial in trials:
        value = trial.values[0] if trial.values and len(trial.values) == 1 else None
        if trial.state == TrialState.PRUNED:
            value = predicted(trial, complete)
        if value is not None:
            trial = copy.copy(trial)
            trial.state, trial.value = TrialState.COMPLETE, log(max(value, SMALLEST))
        found.append(trial)
    return found


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
