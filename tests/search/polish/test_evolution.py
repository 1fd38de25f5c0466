"""Polishing by values alone: closed forms, passes, a cut, and what has no gradient."""

from dataclasses import replace
from math import exp, log
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from polishing import PLAIN, ToyEvaluator, directly, features_of
from running import settings

from stepsampler.errors import UserError
from stepsampler.grids import from_sigmas, make_schedule
from stepsampler.models import load
from stepsearch.config import StudyConfig
from stepsearch.engine.jobs.kinds import Polishing
from stepsearch.metrics.distance import Average, Moments
from stepsearch.metrics.evaluator import SELECTION, Evaluator
from stepsearch.polish import descent, evolution
from stepsearch.polish.descent import Settings
from stepsearch.polish.evolution import Evolution, polish, values_alone
from stepsearch.polish.knobs import Knobs
from stepsearch.polish.objective import PENALTY
from stepsearch.rehearsal.dryrun import shrunk
from stepsearch.rehearsal.miniatures import EVERY

SETTINGS = Settings(iterations=6, images=40, check_every=3, check_images=24)
KNOBS = Knobs(PLAIN, "gain")
POPULATION = 4 + int(3 * log(len(KNOBS.names)))  # Hansen 2016, equation 48


class Measuring(ToyEvaluator):
    """Measures, and notes each schedule with its seeds; `aligned` is of a schedule."""

    def __init__(self, cache, aligned=lambda schedule: 1.0):
        super().__init__(cache, 8)
        self.seen, self.aligned = [], aligned

    def measure(self, schedule, seeds):
        self.seen.append((schedule, seeds))
        return SimpleNamespace(
            features=self.features(schedule, seeds),
            finite=True,
            alignment=self.aligned(schedule),
        )

    def features(self, schedule, seeds):
        return features_of(self, schedule, seeds)


class Valley(Measuring):
    """A metric of the user's with one best point: gains of 1.1 and scales of 2.2 and 1.4."""

    def __init__(self, cache):
        super().__init__(cache)
        whole = Moments.of(np.zeros((3, 1)))
        self.reference.search = Average(whole.mean, whole.cov, whole.n)

    def features(self, schedule, seeds):
        off = [10 * log(step.gain / 1.1) for step in schedule.steps]
        scales = [step.guidance_scale - 1 for step in schedule.steps[:2]]
        off += [10 * log(scale / best) for scale, best in zip(scales, (1.2, 0.4), strict=True)]
        return np.full((len(seeds), 1), np.square(off).sum() - 3.0)


def evolve(evaluator, knobs=KNOBS, settings=SETTINGS, show=lambda k, news: None):
    return descent.polish(evaluator, knobs, settings, show, Evolution)


def test_it_finds_the_bottom_of_a_quadratic_whose_values_are_negative(tmp_path):
    knobs = Knobs(PLAIN, "gain", levels=False)
    found = evolve(Valley(tmp_path), knobs, replace(SETTINGS, iterations=60, check_every=60))
    assert found.best.iteration == 60
    assert found.best.distance == pytest.approx(-3, abs=1e-3)
    for step in found.schedule.steps:
        assert step.gain == pytest.approx(1.1, abs=2e-3)
    assert found.schedule.steps[0].guidance_scale == pytest.approx(2.2, abs=5e-3)
    assert found.schedule.steps[1].guidance_scale == pytest.approx(1.4, abs=5e-3)
    assert found.schedule.sigmas == PLAIN.sigmas


def test_it_lowers_the_distance_on_seeds_that_it_does_not_learn_from(tmp_path):
    evaluator = Measuring(tmp_path)
    found = evolve(evaluator, settings=Settings(9, 400, 3, 400))
    assert [check.iteration for check in found.checks] == [0, 3, 6, 9]
    unseen = range(5_000, 5_400)
    before, after = (directly(evaluator, plan, unseen) for plan in (PLAIN, found.schedule))
    assert after < before - 0.02


