"""Trials that climb rung by rung, on a target whose denoiser is known in closed form."""

import math

import numpy as np
import optuna
import pytest
import torch
from optuna.samplers import BaseSampler
from optuna.trial import TrialState, create_trial
from toy import DEVIATION, MEAN, gaussian_denoiser

from stepsampler.noise import NoiseSchedule
from stepsampler.sample import sample
from stepsearch.config import StudyConfig
from stepsearch.engine.algorithms import Informed, predicted, shown
from stepsearch.engine.ladder import RungPruner, infeasible, passes_spent
from stepsearch.engine.study import finished, open_study, pruned, reap, run_trials, schedule_of
from stepsearch.metrics.distance import Moments, Score, frechet_distance
from stepsearch.metrics.evaluator import Measurement
from stepsearch.space.box import SearchSpace

SD = NoiseSchedule.scaled_linear()
AXES = 3


class GaussianEvaluator:
    """Samples the toy target with a real schedule; remembers which seeds it was asked for."""

    saved = 0

    class reference:  # noqa: N801
        search = Moments(np.full(AXES, MEAN), np.eye(AXES) * DEVIATION**2, 1000)

    def __init__(self, aligned=lambda schedule: 1.0, dies_at=None):
        self.asked, self.aligned, self.dies_at = [], aligned, dies_at

    def measure(self, schedule, seeds):
        self.asked.append(seeds)
        if self.dies_at == len(self.asked):
            raise KeyboardInterrupt
        noise = np.array([np.random.default_rng(seed).normal(size=AXES) for seed in seeds])
        x = sample(gaussian_denoiser, torch.tensor(noise), schedule).numpy()
        share = self.aligned(schedule)
        right = np.where(np.isnan(share), np.nan, np.asarray(seeds) * 0.618 % 1 < share)
        return Measurement(x.astype(np.float32), right.astype(np.float32))


def setting(rungs=(20, 40, 80), **search):
    config = StudyConfig.model_validate(
        {
            "name": "toy",
            "space": {"num_steps": 3, "passes": 6},
            "search": {"algorithm": "random", "trials": 16, "finalists": 3, **search},
            "evaluation": {"images": 80, "rungs": rungs},
        }
    )
    return config, SearchSpace(config.space, SD, SD.spec("sd", "epsilon"), "power")


def searched(folder, evaluator=None, floor=0.0, **options):
    config, space = setting(**options)
    study = open_study(folder, config)
    evaluator = evaluator or GaussianEvaluator()
    run_trials(study, folder, config, space, evaluator, floor)
    return study, evaluator


def trial(value, state=TrialState.PRUNED, excess=-1.0, full=None):
    return create_trial(
        state=TrialState.COMPLETE if full is not None else state,
        value=full,
        params={},
        distributions={},
        intermediate_values={20: value},
        system_attrs={"constraints:alignment": excess},
    )


def goes_on(value, others, keep=2):
    study = optuna.create_study(pruner=RungPruner(keep))
    for other in others:
        study.add_trial(other)
    asked = study.ask()
    asked.report(value, 20)
    return not asked.should_prune()


def test_only_the_best_few_of_a_rung_go_on():
    others = [trial(float(v)) for v in range(1, 12)]
    assert goes_on(2.5, others, keep=3)
    assert not goes_on(3.5, others, keep=3)


def test_the_first_few_always_go_on():
    assert goes_on(9.0, [])
    assert goes_on(9.0, [trial(1.0), trial(2.0)], keep=3)
    assert not goes_on(9.0, [trial(1.0), trial(2.0), trial(3.0)], keep=3)


def test_dead_and_misaligned_trials_are_no_rivals():
    others = [trial(1.0, TrialState.FAIL), trial(1.0, excess=0.1), trial(1.0, excess=0.1, full=0.5)]
    assert goes_on(9.0, others, keep=1)
    assert not goes_on(9.0, [*others, trial(1.0, full=0.5)], keep=1)


def test_scores_of_other_rungs_do_not_count():
    study = optuna.create_study(pruner=RungPruner(1))
    study.add_trial(trial(1.0, full=0.5))
    asked = study.ask()
    asked.report(9.0, 40)
    assert not asked.should_prune()


def test_a_rung_adds_images_to_those_of_the_rung_before(tmp_path):
    study, evaluator = searched(tmp_path)
    assert set(map(str, evaluator.asked)) == {"range(0, 20)", "range(20, 40)", "range(40, 80)"}
    made = sum(map(len, evaluator.asked))
    trials = finished(study) + pruned(study)
    assert sum(t.user_attrs["images"] for t in trials) == made
    config, _ = setting()
    spent = sum(t.user_attrs["images"] * schedule_of(t).passes for t in trials)
    assert passes_spent(trials, config.evaluation) == spent


