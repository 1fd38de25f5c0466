"""The axis of golden noise: off, raw and learned, and what raw takes of the budget."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from stepsampler.noise import NoiseSchedule
from stepsampler.schedule import LearnedNoise
from stepsearch.config.space import SpaceConfig
from stepsearch.space.box import SearchSpace

SD = NoiseSchedule.scaled_linear()
SPEC = SD.spec("stable-diffusion", "epsilon")
DIGEST = "0123456789abcdef"
ALL = ("off", "raw", DIGEST)


def box(passes=10, steps=4, **options):
    config = SpaceConfig(num_steps=steps, passes=passes, golden_noise=ALL, **options)
    return SearchSpace(config, SD, SPEC, "linspace")


def test_every_point_is_within_the_budget_and_comes_back():
    space = box(guidance="per-step")
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        point = {k: float(rng.uniform(d.low, d.high)) for k, d in space.distributions.items()}
        plan = space.schedule(point)
        assert plan.passes <= 10
        kind = "raw" if plan.raw_noise else plan.npnet or "off"
        seen.add(kind)
        back, same = space.params(plan)
        assert same, plan
        assert ALL[round(back["golden_noise"])] == kind
        if plan.raw_noise:
            assert plan.raw_noise.sigma == plan.sigmas[1]
    assert seen == set(ALL)


def test_raw_is_guided_where_the_passes_are_left_for_it():
    point = {"golden_noise": 1.0, "guidance_scale": 3.0, "guidance_slope": 0.0, "final_sigma": 0.1}
    rich, poor = (box(passes).schedule(point) for passes in (12, 6))
    assert (rich.raw_noise.guidance_scale, rich.passes) == (3.0, 12)
    assert (poor.raw_noise.guidance_scale, poor.passes) == (1.0, 6)
    learned = box(8).schedule(point | {"golden_noise": 2.0})
    assert (learned.golden_noise, learned.passes) == (LearnedNoise(DIGEST), 8)
    assert learned.passes == replace(learned, golden_noise=None).passes


@pytest.mark.parametrize(
    ("names", "passes", "reason"),
    [
        ((), 10, "different names"),
        (("raw", "raw"), 10, "different names"),
        (("off", "learned"), 10, "SHA-256 of an NPNet's file, got 'learned'"),
        (("off", "raw"), 5, "raw takes 2 of the passes, so that passes must be at least 6, got 5"),
    ],
)
def test_what_the_axis_refuses(names, passes, reason):
    with pytest.raises(ValidationError, match=reason):
        SpaceConfig(num_steps=4, passes=passes, golden_noise=names)


def test_one_choice_is_no_axis():
    config = SpaceConfig(num_steps=4, passes=8, golden_noise=(DIGEST,))
    space = SearchSpace(config, SD, SPEC, "linspace")
    assert "golden_noise" not in space.distributions
    assert space.schedule({"final_sigma": 0.1, "guidance_scale": 2.0}).npnet == DIGEST
