import contextlib

import diffusers
import pytest
import torch

from stepsampler import Schedule, Step
from stepsampler.scheduler import StepScheduler


def schedulers_of_diffusers():
    """As they are by default; a few cannot be made so."""
    names = [n for n in dir(diffusers) if n.endswith("Scheduler") and not n.startswith("Flax")]
    for name in sorted(names):
        with contextlib.suppress(TypeError, ImportError):
            yield name, getattr(diffusers, name)()


def noisy(scheduler, timestep):
    """Of data and of noise, how much a sample has at a timestep."""
    add = getattr(scheduler, "scale_noise", None)
    one, none = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    pairs = ((one, none), (none, one))
    made = [add(x, timestep, z) if add else scheduler.add_noise(x, z, timestep) for x, z in pairs]
    return [part.item() for part in made]


def test_every_stock_scheduler_is_refused_or_has_our_levels():
    """As they add noise themselves, with their own defaults; some at unit variance, some not."""
    taken = []
    for name, scheduler in schedulers_of_diffusers():
        try:
            ours = StepScheduler.from_config(scheduler.config)
        except ValueError:
            continue
        taken.append(name)
        if name in ("DDIMInverseScheduler", "RePaintScheduler", "KDPM2DiscreteScheduler"):
            continue  # add no noise, or at timesteps between those that the network is told
        scheduler.set_timesteps(10)
        if ours.edm:
            first = [Step(float(sigma)) for sigma in scheduler.sigmas[:-1]]
            ours = StepScheduler.from_config(scheduler.config, schedule=Schedule(tuple(first)))
        ours.set_timesteps(10)
        timestep = scheduler.timesteps[3:4]
        data, noise = noisy(scheduler, timestep)
        own_data, own_noise = noisy(ours, timestep)
        assert noise / data == pytest.approx(own_noise / own_data, rel=1e-3), name
    assert {"DDIMScheduler", "UnCLIPScheduler", "FlowMatchEulerDiscreteScheduler"} <= {*taken}
    assert {"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"} <= {*taken}
    assert not {"CMStochasticIterativeScheduler", "CosineDPMSolverMultistepScheduler"} & {*taken}
    assert {"CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"} <= {*taken}
    assert not {"HeliosScheduler", "MiniMaxH3Scheduler"} & {*taken}
