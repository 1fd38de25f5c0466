"""Polishing: what comes out, passes, seeds, a cut, and what cannot be moved or sampled."""

from dataclasses import replace
from math import log
from types import SimpleNamespace

import numpy as np
import pytest
from polishing import PLAIN, ToyEvaluator, directly, features_of
from running import settings

from stepsampler.errors import UserError
from stepsampler.grids import from_sigmas, make_schedule
from stepsampler.models import load
from stepsearch.config import StudyConfig
from stepsearch.config.space import SpaceConfig
from stepsearch.metrics.distance import Average, Moments
from stepsearch.metrics.evaluator import SEARCH, SELECTION, Evaluator
from stepsearch.polish.descent import BACK, FARTHEST, ON, TRIES, Settings, StuckError, polish
from stepsearch.polish.knobs import Knobs, most_numbers, numbers_of
from stepsearch.polish.looking import Here
from stepsearch.rehearsal.dryrun import shrunk
from stepsearch.rehearsal.miniatures import EVERY

SETTINGS = Settings(iterations=3, images=60, check_images=40)
KNOBS = Knobs(PLAIN, "gain")


class Measuring(ToyEvaluator):
    """Measures, and notes each schedule with its seeds; `aligned` and `certain` are of one."""

    def __init__(self, aligned=lambda schedule: 1.0, certain=None):
        super().__init__(None, 8)
        self.seen, self.aligned, self.certain = [], aligned, certain or aligned

    def measure(self, schedule, seeds):
        self.seen.append((schedule, seeds))
        features, share = self.features(schedule, seeds), self.aligned(schedule)
        certain = self.certain(schedule)
        return SimpleNamespace(
            features=features,
            finite=True,
            aligned=np.full(len(seeds), share),
            certain=certain if certain is None else np.full(len(seeds), certain),
            alignment=share,
        )

    def features(self, schedule, seeds):
        return features_of(self, schedule, seeds)


class Valley(Measuring):
    """A metric of the user's with one best point: gains of 1.1 and scales of 2.2 and 1.4."""

    def __init__(self):
        super().__init__()
        whole = Moments.of(np.zeros((3, 1)))
        self.reference.search = Average(whole.mean, whole.cov, whole.n)

    def features(self, schedule, seeds):
        off = [10 * log(step.gain / 1.1) for step in schedule.steps]
        scales = [step.guidance_scale - 1 for step in schedule.steps[:2]]
        off += [10 * log(scale / best) for scale, best in zip(scales, (1.2, 0.4), strict=True)]
        return np.full((len(seeds), 1), np.square(off).sum() - 3.0)


def test_a_polish_lowers_the_objective_on_seeds_that_it_does_not_learn_from():
    evaluator = Measuring()
    found = polish(Here(evaluator), KNOBS, Settings(3, 200, 200))
    assert found.best.distance < 0.93 * found.checks[0].distance
    unseen = range(5_000, 5_400)
    before, after = (directly(evaluator, plan, unseen) for plan in (PLAIN, found.schedule))
    assert after < before - 0.05


def test_it_comes_near_the_bottom_of_a_metric_whose_values_are_negative():
    """Of a metric the slope alone is known: each check that is no better halves the moves."""
    knobs = Knobs(PLAIN, "gain", levels=False)
    found = polish(Here(Valley()), knobs, replace(SETTINGS, iterations=12))
    start = found.checks[0].distance
    assert found.best.distance + 3 < 0.05 * (start + 3)
    assert found.schedule.sigmas == PLAIN.sigmas


def test_what_costs_certainty_moves_less_before_any_image_turns():
    """Shares of images that show what was asked jump: a nudge turns none."""
    how = replace(SETTINGS, iterations=1)
    bold = polish(Here(Measuring()), KNOBS, how)
    careful = polish(
        Here(Measuring(certain=lambda schedule: 1 - 30 * (schedule.steps[0].gain - 1))),
        KNOBS,
        how,
    )
    gains = [found.schedule.steps[0].gain for found in (bold, careful)]
    assert gains[0] > 1.15  # of which it is less certain
    assert gains[1] < 1
    assert careful.best.distance < careful.checks[0].distance


