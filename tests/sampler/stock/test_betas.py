"""Other betas and predictions of variance-preserving models, against diffusers' own schedulers."""

import diffusers
import numpy as np
import pipelines
import pytest
from schedulers import SD

from stepsampler import Schedule, Step
from stepsampler.generate import generate, seeded_noise
from stepsampler.grids import from_sigmas
from stepsampler.models import from_pipeline
from stepsampler.noise import read_noise
from stepsampler.scheduler import StepScheduler

PROMPTS = ["a photo of a sneaker", "bag"]
SEEDS = (3, 4)


def our_images(pipe, schedule):
    (batch,) = generate(from_pipeline(pipe), schedule, PROMPTS, SEEDS)
    return batch.images.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    "betas",
    [
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": np.linspace(0.001, 0.02, 1000).tolist()},
        {"beta_schedule": "sigmoid"},
        {"beta_schedule": "linear"},
    ],
    ids=lambda betas: next(iter(betas)) + " " + str(betas.get("beta_schedule", "")),
)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_all_betas_of_diffusers_are_read(betas, prediction_type):
    cls = diffusers.DDPMScheduler if betas.get("beta_schedule") == "sigmoid" else None
    cls = cls or diffusers.DDIMScheduler
    options = {"clip_sample": False, "timestep_spacing": "trailing"}
    config = cls(**betas, **options, prediction_type=prediction_type).config
    if betas.get("beta_schedule") == "sigmoid":
        assert read_noise(config)[0].count == 1000
        return
    pipe = pipelines.stable_diffusion()
    pipe.scheduler = cls(**betas, **options, prediction_type=prediction_type)
    noise = from_pipeline(pipe).noise
    pipe.scheduler.set_timesteps(5)
    sigmas = [noise.sigma(float(t)) for t in pipe.scheduler.timesteps]
    expected = stock_images(pipe, 5)
    made = from_sigmas(sigmas, 0.0, [3.0] * 5, 1)
    assert np.abs(our_images(pipe, made) - expected).max() <= 1.0
    pipe.scheduler = StepScheduler.from_config(config, schedule=made)
    assert np.abs(stock_images(pipe, 5) - expected).max() <= 1.0


def stock_images(pipe, steps, w=3.0):
    latents = seeded_noise(SEEDS, from_pipeline(pipe).shape)
    made = pipe(
        PROMPTS, num_inference_steps=steps, latents=latents, guidance_scale=w, output_type="np"
    )
    return made.images * 255


def test_one_step_of_a_network_that_predicts_x0():
    """SDXL-Lightning's: Euler, trailing, prediction_type="sample"."""
    pipe = pipelines.FAMILIES["sdxl"]()
    pipe.scheduler = diffusers.EulerDiscreteScheduler(
        **pipelines.BETAS, prediction_type="sample", timestep_spacing="trailing"
    )
    expected = stock_images(pipe, 1, 1.0)
    made = Schedule((Step(SD.sigma_max),), solver="ddim")
    assert np.abs(our_images(pipe, made) - expected).max() <= 1.0