def test_each_rung_reports_fd_of_all_images_so_far(tmp_path):
    study, evaluator = searched(tmp_path, trials=4)
    for t in finished(study):
        x = evaluator.measure(schedule_of(t), range(80)).features
        reference = evaluator.reference.search
        assert t.intermediate_values == {
            n: pytest.approx(frechet_distance(x[:n], reference), rel=1e-5) for n in (20, 40)
        }
        assert t.value == pytest.approx(frechet_distance(x, reference), rel=1e-5)


@pytest.mark.parametrize("algorithm", ["random", "tpe", "gp", "gp-local", "cmaes"])
def test_pruned_trials_count_in_every_algorithms_budget(tmp_path, algorithm):
    study, _ = searched(tmp_path, algorithm=algorithm)
    ended = pruned(study)
    assert ended
    assert len(finished(study)) + len(ended) == 16
    assert all(t.user_attrs["images"] in (20, 40) for t in ended)
    assert all(t.user_attrs["images"] == 80 for t in finished(study))


def test_the_ladder_saves_images_and_finds_as_good_a_schedule(tmp_path):
    plain, every = searched(tmp_path / "plain", rungs=(), trials=40)
    ladder, few = searched(tmp_path / "ladder", trials=40)  # random: the same points
    saved = 1 - sum(map(len, few.asked)) / sum(map(len, every.asked))
    assert saved > 0.4
    best, ideal = (min(finished(s), key=lambda t: t.value) for s in (ladder, plain))
    assert best.value == pytest.approx(finished(plain)[best.number].value)
    scores = [Score(t.value, np.array(t.user_attrs["left_out"])) for t in (best, ideal)]
    loss, se = scores[0].minus(scores[1])
    assert loss <= se


def test_a_hopeless_alignment_ends_a_trial_at_once_whatever_its_distance(tmp_path):
    study, evaluator = searched(
        tmp_path, GaussianEvaluator(lambda s: 0.3), floor=0.9, trials=5, finalists=5
    )
    assert {t.user_attrs["images"] for t in pruned(study)} == {20}
    assert len(pruned(study)) == 5
    assert all(infeasible(t) for t in pruned(study))
    assert len(evaluator.asked) == 5


def test_an_alignment_within_the_noise_of_its_floor_is_waited_for(tmp_path):
    study, _ = searched(
        tmp_path, GaussianEvaluator(lambda s: 0.85), floor=0.9, trials=3, finalists=5
    )
    assert len(finished(study)) == 3
    assert all(infeasible(t) for t in finished(study))


def test_prompts_without_classes_climb_too(tmp_path):
    study, _ = searched(
        tmp_path, GaussianEvaluator(lambda s: math.nan), floor=math.nan, trials=4, finalists=4
    )
    assert len(finished(study)) == 4


def test_a_killed_worker_leaves_a_trial_that_is_retried_and_no_rival(tmp_path):
    config, space = setting(trials=6)
    study = open_study(tmp_path, config)
    with pytest.raises(KeyboardInterrupt):
        run_trials(study, tmp_path, config, space, GaussianEvaluator(dies_at=2), 0.0)
    (dead,) = study.trials
    assert list(dead.intermediate_values) == [20]  # it died on the second rung
    assert reap(study, tmp_path) == 1
    run_trials(study, tmp_path, config, space, GaussianEvaluator(), 0.0)
    assert study.trials[0].state == TrialState.FAIL
    assert study.trials[1].params == dead.params
    assert len(finished(study)) + len(pruned(study)) == 6


def test_the_value_of_a_pruned_trial_is_predicted_from_the_bias_of_the_others():
    complete = [trial(5.0, full=3.0), trial(9.0, full=7.2), trial(4.0, full=1.8)]
    assert predicted(trial(11.0), complete) == pytest.approx(9.0)
    assert predicted(trial(2.5), complete) == 1.8  # never better than the best
    assert predicted(trial(11.0), []) == 11.0


def test_algorithms_see_pruned_trials_as_finished_ones_with_a_log_distance():
    trials = [trial(5.0, full=3.0), trial(12.0), trial(1.0, TrialState.FAIL)]
    seen = shown(trials)
    assert [t.state for t in seen] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL]
    assert [t.value for t in seen[:2]] == pytest.approx([math.log(3.0), math.log(10.0)])
    assert trials[1].state == TrialState.PRUNED  # the study itself keeps the truth
    assert trials[0].value == 3.0


class Listener(BaseSampler):
    """Remembers the finished trials that it was shown."""

    def infer_relative_search_space(self, study, trial):
        self.seen = study._get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, name, distribution):
        return distribution.low


def test_the_wrapped_algorithm_reads_all_this_through_its_study():
    listener = Listener()
    study = optuna.create_study(sampler=Informed(listener))
    study.add_trial(trial(5.0, full=3.0))
    study.add_trial(trial(12.0))
    assert study.ask().suggest_float("x", 0.5, 1.0) == 0.5
    assert len(listener.seen) == 2
