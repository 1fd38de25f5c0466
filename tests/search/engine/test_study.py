from dataclasses import replace
from math import log

import numpy as np
import pytest
from optuna.trial import TrialState
from typer.testing import CliRunner

from stepsampler import UserError
from stepsampler.grids import GRIDS
from stepsampler.noise import NoiseSchedule
from stepsearch.cli.app import app
from stepsearch.config import StudyConfig
from stepsearch.engine.claim import claim_folder
from stepsearch.engine.study import (
    enqueue,
    finished,
    open_study,
    run_trials,
    schedule_of,
)
from stepsearch.metrics.distance import Moments
from stepsearch.metrics.evaluator import Measurement
from stepsearch.space.box import SearchSpace

SD = NoiseSchedule.scaled_linear()


class Toy:
    """An evaluator without images: the distance is smallest where every gap is the baseline's."""

    saved = 0

    class reference:  # noqa: N801
        search = Moments(np.zeros(2), np.eye(2), 100)

    def __init__(self, broken=()):
        self.broken, self.calls = broken, 0

    def measure(self, schedule, seeds):
        self.calls += 1
        rng = np.random.default_rng(0)
        grid = np.log(GRIDS["power"](schedule.num_steps, SD)[:-1])
        shift = np.abs(np.log(schedule.sigmas[:-1]) - grid).sum()
        features = rng.normal(size=(len(seeds), 2)) + shift
        if self.calls in self.broken:
            features[3] = np.nan
        return Measurement(features.astype(np.float32), np.ones(len(seeds), np.float32))


def setting(algorithm="random", trials=6, seed=0):
    config = StudyConfig.model_validate(
        {
            "name": "toy",
            "space": {"num_steps": 3, "passes": 5},
            "search": {"algorithm": algorithm, "trials": trials, "seed": seed},
            "evaluation": {"images": 30},
        }
    )
    return config, SearchSpace(config.space, SD, SD.spec("sd", "epsilon"), "power")


def test_a_proposal_over_budget_costs_no_trial_and_is_recorded_as_it_was_measured(tmp_path):
    config, space = setting(trials=12)
    config = config.model_copy(
        update={"space": config.space.model_copy(update={"guidance_scale": (2.0, 4.0)})}
    )  # every proposal wants six passes; the budget is five
    space = SearchSpace(config.space, SD, SD.spec("sd", "epsilon"), "power")
    study, evaluator, measured = open_study(tmp_path, config), Toy(), []
    measure = evaluator.measure
    evaluator.measure = lambda plan, seeds: measured.append(plan) or measure(plan, seeds)
    assert run_trials(study, tmp_path, config, space, evaluator, 0.5) == 12
    trials = finished(study)
    assert [schedule_of(t) for t in trials] == measured
    for trial in trials:
        plan = schedule_of(trial)
        assert trial.user_attrs["passes"] == plan.passes == 5
        assert sum(step.guidance_scale != 1 for step in plan.steps) == 2
        assert space.schedule(trial.params) == plan


def test_status_says_nothing_of_an_alignment_that_is_unknown(tmp_path):
    config, space = setting(trials=2)
    claim_folder(tmp_path, config)
    evaluator = Toy()
    measure = evaluator.measure  # of prompts without classes
    evaluator.measure = lambda plan, seeds: replace(
        measure(plan, seeds), aligned=np.full(len(seeds), np.nan, np.float32)
    )
    run_trials(open_study(tmp_path, config), tmp_path, config, space, evaluator, float("nan"))
    said = CliRunner().invoke(app, ["status", str(tmp_path)]).output
    assert "2 of 2 trials finished" in said
    assert said.count("passes") == 2
    assert "alignment" not in said


def resumed(folder, algorithm):
    """30 trials in two calls, and their box."""
    for trials in (22, 30):
        config, space = setting(algorithm, trials=30)
        study = open_study(folder, config)
        part = config.model_copy(
            update={"search": config.search.model_copy(update={"trials": trials})}
        )
        run_trials(study, folder, part, space, Toy(), 0.5)
    done = finished(study)
    assert len(done) == 30
    return done, space.distributions


def test_cma_es_goes_on_around_the_best_point_of_the_gp(tmp_path):
    """Also after the search was resumed; 18 of 30 trials are the GP's."""
    done, box = resumed(tmp_path, "gp-cmaes")
    best = min(done[:18], key=lambda t: t.value)

    def far(trial):
        return max(abs(trial.params[k] - best.params[k]) / (d.high - d.low) for k, d in box.items())

    assert max(far(t) for t in done[18:]) < 0.4 < max(far(t) for t in done[:18])
    assert min(t.value for t in done[18:]) < best.value


def test_three_of_four_later_trials_of_gp_local_are_near_the_best_one(tmp_path):
    """Within an eighth of a side, also after the search was resumed; 6 of 30 see the whole box."""
    done, box = resumed(tmp_path, "gp-local")
    for k in range(6, 30):
        best = min(done[:k], key=lambda t: t.value)
        assert k % 4 == 0 or far(done[k], best, box) < 0.1251
    assert max(far(t, done[0], box) for t in done[:6]) > 0.4


def far(trial, other, box):
    """The largest distance of two trials, in sides of the box."""
    sides = {k: (log(d.low), log(d.high)) if d.log else (d.low, d.high) for k, d in box.items()}
    at = {k: log if d.log else float for k, d in box.items()}
    return max(
        abs(at[k](trial.params[k]) - at[k](other.params[k])) / (high - low)
        for k, (low, high) in sides.items()
    )


