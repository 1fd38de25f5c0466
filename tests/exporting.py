"""Schedules to export, a denoiser to compare with, and what our own sampler makes of it."""

import torch

from stepsampler.formats import Target
from stepsampler.grids import from_sigmas, make_schedule
from stepsampler.noise import FlowSchedule, NoiseSchedule
from stepsampler.presets import MODELS
from stepsampler.sample import sample

SD = NoiseSchedule.scaled_linear()
SPEC = MODELS["sd15"]
FLUX = MODELS["flux"]
TARGET = Target(SD, SPEC)
FLOW_TARGET = Target(FlowSchedule(), FLUX)
START = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def baseline(grid="linspace", n=8, solver="dpmpp-midpoint", order=2, w=7.5):
    return make_schedule(grid, n, SD, solver=solver, order=order, guidance_scale=w, model=SPEC)


def flow(sigmas=(1.0, 0.75, 0.5, 0.2), final=0.0, order=1, solver="ddim", w=3.5):
    return from_sigmas(sigmas, final, [w] * len(sigmas), order, solver, FLUX)


def toy_x0(x, sigma):
    """A denoiser that is neither linear in x nor constant in sigma; float64."""
    return torch.tanh(x / (1 + sigma)) + 0.1 * torch.sin(3 * x / (1 + sigma**2))


def ours(schedule, start):
    """From the state `start` at the first sigma."""
    noise = start / schedule.steps[0].sigma
    return sample(lambda x, step: toy_x0(x, step.sigma), noise, schedule)
