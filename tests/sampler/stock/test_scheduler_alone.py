"""A scheduler that holds no schedule."""

import diffusers
import numpy as np
import pytest
import torch
from schedulers import stock, without_schedule

from stepsampler.scheduler import StepScheduler


def test_a_count_alone_is_ddim_on_the_trailing_grid():
    theirs = stock(timestep_spacing="trailing")
    ours = without_schedule()
    theirs.set_timesteps(5)
    ours.set_timesteps(5)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    x = y = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(0))
    for t in theirs.timesteps:
        x = theirs.step(torch.tanh(x), t, x).prev_sample
        y = ours.step(torch.tanh(y), t, y).prev_sample
    torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"shift": 3.0}, {"use_dynamic_shifting": True}])
def test_a_flow_without_a_schedule_has_the_stock_grid(options):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**options)
    ours = StepScheduler.from_config(theirs.config)
    even = np.linspace(1, 1 / 4, 4)
    theirs.set_timesteps(sigmas=even, mu=0.8)
    ours.set_timesteps(sigmas=even, mu=0.8)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps)
    ours.set_timesteps(4, mu=0.8)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps)
