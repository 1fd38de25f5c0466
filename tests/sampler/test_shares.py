"""A rule's weights as shares."""

from dataclasses import replace

import pytest
import torch
import toy

from stepsampler.grids import make_schedule
from stepsampler.noise import FlowSchedule, NoiseSchedule
from stepsampler.sample import trajectory
from stepsampler.schedule import SOLVERS
from stepsampler.solvers import shares

SD = NoiseSchedule.scaled_linear()
FLOW = FlowSchedule()
NOISE = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("solver", [name for name in SOLVERS if name not in ("heun", "dpm-v3")])
def test_a_rule_as_weights_makes_the_states_of_the_rule(solver, flow):
    noise, model = (FLOW, FLOW.spec("flux")) if flow else (SD, None)
    order = SOLVERS[solver]
    plan = make_schedule("linspace", 6, noise, solver=solver, order=order, model=model)
    plan = replace(plan, steps=tuple(replace(s, corrector=False) for s in plan.steps))
    own = [
        replace(step, weights=tuple(shares(plan, i)), order=len(shares(plan, i)))
        for i, step in enumerate(plan.steps)
    ]
    weighed = replace(plan, steps=tuple(own))
    found = [list(trajectory(toy.gaussian_denoiser, NOISE, p)) for p in (weighed, plan)]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert shares(weighed, 2) == list(weighed.steps[2].weights)


def test_shares_have_no_gain():
    plan = make_schedule("karras", 4, SD, order=2)
    gained = replace(plan, steps=tuple(replace(s, gain=1.2) for s in plan.steps))
    assert [shares(gained, i) for i in range(4)] == [shares(plan, i) for i in range(4)]
    assert sum(shares(plan, 1)) == pytest.approx(1)
