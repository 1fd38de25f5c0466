"""Boxes whose schedules keep to whole training timesteps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepsampler import UserError
from stepsampler.grids import GRIDS, is_whole, make_schedule, whole_timesteps
from stepsampler.noise import FlowSchedule, NoiseSchedule
from stepsearch.config.space import SpaceConfig
from stepsearch.space.box import SearchSpace

SD = NoiseSchedule.scaled_linear()
SPEC = SD.spec("stable-diffusion", "epsilon")


def space(steps, passes, grid="power", whole=True, **options):
    config = SpaceConfig(num_steps=steps, passes=passes, whole_timesteps=whole, **options)
    return SearchSpace(config, SD, SPEC, grid)


@given(st.data(), st.sampled_from(sorted(GRIDS)), st.sampled_from([2, 3, 5, 64]))
def test_every_point_is_at_whole_timesteps_and_near_the_one_without(data, grid, steps):
    placement = data.draw(st.sampled_from(["curve", "power", "karras"]))
    box, free = (
        space(steps, 2 * steps, grid, whole, placement=placement, log_gap=(-6.0, 6.0))
        for whole in (True, False)
    )
    assert box.distributions == free.distributions
    generator = np.random.default_rng(data.draw(st.integers(0, 9999)))
    point = {name: generator.uniform(d.low, d.high) for name, d in box.distributions.items()}
    made, before = box.schedule(point), free.schedule(point)
    assert is_whole(made, SD)
    assert made.num_steps == before.num_steps
    moved = [
        SD.timestep(a.sigma) - SD.timestep(b.sigma)
        for a, b in zip(made.steps, before.steps, strict=True)
    ]
    assert abs(moved[0]) <= 0.5 + 1e-6
    assert max(map(abs, moved)) <= steps  # many steps on one timestep get the next ones


def test_a_schedule_at_whole_timesteps_is_a_point_of_its_box():
    box = space(5, 10, log_gap=(-6.0, 6.0), guidance="constant")
    known = whole_timesteps(make_schedule("power", 5, SD, guidance_scale=2.0, model=SPEC), SD)
    point, same = box.params(known)
    assert same
    assert box.schedule(point).sigmas[:-1] == pytest.approx(known.sigmas[:-1], rel=1e-9)


def test_a_flow_model_has_no_whole_timesteps():
    config = SpaceConfig(num_steps=4, passes=8, whole_timesteps=True)
    noise = FlowSchedule()
    with pytest.raises(UserError, match="^space.whole_timesteps is not for a flow model$"):
        SearchSpace(config, noise, noise.spec("flux", "flow_prediction"), "linspace")
