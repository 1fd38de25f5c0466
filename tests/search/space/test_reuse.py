"""Guidance by reuse as an axis of the box."""

from dataclasses import replace

import pytest
import running
from hypothesis import given
from hypothesis import strategies as st
from running import SD, SPEC

from stepsampler import UserError
from stepsampler.grids import make_schedule
from stepsampler.noise import FlowSchedule
from stepsearch.config.space import SpaceConfig
from stepsearch.space.box import SearchSpace
from stepsearch.space.guidance import within_budget


def space(reuse=4, passes=10, **options):
    options = {"num_steps": 4, "max_steps": 8, **options}
    return running.space(passes=passes, grid="linspace", reuse=reuse, **options)


def reused(schedule):
    return "".join(
        "-" if s.guidance_scale == 1 else "r" if s.guidance_reuse else "F" for s in schedule.steps
    )


@pytest.mark.parametrize(
    ("every", "pattern"),
    [(1.0, "------FF"), (2.0, "----FrFr"), (3.0, "--FrrFrr"), (4.0, "FrrrFrrr")],
)
def test_every_so_manieth_guided_step_has_both_predictions(every, pattern):
    box = space(num_steps=8)
    point, _ = box.params(running.rising(8))
    found = box.schedule(point | {"reuse": every})
    assert reused(found) == pattern
    assert found.passes == 10
    back, same = box.params(found)
    assert same
    assert round(back["reuse"]) == every


def test_one_means_that_no_step_reuses_and_there_is_no_axis():
    assert "reuse" not in space(1).distributions
    box = space(3)
    plan = make_schedule("linspace", 4, SD, guidance_scale=3.0, order=1, model=SPEC)
    point, same = box.params(plan)
    assert same
    assert point["reuse"] == 1
    steps = (plan.steps[0], *(replace(s, guidance_reuse=True) for s in plan.steps[1:]))
    assert space(1).params(replace(plan, steps=steps))[1] is False


def test_distilled_guidance_has_nothing_to_reuse():
    config = SpaceConfig(num_steps=4, passes=8, reuse=2)
    flow = FlowSchedule()
    with pytest.raises(
        UserError, match=r"space.reuse is for classifier-free guidance, the model's"
    ):
        SearchSpace(config, flow, flow.spec("flux"), "linspace", "distilled")


@given(st.lists(st.floats(0.5, 6), min_size=1, max_size=12), st.integers(0, 12), st.integers(1, 5))
def test_the_budget_is_kept_and_no_more_guidance_is_lost_than_it_asks_for(scales, more, every):
    passes = len(scales) + more
    kept = [w > 1 for w in within_budget(scales, passes, every)]
    assert len(scales) + -(-sum(kept) // every) <= passes
    wanted = sum(w > 1 for w in scales)
    assert sum(kept) == min(wanted, every * more)
