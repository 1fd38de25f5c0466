"""Every family against its stock pipeline, on tiny random ones, in float32 on the CPU.

Images are equal to one step of 8 bits where our schedule is the stock scheduler's grid.
"""

import pipelines
import pytest
import torch
from pipelines import CALL, FAMILIES, PROMPTS

from stepsampler import FreeU, ModelSpec, Schedule, Step, UserError
from stepsampler.generate import generate, seeded_noise
from stepsampler.grids import from_sigmas
from stepsampler.models import families, from_pipeline

SEEDS = [0, 1, 2]
CLASSES = ["2", "tench", "999"]
FLOWS = ("sd3", "flux-dev", "flux-schnell", "sana")
UNCONDITIONAL = ("ddpm", "ddim")


def prepare(name, n=4):
    """A pipeline whose scheduler takes plain Euler (DDIM) steps from the noisiest level."""
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    pipeline = FAMILIES[name]()
    config = pipeline.scheduler.config
    if name == "sana":  # its own scheduler truncates timesteps to integers
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=config.flow_shift)
    elif name not in FLOWS:
        options = {"timestep_spacing": "trailing", "clip_sample": False}
        pipeline.scheduler = DDIMScheduler.from_config(config, **options)
    return pipeline


def stock_images(name, pipeline, prompts, n, guidance_scale, **options):
    """The stock pipeline's images, uint8, with the noise that we give the seeds."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    options |= CALL.get(name, {})
    if name in UNCONDITIONAL:
        options["batch_size"] = len(SEEDS)
    elif name == "dit":
        prompts = [2, 0, 999]
        options["guidance_scale"] = guidance_scale
    elif name == "flux-schnell":
        options |= {"true_cfg_scale": guidance_scale, "negative_prompt": [""] * len(SEEDS)}
    else:
        options["guidance_scale"] = guidance_scale
    if name in ("stable-diffusion", "sdxl"):  # at their last timestep there is still some signal
        pipeline.scheduler.set_timesteps(n)
        left = pipeline.scheduler.alphas_cumprod[int(pipeline.scheduler.timesteps[0])]
        options["latents"] = seeded_noise(SEEDS, (4, 16, 16)) * (1 - left).sqrt()
    if name not in UNCONDITIONAL:
        options["class_labels" if name == "dit" else "prompt"] = prompts
    call = pipeline(generator=generators, num_inference_steps=n, output_type="pt", **options)
    return (call.images * 255).round()


def stock_schedule(model, n, guidance_scale):
    """The scheduler's own grid, after it has been set to n steps."""
    scheduler = model.pipeline.scheduler
    guidance = [guidance_scale] * n
    if model.prediction_type == "flow_prediction":
        sigmas = scheduler.sigmas.tolist()
    else:
        sigmas = [model.noise.sigma(int(t)) for t in scheduler.timesteps]
        last = float(scheduler.final_alpha_cumprod)
        sigmas.append(((1 - last) / last) ** 0.5)
    schedule = from_sigmas(sigmas[:-1], sigmas[-1], guidance, 1, "ddim", model.spec)
    return Schedule(**{**vars(schedule), "guidance": model.guidance})


def our_images(model, schedule, prompts, **options):
    batches = generate(model, schedule, prompts, SEEDS, **options)
    return torch.cat([batch.images for batch in batches])


def prompts_of(name):
    return [""] * 3 if name in UNCONDITIONAL else CLASSES if name == "dit" else PROMPTS


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_our_images_are_those_of_the_stock_pipeline(name, guidance_scale):
    if name in UNCONDITIONAL and guidance_scale != 1:
        pytest.skip("no guidance without a condition")
    n = 4
    pipeline = prepare(name)
    theirs = stock_images(name, pipeline, PROMPTS, n, guidance_scale)
    size = None if name in UNCONDITIONAL else pipelines.SIZE
    model = from_pipeline(pipeline, size)
    ours = our_images(model, stock_schedule(model, n, guidance_scale), prompts_of(name))
    assert theirs.std() > 10, "an image, not a grey square"
    torch.testing.assert_close(ours.float(), theirs, atol=1.0, rtol=0)
