"""The rungs of a trial: a few images first, all of them only where that can pay.

FD prunes, rung by rung. Optuna's step is the number of images, so that only scores of equal n are
compared. Image k of a trial is that of seed SEARCH + k on every rung: a rung adds images to those
of the rung before, and its cached features outlive a killed worker.
"""

import time
from collections.abc import Iterable
from itertools import pairwise
from math import isnan, sqrt

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, Trial, TrialState

from stepsampler.schedule import Schedule
from stepsearch.config.measuring import EvaluationConfig
from stepsearch.engine.algorithms import ERROR
from stepsearch.metrics.distance import score
from stepsearch.metrics.evaluator import SEARCH, Evaluator, Measurement

MARGIN = 2.0  # standard errors below its floor at which an alignment is not waited for any longer
ALIVE = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)


class RungPruner(BasePruner):
    """Prunes a trial that is not among the best `keep` that were on its rung.

    With as many as there are finalists: no other could become one if the rungs agreed. A share of
    the rung, as in successive halving, saves little once a search is good and most new trials beat
    most old ones. Rivals are the trials of all workers, less those whose alignment is known to be
    too low, and those of dead workers.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        if trial.last_step is None:
            return False
        step, value = trial.last_step, trial.intermediate_values[trial.last_step]
        rivals = [
            other.intermediate_values[step]
            for other in study.get_trials(deepcopy=False, states=ALIVE)
            if step in other.intermediate_values
            and other.number != trial.number
            and not infeasible(other)
        ]
        return sum(rival < value for rival in rivals) >= self.keep


def infeasible(trial: FrozenTrial) -> bool:
    return any(value > 0 for value in trial.constraints.values())


def climb(
    trial: Trial,
    schedule: Schedule,
    evaluation: EvaluationConfig,
    evaluator: Evaluator,
    floor: float,
) -> tuple[TrialState, float | None]:
    """Measure a trial rung by rung; return its end and its FD there.

    A trial is given up where its alignment is clearly below the floor, or where the study's pruner
    says so. The trial records what was measured.
    """
    started, saved = time.perf_counter(), evaluator.saved
    rungs = evaluation.rungs or (evaluation.images,)
    parts: list[Measurement] = []
    for before, n in pairwise((0, *rungs)):
        parts.append(evaluator.measure(schedule, range(SEARCH + before, SEARCH + n)))
        if not parts[-1].finite:  # the trial is lost, the study is not
            trial.set_user_attr(ERROR, "the images are not finite")
            trial.set_user_attr("passes", schedule.passes)
            trial.set_user_attr("images", n)
            return TrialState.FAIL, None
        found = Measurement.join(parts)
        fd = score(found.features, evaluator.reference.search)
        last = n == rungs[-1]
        noise = float(found.aligned.std(ddof=1)) / sqrt(n)
        hopeless = not last and found.alignment + MARGIN * noise < floor
        if last or hopeless:
            break
        trial.report(fd.value, n)
        if trial.should_prune():
            break
    trial.set_user_attr("alignment", found.alignment)
    trial.set_user_attr("alignment_se", noise)
    trial.set_user_attr("sheet", found.sheet and str(found.sheet.absolute()))
    trial.set_user_attr("passes", schedule.passes)
    trial.set_user_attr("images", n)
    trial.set_user_attr("left_out", fd.left_out.tolist())  # for the error of differences
    trial.set_user_attr("seconds", time.perf_counter() - started)
    versions = len(evaluation.guidance_scales) or 1
    trial.set_user_attr("saved", (evaluator.saved - saved) / versions)  # of its passes
    if not isnan(floor - found.alignment):
        trial.set_constraint("alignment", floor - found.alignment)
    if last:
        return TrialState.COMPLETE, fd.value
    if hopeless:  # after its constraint is known, so that it is nobody's rival
        trial.report(fd.value, n)
    return TrialState.PRUNED, fd.value


def passes_spent(trials: Iterable[FrozenTrial], evaluation: EvaluationConfig) -> int:
    """Network passes of the images of trials, pruned and failed ones included."""
    return sum(
        t.user_attrs["passes"] * t.user_attrs.get("images", evaluation.images)
        for t in trials
        if "passes" in t.user_attrs
    )