def test_alignment_of_an_earlier_builds_cache_is_compared_with_no_certainty():
    """Or whatever moves seems to cost alignment, and its opposite to bring some."""
    how = replace(SETTINGS, iterations=1)
    begun = KNOBS.schedule(KNOBS.zero())  # measured then
    plain = polish(Here(Measuring()), KNOBS, how)
    found = polish(Here(Measuring(certain=lambda s: None if s == begun else 0.9)), KNOBS, how)
    assert found.checks[1].parameters == plain.checks[1].parameters


def test_where_nothing_is_free_nothing_is_measured():
    evaluator = Measuring()
    plain = from_sigmas([10.0, 1.0], 0.0, [1.0, 1.0], 1)
    with pytest.raises(StuckError, match="nothing of it is free"):
        polish(Here(evaluator), Knobs(plain, "none", levels=False), SETTINGS)
    assert not evaluator.seen


def test_what_memory_ran_out_for_is_no_schedule_that_the_model_does_not_take():
    """A run ends there, as with any other measurement, and goes on when there is more."""

    class Small(Measuring):
        def measure(self, schedule, seeds):
            if schedule != PLAIN:
                raise UserError("a batch of 1 does not fit into the memory")
            return super().measure(schedule, seeds)

    with pytest.raises(UserError, match="a batch of 1 does not fit") as caught:
        polish(Here(Small()), KNOBS, SETTINGS)
    assert not isinstance(caught.value, StuckError)


def test_the_start_comes_back_where_nothing_keeps_the_alignment():
    evaluator = Measuring(lambda schedule: 1.0 if schedule == PLAIN else 0.98)
    found = polish(Here(evaluator), KNOBS, SETTINGS)
    assert found.schedule == PLAIN
    assert found.best.iteration == 0
    assert min(check.distance for check in found.checks) < found.best.distance


def test_after_a_check_that_is_no_better_moves_are_shorter_and_after_a_better_one_longer():
    worse = {1: 1.0}  # alignment by the number of checks; of all others but the last it is lost

    def aligned(schedule):
        checks = sum(seeds.start >= SELECTION for _, seeds in evaluator.seen)
        return worse.get(checks, 1.0 if checks == TRIES + 1 else 0.9)

    evaluator = Measuring(aligned)
    found = polish(Here(evaluator), KNOBS, replace(SETTINGS, iterations=2))
    rates = KNOBS.rates.numpy()
    points = [np.array(check.parameters) / rates for check in found.checks]
    for back, point in enumerate(points[1 : TRIES + 1]):
        assert np.abs(point).max() <= FARTHEST * BACK**back * 1.0001
    assert found.best is found.checks[TRIES]
    last = FARTHEST * BACK ** (TRIES - 1) * ON
    assert np.abs(points[TRIES + 1] - points[TRIES]).max() <= last * 1.0001


def test_it_takes_no_more_passes_than_announced():
    evaluator = Measuring()
    found = polish(Here(evaluator), KNOBS, SETTINGS)
    taken = PLAIN.passes * sum(len(seeds) for _, seeds in evaluator.seen)
    assert found.passes == taken
    assert taken <= PLAIN.passes * SETTINGS.most_images(len(KNOBS.names))
    never = polish(Here(Measuring(lambda plan: float(plan == PLAIN))), KNOBS, SETTINGS)
    assert never.passes == PLAIN.passes * SETTINGS.most_images(len(KNOBS.names))


