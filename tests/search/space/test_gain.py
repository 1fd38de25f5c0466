"""The gain of all steps as an axis of the box."""

from dataclasses import replace

import pytest

from stepsampler.grids import make_schedule
from stepsampler.noise import FlowSchedule, NoiseSchedule
from stepsearch.config import StudyConfig
from stepsearch.config.space import SpaceConfig
from stepsearch.engine.stages.costs import costs
from stepsearch.rivals.baselines import Candidate, baselines, gained, long_baselines, published
from stepsearch.space.box import SearchSpace
from stepsearch.space.starts import first_points

SD = NoiseSchedule.scaled_linear()
SPEC = SD.spec("stable-diffusion", "epsilon")
PLAIN = make_schedule("beta", 4, SD, order=2, guidance_scale=2.0, model=SPEC)


def space(gain=(0.9, 1.2), **options):
    options = {"guidance": "per-step", "final_sigma": (0.02, 0.6), **options}
    return SearchSpace(SpaceConfig(num_steps=4, passes=8, gain=gain, **options), SD, SPEC, "beta")


def with_gains(schedule, *gains):
    pairs = zip(schedule.steps, gains, strict=True)
    return replace(schedule, steps=tuple(replace(step, gain=gain) for step, gain in pairs))


def test_a_gain_is_one_number_of_every_step_and_comes_back():
    point, same = space().params(PLAIN)
    assert same
    assert point["gain"] == 1
    other = space().schedule(point | {"gain": 1.07})
    assert [step.gain for step in other.steps] == [1.07] * 4
    back, same = space().params(other)
    assert same
    assert back == pytest.approx(point | {"gain": 1.07})
    assert "gain" not in space(None).distributions


def test_gains_that_the_box_cannot_have_are_near_it_only():
    assert space().params(with_gains(PLAIN, 1.3, 1.3, 1.3, 1.3))[1] is False  # beyond it
    point, same = space().params(with_gains(PLAIN, 1.0, 1.1, 1.1, 1.2))
    assert (point["gain"], same) == (pytest.approx(1.1), False)
    assert space(None).params(with_gains(PLAIN, 1.1, 1.1, 1.1, 1.1))[1] is False
    own = replace(PLAIN, steps=(replace(PLAIN.steps[0], weights=(1.05,)), *PLAIN.steps[1:]))
    assert space().params(own)[1] is False


def test_a_fixed_gain_is_no_axis():
    box = space((1.05, 1.05))
    assert "gain" not in box.distributions
    point, same = box.params(with_gains(PLAIN, *[1.05] * 4))
    assert same
    assert {step.gain for step in box.schedule(point).steps} == {1.05}
    assert box.params(PLAIN)[1] is False


def test_an_analytic_first_step_has_the_gain_too():
    box = space(analytic=(0.8, 1.0))
    point, _ = box.params(PLAIN)
    schedule = box.schedule(point | {"analytic": 1.0, "gain": 1.1})
    assert [(s.analytic, s.gain) for s in schedule.steps] == [(1.0, 1.1), *[(None, 1.1)] * 4]
    assert box.params(schedule)[1]


def test_a_flow_model_may_have_a_gain():
    noise = FlowSchedule()
    spec = noise.spec("flux", "flow_prediction")
    config = SpaceConfig(num_steps=3, passes=6, gain=(0.9, 1.2))
    box = SearchSpace(config, noise, spec, "linspace")
    middle = {name: (d.low + d.high) / 2 for name, d in box.distributions.items()}
    assert [s.gain for s in box.schedule(middle).steps] == pytest.approx([1.05] * 3)


def test_a_search_begins_without_a_gain_and_half_way_to_the_highest():
    best = [Candidate("beta, order 2, w 2", PLAIN, "baseline", "beta")]
    found = {name: point["gain"] for point, name in first_points(space(), best)}
    half = "beta, 4 steps, the first 2 guided, w 2"
    assert found == {
        "beta, order 2, w 2": 1.0,
        "beta, order 2, w 2, gain 1.1": pytest.approx(1.1),
        half: 1.0,
    }
    below = space((0.9, 1.0))  # then that would be none, once more
    assert [point["gain"] for point, _ in first_points(below, best)] == [1.0] * 2
    assert len(first_points(space(None), best)) == 2


def study(**options):
    data = {"name": "x", "space": {"num_steps": 4, "passes": 8}, "baselines": options}
    return StudyConfig.model_validate(data)


def test_every_baseline_has_every_gain_of_the_study():
    plain, both = study(long_steps=[20]), study(long_steps=[20], gains=[1.0, 1.07])
    for known in (
        lambda config: baselines(config, SD, SPEC, {}),
        lambda config: published(config, SPEC),
        lambda config: long_baselines(config, SD, SPEC),
    ):
        one, two = known(plain), known(both)
        assert len(two) == 2 * len(one) > 0
        assert [c for c in two if ", gain " not in c.name] == one
        for candidate in two:
            if candidate.name.endswith(", gain 1.07"):
                assert {step.gain for step in candidate.schedule.steps} == {1.07}
    assert costs(both).passes["baselines"] > costs(plain).passes["baselines"]


def test_a_gain_that_a_preset_has_is_one_more_factor():
    known = [Candidate("x", with_gains(PLAIN, *[1.1] * 4), "baseline")]
    (found,) = gained(known, [1.05])
    assert {step.gain for step in found.schedule.steps} == {1.05 * 1.1}
    assert gained(known, [1.0]) == known