@pytest.mark.parametrize("algorithm", ["random", "tpe", "gp", "gp-local", "cmaes", "gp-cmaes"])
def test_every_algorithm_fills_the_budget_and_no_more(tmp_path, algorithm):
    config, space = setting(algorithm, trials=14)
    study = open_study(tmp_path, config)
    assert run_trials(study, tmp_path, config, space, Toy(), 0.5) == 14
    assert run_trials(study, tmp_path, config, space, Toy(), 0.5) == 0
    for trial in finished(study):
        assert schedule_of(trial).passes <= 5


def test_a_search_finds_more_than_chance(tmp_path):
    best = {}
    for algorithm in ("random", "gp"):
        config, space = setting(algorithm, trials=30, seed=1)
        study = open_study(tmp_path / algorithm, config)
        run_trials(study, tmp_path / algorithm, config, space, Toy(), 0.5)
        best[algorithm] = study.best_value
    assert best["gp"] < best["random"]


def test_later_generations_of_an_evolution_are_better_than_the_first(tmp_path):
    config, space = setting("nsga2", trials=60)
    study = open_study(tmp_path, config)
    run_trials(study, tmp_path, config, space, Toy(), 0.5)
    values = [trial.value for trial in finished(study)]
    assert np.mean(values[40:]) < 0.75 * np.mean(values[:20])


def test_known_points_come_first_and_only_once(tmp_path):
    config, space = setting(trials=3)
    study = open_study(tmp_path, config)
    centre = dict.fromkeys(space.distributions, 1.0) | {"final_sigma": 0.1}
    for _ in range(2):
        enqueue(study, tmp_path, [(centre, "the baseline")])
    run_trials(study, tmp_path, config, space, Toy(), 0.5)
    origins = [t.user_attrs.get("origin") for t in study.trials]
    assert origins == ["the baseline", None, None]
    assert study.trials[0].params == centre


def test_a_point_that_a_frozen_run_and_its_follower_both_queue_has_one_turn(tmp_path, monkeypatch):
    config, space = setting(trials=3)
    study, follower = (open_study(tmp_path, config) for _ in range(2))
    centre = dict.fromkeys(space.distributions, 1.0) | {"final_sigma": 0.1}
    own = study.enqueue_trial

    def frozen(params, user_attrs):  # once it had looked
        follower.enqueue_trial(params, user_attrs=user_attrs)
        own(params, user_attrs=user_attrs)

    monkeypatch.setattr(study, "enqueue_trial", frozen)
    enqueue(study, tmp_path, [(centre, "the baseline"), (centre, "another")])
    run_trials(study, tmp_path, config, space, Toy(), 0.5)
    ended = study.get_trials(states=(TrialState.COMPLETE,))
    assert [t.user_attrs.get("origin") for t in ended] == ["the baseline", "another", None]
    assert not study.get_trials(states=(TrialState.WAITING,))


def test_a_broken_trial_does_not_end_the_study(tmp_path):
    config, space = setting(trials=5)
    study = open_study(tmp_path, config)
    assert run_trials(study, tmp_path, config, space, Toy(broken={2}), 0.5) == 5
    failed = study.get_trials(states=(TrialState.FAIL,))
    assert [t.user_attrs["error"] for t in failed] == ["the images are not finite"]


def test_five_broken_trials_in_a_row_do(tmp_path):
    config, space = setting()
    study = open_study(tmp_path, config)
    with pytest.raises(
        UserError, match="the first 5 trials failed, none was measured: the images are not finite"
    ):
        run_trials(study, tmp_path, config, space, Toy(broken=range(100)), 0.5)


def test_low_alignment_makes_a_trial_infeasible(tmp_path):
    config, space = setting(trials=2)
    study = open_study(tmp_path, config)
    run_trials(study, tmp_path, config, space, Toy(), alignment_floor=1.1)
    assert all(t.constraints["alignment"] > 0 for t in study.trials)


@pytest.mark.parametrize("left", [1, 30])
def test_a_line_that_a_kill_cut_short_does_not_end_the_study(tmp_path, left):
    config, space = setting(trials=3)
    run_trials(open_study(tmp_path, config), tmp_path, config, space, Toy(), 0.5)
    journal = tmp_path / "journal.log"
    *lines, last = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines) + last[:left])
    config, space = setting(trials=5)
    run_trials(open_study(tmp_path, config), tmp_path, config, space, Toy(), 0.5)
    assert len(finished(open_study(tmp_path, config))) >= 4  # the torn line was the third's end


def test_a_resumed_study_asks_for_other_points_than_at_its_start(tmp_path):
    config, space = setting(trials=2)
    run_trials(open_study(tmp_path, config), tmp_path, config, space, Toy(), 0.5)
    config, space = setting(trials=4)
    run_trials(open_study(tmp_path, config), tmp_path, config, space, Toy(), 0.5)
    points = [tuple(t.params.values()) for t in open_study(tmp_path, config).trials]
    assert len(set(points)) == 4


def test_workers_with_different_numbers_ask_different_points(tmp_path):
    config, space = setting()
    asked = [open_study(tmp_path, config, worker=w).ask(space.distributions) for w in (0, 1)]
    assert asked[0].params != asked[1].params