def test_a_generation_has_seeds_in_common_that_no_other_has(tmp_path):
    evaluator = Measuring(tmp_path)
    evolve(evaluator)
    looks = [seeds for _, seeds in evaluator.seen if seeds.start < SELECTION]
    assert len(looks) == 6 * POPULATION
    assert [looks.count(seeds) for seeds in dict.fromkeys(looks)] == [POPULATION] * 6
    every = [seed for seeds in dict.fromkeys(looks) for seed in seeds]
    assert len(set(every)) == len(every)
    checks = [seeds for _, seeds in evaluator.seen if seeds.start >= SELECTION]
    assert checks == [range(SELECTION, SELECTION + 24)] * 3


def test_it_takes_the_passes_that_were_announced_as_gradients_do(tmp_path):
    most = PLAIN.passes * SETTINGS.most_images
    evaluator = Measuring(tmp_path)
    by_values = evolve(evaluator)
    assert by_values.passes == PLAIN.passes * sum(len(seeds) for _, seeds in evaluator.seen)
    assert 0.95 * most < by_values.passes <= most
    by_gradients = descent.polish(Measuring(tmp_path / "other"), KNOBS, SETTINGS)
    assert 0.9 * most < by_gradients.passes <= most


def test_what_loses_alignment_is_as_bad_as_its_objective_says(tmp_path):
    """A hundredth of the start's alignment is worth a hundredth of FD, whoever judges it."""
    evaluator = Measuring(tmp_path, lambda schedule: 0.3 if schedule == PLAIN else 0.27)
    state = Evolution(evaluator, KNOBS, SETTINGS)
    state.checks = [descent.Check(0, [], 1.0, 0.3, 0)]
    other = KNOBS.schedule(KNOBS.rates)
    for schedule, lost in ((PLAIN, 0.0), (other, 0.1)):
        expected = directly(evaluator, schedule, range(16)) + PENALTY * lost
        assert state._value(schedule, range(16)) == pytest.approx(expected)
    found = evolve(evaluator)  # and no check keeps it
    assert found.schedule == PLAIN


