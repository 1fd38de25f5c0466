"""Where a second network takes over, as an axis of the box."""

from dataclasses import replace

import pytest
from optuna.distributions import FloatDistribution
from pipelines import sd3, wan

from stepsampler import UserError
from stepsampler.grids import make_schedule
from stepsampler.models import from_pipeline
from stepsampler.noise import FlowSchedule
from stepsearch.config import StudyConfig
from stepsearch.config.space import SpaceConfig
from stepsearch.rivals.baselines import published
from stepsearch.space.box import SearchSpace
from stepsearch.space.check import check_box

NOISE = FlowSchedule(3.0)
SPEC = NOISE.spec("wan")


def box(boundary):
    config = SpaceConfig(num_steps=4, passes=8, final_sigma=(0.0005, 0.1), boundary=boundary)
    return SearchSpace(config, NOISE, SPEC, "linspace", boundary=0.875)


def baseline(boundary=None):
    plan = make_schedule("linspace", 4, NOISE, order=2, guidance_scale=2.0, model=SPEC)
    return replace(plan, boundary=boundary)


def test_without_the_key_schedules_leave_it_to_the_model():
    space = box(None)
    assert "boundary" not in space.distributions
    point, same = space.params(baseline())
    assert same
    assert space.schedule(point).boundary is None


def test_it_is_a_number_of_the_box():
    space = box((0.3, 0.95))
    assert space.distributions["boundary"] == FloatDistribution(
        0.3,
        0.95,
    )
    point, same = space.params(baseline(0.7))
    assert same
    assert point["boundary"] == space.schedule(point).boundary == 0.7
    assert space.schedule(point | {"boundary": 0.5}).boundary == 0.5
    fixed = box((0.9, 0.9))
    assert "boundary" not in fixed.distributions
    assert fixed.schedule(fixed.params(baseline())[0]).boundary == 0.9


def test_a_baseline_without_one_is_at_the_models_own():
    """It is the same schedule if each step has the same network."""
    point, same = box((0.3, 0.95)).params(baseline())
    assert (point["boundary"], same) == (0.875, True)
    sigmas = baseline().sigmas
    assert sigmas[1] == pytest.approx(0.9)
    point, same = box((0.3, 0.8)).params(baseline())  # the same side of every step: 0.9, 0.75
    assert (point["boundary"], same) == (0.8, True)
    point, same = box((0.3, 0.7)).params(baseline())
    assert (point["boundary"], same) == (0.7, False)


@pytest.mark.parametrize(
    ("pipeline", "boundary", "message"),
    [
        (wan, (0.3, 0.9), "space.boundary: the model has one network, so there is nothing to part"),
        (sd3, (0.3, 0.9), "space.boundary: the model has one network"),
        (lambda: wan(0.875), (0.3, 1.5), "space.boundary: high must be at most .*, 1, got 1.5"),
    ],
)
def test_a_model_that_cannot_have_it_refuses_it(pipeline, boundary, message):
    config = SpaceConfig(num_steps=3, passes=6, boundary=boundary)
    with pytest.raises(UserError, match=message):
        check_box(config, from_pipeline(pipeline(), 32))
    with pytest.raises(ValueError, match="boundary: low must be above 0, got -0.1"):
        SpaceConfig(num_steps=3, passes=6, boundary=(-0.1, 0.5))


def test_a_preset_for_two_networks_is_no_baseline_of_a_model_with_one():
    data = {"name": "p", "space": {"num_steps": 2, "passes": 4}}
    config = StudyConfig.model_validate(data)
    assert not published(config, SPEC)
    named = StudyConfig.model_validate(data | {"baselines": {"presets": ["wan22-lightning-4"]}})
    assert [c.name for c in published(named, SPEC, two=True)] == ["wan22-lightning-4"]
    with pytest.raises(UserError, match="wan22-lightning-4 is for two networks, the model has one"):
        published(named, SPEC)


def test_a_model_with_two_networks_takes_it():
    config = SpaceConfig(num_steps=3, passes=6, boundary=(0.3, 1.0))
    check_box(config, from_pipeline(wan(0.875), 32))
