"""CogVideoX's betas, whose signal-to-noise ratio is divided by a number."""

import diffusers
import pytest
import torch

from stepsampler.grids import from_sigmas
from stepsampler.noise import read_noise
from stepsampler.sample import execute
from stepsampler.scheduler import StepScheduler
from stepsampler.solvers import tableau

SETTINGS = [
    {"snr_shift_scale": 3.0, "rescale_betas_zero_snr": True},
    {"snr_shift_scale": 1.0, "rescale_betas_zero_snr": True},
    {"snr_shift_scale": 2.0, "rescale_betas_zero_snr": False},
]


def stock(**options):
    return diffusers.CogVideoXDDIMScheduler(
        **options, prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing"
    )


@pytest.mark.parametrize("options", SETTINGS)
def test_levels_are_those_of_cogvideox_up_to_its_infinite_one(options):
    theirs = stock(**options)
    noise, kind = read_noise(theirs.config)
    ours = torch.tensor(noise.alphas_cumprod)
    scheduler = StepScheduler.from_config(theirs.config)
    assert kind == "v_prediction"
    torch.testing.assert_close(ours[:-1], theirs.alphas_cumprod[:-1].float(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(
        scheduler.alphas_cumprod[:-1], theirs.alphas_cumprod[:-1].float(), rtol=1e-3, atol=1e-7
    )
    assert noise.ends_in_noise == options["rescale_betas_zero_snr"]


@pytest.mark.parametrize("options", SETTINGS)
def test_its_steps_are_those_of_order_one(options):
    theirs = stock(**options)
    noise, kind = read_noise(theirs.config)
    theirs.set_timesteps(5)
    sigmas = [noise.sigma(float(t)) for t in theirs.timesteps]
    schedule = from_sigmas(sigmas, 0.0, [1.0] * 5, 1, "ddim", noise.spec("some", kind))
    start = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(0))
    output = lambda x, t: torch.tanh(x + t / 1000)  # noqa: E731

    expected = start
    for t in theirs.timesteps:
        expected = theirs.step(output(expected, t), t, expected).prev_sample
    ours = StepScheduler.from_config(theirs.config, schedule=schedule)
    found = start * ours.init_noise_sigma
    for t in ours.timesteps:
        found = ours.step(output(found, t), t, found).prev_sample
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)

    def denoise(x, step):
        c_in, c_skip, c_out = noise.scales(step.sigma, kind)
        return c_skip * x + c_out * output(c_in * x, noise.network_time(step.sigma))

    *_, last = execute(denoise, start * sigmas[0], tableau(schedule))
    torch.testing.assert_close(last, expected, rtol=1e-3, atol=2e-3)