def test_a_killed_one_goes_on_where_it_was_and_ends_the_same(tmp_path):
    whole = evolve(Measuring(tmp_path / "whole"))
    kill = 1 + 2 * POPULATION + 3  # the third schedule of the third generation

    class Killed(Measuring):
        def measure(self, schedule, seeds):
            if len(self.seen) == kill - 1:
                raise KeyboardInterrupt
            return super().measure(schedule, seeds)

    cut = Killed(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        evolve(cut)
    evaluator = Measuring(tmp_path / "cut")
    found = evolve(evaluator)
    assert (found.schedule, found.checks) == (whole.schedule, whole.checks)
    assert found.passes == whole.passes
    # the generation that was cut off draws the same schedules, which the real cache knows
    assert evaluator.seen[:2] == cut.seen[-2:]
    assert len(evaluator.seen) == 4 * POPULATION + 2
    again = Measuring(tmp_path / "cut")
    assert evolve(again).schedule == whole.schedule
    assert not again.seen


def test_each_way_has_a_state_of_its_own(tmp_path):
    evolve(Measuring(tmp_path))
    descent.polish(Measuring(tmp_path), KNOBS, SETTINGS)
    assert len(list(tmp_path.glob("polish-*.safetensors"))) == 2


def test_numbers_that_the_model_does_not_take_otherwise_stay(tmp_path, monkeypatch):
    """As of a pipeline with one scale for all steps."""
    plan = from_sigmas([9.0, 3.0, 1.1], 0.1, [2.0, 2.0, 2.0], 2)
    evaluator = Measuring(tmp_path)

    def check(schedule):
        if len({step.guidance_scale for step in schedule.steps}) > 1:
            raise UserError("its scale is one for all steps")

    monkeypatch.setattr(evaluator.model, "check", check)
    knobs = Knobs(plan, "gain")
    state = Evolution(evaluator, knobs, SETTINGS)
    moved = {knobs.names[place].split()[0] for place in state.free}
    assert moved == {"gap", "end", "gain"}
    found = evolve(evaluator, knobs)
    assert {step.guidance_scale for step in found.schedule.steps} == {2.0}
    assert found.schedule.steps[0].gain != 1
    monkeypatch.setattr(evolution, "_taken", lambda *_: None)
    with pytest.raises(UserError, match="there is nothing to polish"):
        Evolution(evaluator, knobs, SETTINGS)


def test_schedules_that_cannot_be_sampled_are_the_worst_and_a_generation_of_them_ends_it(tmp_path):
    class Overflowing(Measuring):
        most = 1.0

        def measure(self, schedule, seeds):
            found = super().measure(schedule, seeds)
            found.finite = seeds.start >= SELECTION or schedule.steps[0].gain < self.most
            return found

    found = evolve(Overflowing(tmp_path))
    assert found.checks[-1].parameters[KNOBS.names.index("gain 0")] < 0
    none, news = Overflowing(tmp_path / "none"), []
    none.most = 0.0
    found = evolve(none, show=lambda k, text: news.append(text))
    assert found.schedule == PLAIN
    assert news[-1] == "ends here: no schedule of a generation makes images that are finite"


def test_too_few_images_for_a_generation_are_refused_before_the_first(tmp_path):
    few = replace(SETTINGS, images=8)
    with pytest.raises(UserError, match=f"{POPULATION} schedules an iteration: its images must be"):
        evolve(Measuring(tmp_path), settings=few)


def test_it_is_chosen_where_no_gradient_flows(tmp_path):
    evaluator = Measuring(tmp_path)
    assert values_alone(evaluator) is None
    by_gradients = descent.polish(Measuring(tmp_path / "gradients"), KNOBS, SETTINGS)
    assert polish(evaluator, KNOBS, SETTINGS).schedule == by_gradients.schedule
    evaluator.extractor = SimpleNamespace(name="patches")
    assert (
        "CMA-ES): lite0, texture, squeezenet, untrained have gradients, patches has none here"
        in (values_alone(evaluator))
    )
    evaluator.extractor = ToyEvaluator().extractor
    evaluator.model.nets = [torch.nn.Linear(2, 2).to(torch.float8_e4m3fn)]
    assert "is quantised, and no gradient flows through it" in values_alone(evaluator)


def test_a_pipeline_that_samples_itself_is_polished(tmp_path):
    """A real one, though tiny and random."""
    plain = StudyConfig(name="s", space={"num_steps": 2, "passes": 4}, model={"kind": "bria"})
    config = shrunk(plain, "bria", tmp_path)
    EVERY["bria"]().save_pretrained(tmp_path / "model")
    evaluator = Evaluator(config, tmp_path / "cache")
    assert values_alone(evaluator).endswith(
        "a BriaPipeline samples itself, and no gradient flows through it"
    )
    start = from_sigmas([0.9, 0.5], 0.0, [3.0, 3.0], 1, "ddim", evaluator.model.spec)
    how = Settings(iterations=1, images=8, check_images=8)
    found = Polishing.of(start, how).do(evaluator)
    assert [check.iteration for check in found.checks] == [0, 1]
    moved = Knobs(start, "gain").schedule(found.checks[1].parameters)
    assert moved.steps[1].sigma != 0.5
    assert moved.steps[0].gain != 1
    assert found.passes == start.passes * (2 * 8 + 8 * 2)  # five numbers: eight schedules of two


def test_a_run_polishes_by_a_metric_without_gradients(tmp_path):
    known = settings(polish=1, polish_iterations=1).model_dump()
    known["evaluation"] = {"extractor": "patches", "images": 12, "selection_images": 8}
    config = StudyConfig.model_validate(known)
    model = load("tiny")
    start = make_schedule("kl-optimal", 2, model.noise, guidance_scale=2.0, model=model.spec)
    evaluator = Evaluator(config, tmp_path)
    found = Polishing.of(start, Settings.of_study(config)).do(evaluator)
    first, last = found.checks
    assert found.best.distance <= first.distance
    assert last.parameters != first.parameters
    assert exp(abs(last.parameters[-1])) < 1.5  # sigma is in rates
