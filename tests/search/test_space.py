import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepsampler.grids import GRIDS, make_schedule
from stepsampler.noise import NoiseSchedule
from stepsearch.config import SpaceConfig
from stepsearch.space import SearchSpace, within_budget

SD = NoiseSchedule.scaled_linear()
SPEC = SD.spec("stable-diffusion", "epsilon")


def space(steps=5, passes=8, grid="power", **options):
    config = SpaceConfig(num_steps=steps, passes=passes, **options)
    return SearchSpace(config, SD, SPEC, tuple(GRIDS[grid](steps, SD)))


def centre(box):
    return dict.fromkeys(box.distributions, 0.0) | {
        "final_sigma": box.baseline[-1],
        "order": 2.0,
        **{f"guidance_scale_{i}": 2.0 for i in range(box.config.num_steps)},
    }


@given(st.data(), st.sampled_from(sorted(GRIDS)), st.integers(2, 9))
def test_every_point_of_the_box_is_a_schedule_within_the_budget(data, grid, steps):
    passes = data.draw(st.integers(steps, 2 * steps))
    box = space(steps, passes, grid)
    point = {
        name: data.draw(st.floats(d.low, d.high), label=name)
        for name, d in box.distributions.items()
    }
    schedule = box.schedule(point)
    assert schedule.num_steps == steps
    assert schedule.passes <= passes
    assert schedule.model == SPEC


def test_the_centre_of_the_box_is_the_baseline():
    box = space()
    assert box.schedule(centre(box)).sigmas == pytest.approx(box.baseline, rel=1e-6)


def test_a_final_sigma_below_the_model_s_lowest_is_zero():
    box = space()
    schedule = box.schedule(centre(box) | {"final_sigma": 0.021, "order": 3.4})
    assert schedule.final_sigma == 0
    assert [step.order for step in schedule.steps] == [1, 2, 3, 3, 1]


@pytest.mark.parametrize("grid", ["power", "uniform-logsnr", "linspace", "ays-sdxl"])
@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_known_schedules_of_this_many_steps_are_points_of_the_box(grid, scale):
    box = space(passes=10, grid="power", log_gap=(-6.0, 6.0))
    schedule = make_schedule(grid, 5, SD, guidance_scale=scale)
    point, same = box.params(schedule)
    assert same
    again = box.schedule(point)
    assert again.sigmas == pytest.approx(schedule.sigmas, rel=1e-3)
    assert [s.guidance_scale for s in again.steps] == [scale] * 5


def test_a_schedule_outside_of_the_box_gives_the_nearest_point_and_says_so():
    box = space(passes=10, log_gap=(-0.1, 0.1))
    point, same = box.params(make_schedule("karras", 5, SD, guidance_scale=5.0))
    assert not same
    for name, d in box.distributions.items():
        assert d.low <= point[name] <= d.high


@given(st.lists(st.floats(0, 5), min_size=1, max_size=12), st.integers(0, 12))
def test_the_weakest_guided_steps_go_off_first(guidance, spare):
    passes = len(guidance) + min(spare, len(guidance))
    kept = within_budget(guidance, passes)
    on = [w for w in kept if w > 1]
    assert len(kept) + len(on) <= passes
    off = sorted((w for w, k in zip(guidance, kept, strict=True) if k == 1), reverse=True)
    assert not on or not off or max(off[0], 1) <= min(on)
    wanted = sum(w > 1 for w in guidance)
    assert len(on) == min(wanted, passes - len(guidance))