@pytest.mark.parametrize(
    ("steps", "guided", "box"),
    [
        (3, 3, {"num_steps": 3, "passes": 6}),
        (5, 1, {"num_steps": 5, "passes": 6}),
        (5, 1, {"num_steps": 3, "max_steps": 5, "passes": 6}),
        (4, 4, {"num_steps": 4, "passes": 6, "reuse": 2}),
        (4, 3, {"num_steps": 3, "passes": 6, "analytic": (0.9, 1.1)}),
    ],
)
def test_no_schedule_of_a_box_has_more_numbers_than_said(steps, guided, box):
    """The bound is met by schedules that end above sigma 0."""
    space = SpaceConfig(guidance="per-step", gain=(1.0, 1.1), **box)
    sigmas = np.geomspace(10, 0.5, steps).tolist()
    scales = [1.0] * (steps - guided) + [2.0] * guided
    plan = from_sigmas(sigmas, 0.1, scales, 1)
    every = [replace(s, guidance_reuse=i % space.reuse > 0) for i, s in enumerate(plan.steps)]
    if space.analytic:
        every[0] = replace(every[0], analytic=1.0)
    plan = replace(plan, steps=tuple(every))
    assert plan.passes == 6
    config = StudyConfig(name="bound", space=space)
    assert len(Knobs(plan, **numbers_of(config)).names) == most_numbers(space)


def test_a_metric_of_the_users_that_is_0_at_the_start_is_polished():
    """Shares of it would be none."""

    class FromZero(Valley):
        def features(self, schedule, seeds):
            return super().features(schedule, seeds) - super().features(PLAIN, seeds)

    news = []
    found = polish(Here(FromZero()), KNOBS, SETTINGS, lambda k, text: news.append(text))
    assert found.checks[0].distance == 0
    assert found.best.distance < 0
    assert not any("(" in text for text in news)


def test_an_iteration_has_fresh_seeds_and_all_numbers_the_same():
    evaluator = Measuring()
    polish(Here(evaluator), KNOBS, SETTINGS)
    looks = [seeds for _, seeds in evaluator.seen if seeds.start < SELECTION]
    each = [range(SEARCH + 60 * k, SEARCH + 60 * (k + 1)) for k in range(3)]
    assert list(dict.fromkeys(looks)) == each
    assert all(looks.count(seeds) == len(KNOBS.names) + 1 for seeds in each)
    checks = {seeds for _, seeds in evaluator.seen if seeds.start >= SELECTION}
    assert checks == {range(SELECTION, SELECTION + 40)}


def test_numbers_that_the_model_does_not_take_otherwise_stay(monkeypatch):
    """As of a pipeline with one scale for all steps."""
    plan = from_sigmas([9.0, 3.0, 1.1], 0.1, [2.0, 2.0, 2.0], 2)
    evaluator = Measuring()

    def check(schedule):
        if len({step.guidance_scale for step in schedule.steps}) > 1:
            raise UserError("its scale is one for all steps")

    monkeypatch.setattr(evaluator.model, "check", check)
    found = polish(Here(evaluator), Knobs(plan, "gain"), SETTINGS)
    assert {step.guidance_scale for step in found.schedule.steps} == {2.0}
    assert found.schedule.steps[0].gain != 1

    def nothing(schedule):
        if schedule != plan:
            raise UserError("it takes one schedule")

    monkeypatch.setattr(evaluator.model, "check", nothing)
    with pytest.raises(StuckError, match="there is nothing to polish") as stuck:
        polish(Here(evaluator), Knobs(plan, "gain"), SETTINGS)
    assert stuck.value.passes == plan.passes * (SETTINGS.check_images + SETTINGS.images)
    with pytest.raises(StuckError, match="it takes one schedule"):
        polish(Here(evaluator), KNOBS, SETTINGS)


def test_a_number_stays_where_moving_it_makes_images_that_are_not_finite():
    class Overflowing(Measuring):
        def measure(self, schedule, seeds):
            found = super().measure(schedule, seeds)
            found.finite = seeds.start >= SELECTION or schedule.steps[0].gain == 1
            return found

    found = polish(Here(Overflowing()), KNOBS, replace(SETTINGS, iterations=1))
    assert found.best.iteration == 1
    assert found.best.parameters[KNOBS.names.index("gain 0")] == 0


def test_images_that_are_not_finite_end_it_with_the_best_so_far():
    class Broken(Measuring):
        def measure(self, schedule, seeds):
            found = super().measure(schedule, seeds)
            found.finite = seeds.start != SEARCH + 60
            return found

    news = []
    found = polish(Here(Broken()), KNOBS, SETTINGS, lambda k, text: news.append(text))
    assert found.best.iteration == 1
    assert news[-1] == "ends here: the images are not finite"


