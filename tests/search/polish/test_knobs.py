import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import toy
from hypothesis import given
from hypothesis import strategies as st

from stepsampler.grids import from_sigmas, make_schedule
from stepsampler.noise import FlowSchedule, NoiseSchedule
from stepsampler.sample import trajectory
from stepsampler.schedule import Schedule, Step
from stepsearch.config import StudyConfig
from stepsearch.config.measuring import SearchConfig
from stepsearch.config.space import SpaceConfig
from stepsearch.polish.knobs import Knobs, numbers_of

SD = NoiseSchedule.scaled_linear()
NOISE = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
STARTS = {
    "2M": make_schedule("karras", 5, SD, order=2, guidance_scale=2.0),
    "3M, not to the end": from_sigmas([14.0, 4.0, 1.0, 0.3], 0.1, [3.0, 1.0, 2.0, 1.0], 3),
    "UniPC": make_schedule("linspace", 4, SD, solver="unipc-bh2", order=2, guidance_scale=3.0),
    "DEIS": make_schedule("linspace", 4, SD, solver="deis", order=3),
    "iPNDM": make_schedule("linspace", 4, SD, solver="ipndm", order=4),
    "Heun": make_schedule("linspace", 3, SD, solver="heun", order=2, guidance_scale=2.0),
    "a flow": make_schedule("linspace", 4, FlowSchedule(), model=FlowSchedule().spec("flux")),
    "one step": Schedule((Step(14.0, 2.0),), 0.0),
    "a gain": Schedule((Step(14.0, gain=1.1), Step(2.0, gain=1.05)), 0.1),
    "weights": Schedule((Step(14.0), Step(2.0, order=2, weights=(1.4, -0.3))), 0.1),
}


def states(schedule):
    return list(trajectory(toy.gaussian_denoiser, NOISE, schedule))


