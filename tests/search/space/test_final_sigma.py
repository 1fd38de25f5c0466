"""Where a schedule of the box ends: above the model's lowest level, at it, or at 0."""

from dataclasses import replace

import pytest

from stepsampler.grids import make_schedule
from stepsampler.noise import NoiseSchedule
from stepsearch.config.space import SpaceConfig
from stepsearch.space.box import SearchSpace

SD = NoiseSchedule.scaled_linear()
START = make_schedule("kl-optimal", 3, SD, order=2, guidance_scale=2.0)


@pytest.fixture(scope="module")
def box():
    config = SpaceConfig(num_steps=3, passes=6, final_sigma=(0.02, 0.6), guidance="per-step")
    return SearchSpace(config, SD, SD.spec("stable-diffusion", "epsilon"), "kl-optimal")


def test_a_step_onto_zero_has_order_1(box):
    point, _ = box.params(START)
    schedule = box.schedule(point | {"final_sigma": 0.021})
    assert schedule.final_sigma == 0
    assert [step.order for step in schedule.steps] == [1, 2, 1]


def test_near_a_schedule_that_ends_at_the_model_s_lowest_level_the_end_does_not_jump(box):
    """Half of what a search tried beside KL-optimal had ended at 0, and was far worse."""
    assert START.final_sigma == pytest.approx(SD.sigma_min)
    point, _ = box.params(START)

    def end(share):
        """At so much of the way down, in logarithm, from the lowest level to the box's end."""
        value = SD.sigma_min * (0.02 / SD.sigma_min) ** share
        return box.schedule(point | {"final_sigma": value}).final_sigma

    assert end(-0.2) > SD.sigma_min
    assert end(0.2) == end(0.45) == SD.sigma_min
    assert end(0.55) == end(1.0) == 0


def test_the_point_of_a_schedule_that_ends_at_zero_is_the_box_s_end(box):
    last = replace(START.steps[-1], order=1)
    at_zero = replace(START, final_sigma=0.0, steps=(*START.steps[:-1], last))
    assert box.params(at_zero)[0]["final_sigma"] == 0.02
