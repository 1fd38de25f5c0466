"""A study can ask for a schedule that is good over a range of guidance scales."""

from dataclasses import replace

import numpy as np
import pytest

from stepsampler import load
from stepsampler.grids import is_guided, make_schedule, scale_guidance
from stepsampler.noise import NoiseSchedule
from stepsearch.config import StudyConfig
from stepsearch.engine.study import finished, open_study, run_trials, schedule_of, usable
from stepsearch.metrics.distance import Moments, frechet_distance, score
from stepsearch.metrics.evaluator import Evaluator, Measurement
from stepsearch.rehearsal.dryrun import dry_run
from stepsearch.rivals.baselines import baselines, long_baselines, published
from stepsearch.space.box import SearchSpace

SD = NoiseSchedule.scaled_linear()
SPEC = SD.spec("stable-diffusion", "epsilon")


def settings(over="mean", scales=(1.5, 3.0), **sections):
    data = {
        "name": "t",
        "space": {"num_steps": 2, "passes": 4},
        "evaluation": {"guidance_scales": scales, "over": over, "batch_size": 4, "images": 8},
    }
    return StudyConfig.model_validate(data | sections)


@pytest.mark.parametrize("over", ["mean", "worst"])
def test_the_distance_of_versions_is_their_mean_or_the_worst(over):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 3, 4)) + np.array([0.0, 0.5, 2.0])[:, None]
    reference = Moments(np.zeros(4), np.eye(4), 1000, over)
    alone = [score(features[:, k], reference) for k in range(3)]
    join = {"mean": np.mean, "worst": np.max}[over]
    found = score(features, reference)
    assert found.value == pytest.approx(join([s.value for s in alone]))
    assert found.value == frechet_distance(features, reference)
    assert found.left_out == pytest.approx(join([s.left_out for s in alone], axis=0))
    if over == "worst":  # of these, by far, the last
        assert found.se == pytest.approx(alone[2].se)
    else:
        difference, se = found.minus(alone[0])
        pair = features[:, :1].repeat(3, axis=1)
        assert (difference, se) == pytest.approx(found.minus(score(pair, reference)))


def test_each_scale_is_measured_as_the_schedule_with_that_scale(tmp_path):
    config = settings()
    plan = make_schedule("power", 2, SD, guidance_scale=2.0, model=SPEC)
    evaluator = Evaluator(config, tmp_path)
    both = evaluator.measure(plan, range(4))
    assert both.features.shape == (4, 2, 128)
    plain = Evaluator(settings(scales=()), tmp_path)
    alone = [plain.measure(scale_guidance(plan, w), range(4)) for w in (1.5, 3.0)]
    assert np.array_equal(both.features, np.stack([m.features for m in alone], axis=1))
    assert np.array_equal(both.aligned, np.mean([m.aligned for m in alone], axis=0))
    joined = Measurement.join([both, both])
    assert joined.features.shape == (8, 2, 128)
    unguided = make_schedule("power", 2, SD, model=SPEC)
    same = evaluator.measure(unguided, range(4))  # there is nothing to scale
    assert np.array_equal(same.features[:, 0], same.features[:, 1])


class Toy:
    """An evaluator without images."""

    saved = 0

    class reference:  # noqa: N801
        search = Moments(np.zeros(2), np.eye(2), 100)

    def measure(self, schedule, seeds):
        features = np.random.default_rng(0).normal(size=(len(seeds), 2, 2))
        aligned = np.full(len(seeds), np.nan)
        return Measurement(features.astype(np.float32), aligned.astype(np.float32))


def test_a_trial_without_guidance_is_not_feasible_and_never_chosen(tmp_path):
    space = {"num_steps": 2, "passes": 4, "guidance_scale": [0.2, 1.6]}
    config = settings(space=space, search={"algorithm": "random", "trials": 12})
    study = open_study(tmp_path, config)
    box = SearchSpace(config.space, SD, SPEC, "power")
    run_trials(study, tmp_path, config, box, Toy(), float("nan"))
    guided = [any(map(is_guided, schedule_of(t).steps)) for t in finished(study)]
    assert True in guided
    assert False in guided
    assert [t.constraints["guided"] <= 0 for t in finished(study)] == guided
    assert len(usable(study)) == sum(guided)


def test_baselines_are_guided_and_constant_guidance_comes_once():
    config = settings(baselines={"long_steps": [20], "presets": ["seed-*"]}, space={
        "num_steps": 5, "passes": 10})  # fmt: skip
    known = baselines(config, SD, SPEC, {})
    assert all(is_guided(step) for c in known for step in c.schedule.steps)
    assert len(known) == len({c.schedule.to_json() for c in known})
    scaled = {scale_guidance(c.schedule, 2.0).to_json() for c in known}
    assert len(scaled) == len(known)
    (long,) = long_baselines(config, SD, SPEC)
    assert long.schedule.passes == 40
    assert "seed-sd-5" in [c.name for c in published(config, SPEC)]


@pytest.mark.parametrize("guidance", ["classifier-free", "distilled"])
def test_every_baseline_has_its_own_name(guidance):
    """A scale of 1 is unguided: with distilled guidance on as many steps as the unguided ones."""
    options = {"guidance_scales": [1.0, 3.0], "long_steps": [20]}
    config = settings(evaluation={}, baselines=options)
    for known in (baselines(config, SD, SPEC, {}, guidance), long_baselines(config, SD, SPEC)):
        names = [c.name for c in known]
        assert len(names) == len(set(names))
        assert any("w 3" in name for name in names)


def test_a_study_over_scales_goes_through_every_stage_and_says_so(tmp_path):
    config = settings("worst", model={"id": "a/b", "kind": "stable-diffusion"})
    result = dry_run(config, "stable-diffusion", tmp_path)
    best = load(tmp_path / "run" / "best.json")
    assert best.provenance["metric"] == "fd_texture128_8, worst over guidance 1.5, 3"
    assert all(any(map(is_guided, row.candidate.schedule.steps)) for row in result.test)
    worst = max(row.score.value for row in result.selection)
    assert all(row.measurement.features.ndim == 3 for row in result.test)
    reference = replace(result.subject.reference.search, over="mean")
    for row in result.selection:
        assert frechet_distance(row.measurement.features, reference) <= row.score.value <= worst


@pytest.mark.parametrize("scales", [(1.0, 2.0), (2.0, 2.0), (0.5,)])
def test_scales_that_are_no_scales_are_refused(scales):
    with pytest.raises(ValueError, match="guidance_scales must differ and be above 1, got "):
        settings(scales=scales)