@pytest.mark.parametrize("freedom", ["weights", "gain", "one-gain", "none"])
@pytest.mark.parametrize("name", STARTS)
def test_zero_is_the_schedule_itself(name, freedom):
    knobs = Knobs(STARTS[name], freedom)
    found = knobs.schedule(knobs.zero())
    assert found.sigmas == pytest.approx(STARTS[name].sigmas, rel=1e-12)
    assert found.passes == STARTS[name].passes
    for ours, theirs in zip(states(found), states(STARTS[name]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@given(st.data(), st.sampled_from(sorted(STARTS)), st.sampled_from(["weights", "gain", "none"]))
def test_whatever_is_turned_steps_guidance_and_both_ends_of_the_order_stay(data, name, freedom):
    start, knobs = STARTS[name], Knobs(STARTS[name], freedom)
    turned = [data.draw(st.floats(-1.5, 1.5), label=k) for k in knobs.names]
    found = knobs.schedule(turned)
    assert [s.guidance_scale != 1 for s in found.steps] == [
        s.guidance_scale != 1 for s in start.steps
    ]
    assert (found.num_steps, found.passes, found.sigmas[0]) == (
        start.num_steps, start.passes, start.sigmas[0],
    )  # fmt: skip
    assert all(a > b for a, b in pairwise(found.sigmas))
    assert (found.final_sigma == 0) == (start.final_sigma == 0)


def test_each_number_turns_what_it_is_named_after():
    start = STARTS["3M, not to the end"]
    knobs = Knobs(start)
    assert knobs.names[:7] == ["gap 0", "gap 1", "gap 2", "gap 3", "end ", "scale 0", "scale 2"]
    assert knobs.names[7:10] == ["weight 0, 0", "weight 1, 0", "weight 1, 1"]
    assert len(knobs.names) == 7 + 1 + 2 + 3 + 3  # two predictions, or as many as the rule takes
    assert len(knobs.rates) == len(knobs.zero()) == len(knobs.names)

    def turned(name, value):
        point = knobs.zero()
        point[knobs.names.index(name)] = value
        return knobs.schedule(point)

    assert turned("end ", 0.01).final_sigma == pytest.approx(0.101, rel=1e-3)
    assert turned("scale 2", 0.1).steps[2].guidance_scale == pytest.approx(1 + 2.718281828**0.1)
    rule = knobs.schedule(knobs.zero()).steps[1].weights
    assert turned("weight 1, 1", 0.02).steps[1].weights == pytest.approx((rule[0], rule[1] + 0.02))
    wider = turned("gap 0", 0.1).sigmas
    assert wider[1] < 4.0
    assert (wider[0], wider[-1]) == pytest.approx((14.0, 0.1))


def test_a_corrector_keeps_its_rule_and_has_a_gain():
    knobs = Knobs(STARTS["UniPC"])
    kinds = [name.split()[0] for name in knobs.names]
    assert kinds.count("gain") == 3  # the last step has no corrector
    assert kinds.count("weight") == 2


def test_levels_can_be_kept():
    knobs = Knobs(STARTS["2M"], "gain", levels=False)
    assert {name.split()[0] for name in knobs.names} == {"scale", "gain"}
    assert knobs.schedule([0.1] * len(knobs.names)).sigmas == STARTS["2M"].sigmas


def test_what_a_step_does_with_its_guidance_stays():
    steps = (Step(4.0, 3.0, repeats=1), Step(1.0, 3.0, guidance_reuse=True))
    knobs = Knobs(Schedule(steps), "gain")
    moved = knobs.schedule(knobs.rates)
    assert [s.repeats for s in moved.steps] == [1, 0]
    assert [s.guidance_reuse for s in moved.steps] == [False, True]
    assert moved.steps[1].guidance_scale > 3
    assert moved.passes == knobs.start.passes


def test_one_scale_of_all_guided_steps_stays_one():
    plan = from_sigmas([14.0, 4.0, 1.0], 0.1, [3.0, 3.0, 1.0], 2)
    knobs = Knobs(plan, "none", levels=False, one_scale=True)
    assert knobs.names == ["scale of all"]
    moved = knobs.schedule([0.1])
    strength = 2 * math.exp(0.1)
    assert [s.guidance_scale for s in moved.steps] == pytest.approx([1 + strength] * 2 + [1])
    unguided = from_sigmas([14.0, 4.0, 1.0], 0.1, [1.0] * 3, 2)
    assert not Knobs(unguided, "none", levels=False, one_scale=True).names


def test_one_gain_of_all_steps_keeps_what_they_have_beside_each_other():
    plan = from_sigmas([14.0, 4.0, 1.0], 0.1, [3.0, 3.0, 1.0], 2)
    known = [1.0, 1.1, 1.2]
    steps = tuple(replace(s, gain=g) for s, g in zip(plan.steps, known, strict=True))
    knobs = Knobs(replace(plan, steps=steps), "one-gain", levels=False, one_scale=True)
    assert knobs.names == ["scale of all", "gain of all"]
    moved = knobs.schedule([0.0, 0.1])
    assert [s.gain for s in moved.steps] == pytest.approx([g * math.exp(0.1) for g in known])


@pytest.mark.parametrize(
    ("space", "search", "kinds"),
    [
        ({}, {}, {"gap", "end", "scale"}),
        ({"gain": (1.0, 1.1)}, {}, {"gap", "end", "scale", "gain"}),
        ({}, {"polish": 1, "polish_gain": True}, {"gap", "end", "scale", "gain"}),
        ({"whole_timesteps": True}, {}, {"scale"}),
        ({"placement": "karras"}, {"polish": 1, "polish_gain": True}, {"scale", "gain"}),
    ],
)
def test_a_study_moves_what_its_box_has_and_gains_where_it_says_so(space, search, kinds):
    plan = from_sigmas([14.0, 4.0, 1.0], 0.1, [3.0, 3.0, 1.0], 2)
    box = SpaceConfig(num_steps=3, passes=6, guidance="per-step", **space)
    config = StudyConfig(name="numbers", space=box, search=SearchConfig(**search))
    knobs = Knobs(plan, **numbers_of(config))
    assert {name.split()[0] for name in knobs.names} == kinds
    assert not knobs.one_scale
    scalar = box.model_copy(update={"guidance": "constant"})
    constant = config.model_copy(update={"space": scalar})
    assert Knobs(plan, **numbers_of(constant)).one_scale
