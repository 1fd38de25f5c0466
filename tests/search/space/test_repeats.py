"""Iterated guidance as an axis of the box."""

from dataclasses import replace

import pytest
import running
from hypothesis import given
from hypothesis import strategies as st

from stepsampler import UserError
from stepsampler.noise import FlowSchedule
from stepsearch.config.space import SpaceConfig
from stepsearch.space.box import SearchSpace


def space(repeats=2, passes=10, **options):
    options = {"num_steps": 4, "max_steps": 6, **options}
    return running.space(passes=passes, grid="linspace", repeats=repeats, **options)


def told(schedule):
    return " ".join(
        f"{'-' if s.guidance_scale == 1 else 'F'}{s.repeats or ''}" for s in schedule.steps
    )


@pytest.mark.parametrize(
    ("passes", "repeats", "expected"),
    [
        (10, 0.4, "F F F F"),
        (10, 1.0, "- F1 F F"),  # 4 + 3 guided + 3
        (10, 2.0, "- F1 F F"),  # two iterations leave nothing to guide
        (11, 2.0, "- - - F2"),  # 4 + 1 + 6
        (14, 2.0, "F2 F F F"),
        (7, 1.0, "- F F F"),  # 4 + 1 + 3 would be 8
    ],
)
def test_an_iteration_is_paid_for_by_guidance_and_one_step_stays_guided(passes, repeats, expected):
    box = space(passes=passes)
    point, _ = box.params(replace(running.rising(4), final_sigma=0.1))
    found = box.schedule(point | {"repeats": repeats, "final_sigma": 0.1})
    assert told(found) == expected
    assert found.passes <= passes
    back, same = box.params(found)
    assert same
    assert told(box.schedule(back)) == expected
    assert round(back["repeats"]) == max(s.repeats for s in found.steps)


def test_there_is_no_way_back_from_sigma_0_and_none_behind_a_corrector():
    box = space(1, passes=8, num_steps=4, solvers=("unipc-bh2",), final_sigma=(0.02, 0.6))
    scales = {f"guidance_scale_{i}": w for i, w in enumerate((0.8, 0.8, 0.8, 3.0))}
    point = dict.fromkeys(box.distributions, 0.0) | scales | {"repeats": 1.0, "order": 1.0}
    point["num_steps"] = 4.0
    for final in (0.02, 0.6):
        assert told(box.schedule(point | {"final_sigma": final})) == "- - - F"
    first = {f"guidance_scale_{i}": w for i, w in enumerate((3.0, 0.8, 0.8, 0.8))}
    assert told(box.schedule(point | first | {"final_sigma": 0.6})) == "F1 - - -"
    plain = space(1, passes=8)
    last = point | {"final_sigma": 0.02}
    assert told(plain.schedule(last)) == "- - - F"
    assert told(plain.schedule(last | {"final_sigma": 0.6})) == "- - - F1"


def test_with_reuse_the_iterated_step_has_both_predictions():
    box = space(1, passes=12, reuse=4)
    point = dict.fromkeys(box.distributions, 0.0) | {"final_sigma": 0.6, "order": 1.0}
    point |= {f"guidance_scale_{i}": 3.0 for i in range(4)} | {"num_steps": 6.0}
    plan = box.schedule(point | {"repeats": 1.0, "reuse": 3.0})
    assert [(s.repeats, s.guidance_reuse) for s in plan.steps] == [
        (1, False),
        (0, True),
        (0, True),
        (0, False),
        (0, True),
        (0, True),
    ]
    assert plan.passes == 6 + 2 + 3
    assert box.params(plan)[1]


def test_none_is_no_axis_and_some_models_and_boxes_have_none():
    assert "repeats" not in space(0).distributions
    assert space(2).distributions["repeats"].low == -0.5
    flow = FlowSchedule()
    with pytest.raises(UserError, match=r"space.repeats is for classifier-free guidance, the mode"):
        SearchSpace(
            SpaceConfig(num_steps=4, passes=8, repeats=1),
            flow,
            flow.spec("flux"),
            "linspace",
            "distilled",
        )
    with pytest.raises(ValueError, match=r"repeats: there is no guidance to iterate, it is .off."):
        SpaceConfig(num_steps=4, passes=8, repeats=1, guidance="off")


@given(st.data(), st.integers(2, 6), st.integers(0, 3), st.integers(1, 3))
def test_every_point_is_a_schedule_within_the_budget(data, n, more, repeats):
    passes = data.draw(st.integers(n + more, 3 * (n + more)))
    solvers = data.draw(st.sampled_from([("dpmpp-midpoint",), ("unipc-bh2",)]))
    golden = ("off", "raw") if passes >= n + more + 2 else ("off",)
    options = {"max_steps": n + more, "num_steps": n, "solvers": solvers, "golden_noise": golden}
    box = space(repeats, passes, analytic=(0.8, 1.0), reuse=2, corrector=True, **options)
    point = {k: data.draw(st.floats(d.low, d.high)) for k, d in box.distributions.items()}
    plan = box.schedule(point)
    assert plan.passes <= passes
    assert sum(s.repeats > 0 for s in plan.steps) <= 1