def test_a_schedule_that_cannot_be_sampled_is_refused(monkeypatch):
    evaluator = Measuring()
    broken = SimpleNamespace(features=None, finite=False, alignment=float("nan"))
    monkeypatch.setattr(evaluator, "measure", lambda schedule, seeds: broken)
    with pytest.raises(StuckError, match="the images of the schedule itself are not finite"):
        polish(Here(evaluator), KNOBS, SETTINGS)


def of_tiny(folder, **evaluation):
    known = settings(polish=1, polish_iterations=1).model_dump()
    known["evaluation"] = {"images": 8, "selection_images": 8, "rulers": [], **evaluation}
    config = StudyConfig.model_validate(known)
    return Evaluator(config, folder), Settings.of_study(config)


def start_of(steps):
    model = load("tiny")
    return make_schedule("kl-optimal", steps, model.noise, guidance_scale=2.0, model=model.spec)


def test_a_killed_polish_goes_on_where_it_was_and_ends_the_same(tmp_path, monkeypatch):
    knobs = Knobs(start_of(2), "gain")
    evaluator, how = of_tiny(tmp_path / "whole")
    whole, made = polish(Here(evaluator), knobs, how), []
    measure = Evaluator._measure

    def counted(self, schedule, *rest):
        if len(made) == 4:
            made.append(None)
            raise KeyboardInterrupt
        made.append(schedule)
        return measure(self, schedule, *rest)

    monkeypatch.setattr(Evaluator, "_measure", counted)
    with pytest.raises(KeyboardInterrupt):
        polish(Here(of_tiny(tmp_path / "cut")[0]), knobs, how)
    found = polish(Here(of_tiny(tmp_path / "cut")[0]), knobs, how)
    assert (found.schedule, found.checks) == (whole.schedule, whole.checks)
    schedules = [(plan.to_json()) for plan in made if plan]
    assert len(schedules) == 2 + len(knobs.names) + len(whole.checks) - 1  # none was made twice


def test_what_numbers_have_in_common_is_made_once(tmp_path):
    """A gain of the last step changes no call of the network."""
    evaluator, how = of_tiny(tmp_path)
    polish(Here(evaluator), Knobs(start_of(2), "gain"), how)
    # Of two guided steps: the first call is known to all other schedules of the search's seeds and
    # to all checks but the first, the second to the two that end otherwise.
    numbers = len(Knobs(start_of(2), "gain").names)
    first = 2 * 8 * numbers
    assert evaluator.saved >= first + 2 * 8 * 2


def test_a_pipeline_that_samples_itself_is_polished(tmp_path):
    """A real one, though tiny and random."""
    plain = StudyConfig(name="s", space={"num_steps": 2, "passes": 4}, model={"kind": "bria"})
    config = shrunk(plain, "bria", tmp_path)
    EVERY["bria"]().save_pretrained(tmp_path / "model")
    evaluator = Evaluator(config, tmp_path / "cache")
    start = from_sigmas([0.9, 0.5], 0.0, [3.0, 3.0], 1, "ddim", evaluator.model.spec)
    found = polish(Here(evaluator), Knobs(start, "gain"), Settings(1, 8, 8))
    moved = Knobs(start, "gain").schedule(found.checks[1].parameters)
    assert moved.steps[1].sigma != 0.5
    assert moved.steps[0].gain != 1


@pytest.mark.parametrize("extractor", ["patches", "texture+lite0"])
def test_a_run_polishes_by_any_extractor(extractor, tmp_path):
    evaluator, how = of_tiny(tmp_path, extractor=extractor, images=12)
    found = polish(Here(evaluator), Knobs(start_of(2), "gain"), how)
    first, second, *_ = found.checks
    assert found.best.distance <= first.distance
    assert second.parameters != first.parameters


def test_passes_are_those_of_all_guidance_scales(tmp_path):
    start = start_of(2)
    evaluator, how = of_tiny(tmp_path, guidance_scales=[1.5, 2.5])
    found = polish(Here(evaluator), Knobs(start, "gain"), how)
    looked = 1 + len(Knobs(start, "gain").names) + len(found.checks)
    assert found.passes == 2 * start.passes * 8 * looked
