"""The same schedules in k-diffusion and in diffusers' pipelines, for the table of the docs."""

import importlib.metadata
import importlib.util
import json
import sys
import types
from math import sqrt

import pytest
import torch
from cases import (
    ALL,
    EXPORTED,
    PROMPTS,
    SHAPE,
    TINY,
    condition,
    distance,
    measured,
    ours,
    tolerance,
)

from stepsampler.errors import UserError
from stepsampler.formats import common, export
from stepsampler.generate import noise_source, seeded_noise
from stepsampler.guided import guided
from stepsampler.scheduler import StepScheduler

PROMPT = next(iter(PROMPTS))


def k_diffusion(name):
    """A module of it, without what its package imports for training."""
    if "k_diffusion" not in sys.modules:
        package = sys.modules["k_diffusion"] = types.ModuleType("k_diffusion")
        found = importlib.metadata.distribution("k-diffusion").locate_file("k_diffusion")
        package.__path__ = [str(found)]
    return importlib.import_module(f"k_diffusion.{name}")


K_DIFFUSION = {
    name: nodes
    for name, text in EXPORTED.items()
    if (nodes := json.loads(text))["KSamplerSelect"]["sampler_name"] != "ipndm"
}


@pytest.mark.parametrize("name", K_DIFFUSION)
@torch.inference_mode()
def test_k_diffusion_makes_our_latents(name):
    """Its samplers and its denoiser of discrete models; guidance is its user's."""
    schedule, nodes = ALL[name], K_DIFFUSION[name]
    sampling, external = k_diffusion("sampling"), k_diffusion("external")
    contexts = [condition(*side)["encoder_hidden_states"] for side in ((PROMPT,), ("", True))]

    def unet(x, t, context):
        return TINY.net(x, t, encoder_hidden_states=context, return_dict=False)[0]

    alphas = torch.tensor(TINY.noise.alphas_cumprod, dtype=torch.float64)
    denoiser = external.DiscreteEpsDDPMDenoiser(unet, alphas.float(), quantize=False)
    sigmas = torch.FloatTensor([float(s) for s in nodes["ManualSigmas"]["sigmas"].split(",")])

    def model(x, sigma):
        at = int((sigmas - sigma).abs().argmin())
        w = schedule.steps[min(at, schedule.num_steps - 1)].guidance_scale
        cond, uncond = (denoiser(x, sigma, context=context) for context in contexts)
        return uncond + w * (cond - uncond)

    run = getattr(sampling, f"sample_{nodes['KSamplerSelect']['sampler_name']}")
    start = seeded_noise([PROMPTS[PROMPT]], SHAPE) * sigmas[0]
    value = distance(run(model, start, sigmas, disable=True), ours(schedule, PROMPT))
    assert measured("k-diffusion", name, value) < tolerance(schedule, PROMPT)


def text_for(scheduler, schedule):
    try:
        return export(schedule, f"diffusers:{scheduler}").text
    except UserError:
        return None


STOCK = {
    (name, scheduler): json.loads(text)
    for name, schedule in ALL.items()
    for scheduler in ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler")
    if (text := text_for(scheduler, schedule))
}


@pytest.fixture
def pipeline():
    before = TINY.pipeline.scheduler
    TINY.pipeline.set_progress_bar_config(disable=True)
    yield TINY.pipeline
    TINY.pipeline.scheduler = before


def pipeline_latents(pipeline, **options):
    draw = noise_source([PROMPTS[PROMPT]], SHAPE)
    size = {"height": TINY.size, "width": TINY.size}
    return pipeline(PROMPT, latents=draw(), output_type="latent", **size, **options).images


@pytest.mark.parametrize(("name", "scheduler"), STOCK)
def test_stock_pipelines_make_our_latents(pipeline, name, scheduler):
    """DPM-Solver++ starts at unit variance, and knows whole timesteps only."""
    import diffusers

    schedule, data = ALL[name], STOCK[name, scheduler]
    stock = getattr(diffusers, scheduler)
    pipeline.scheduler = stock.from_config(pipeline.scheduler.config, **data["config"])
    latents = pipeline_latents(pipeline, guidance_scale=data["guidance_scale"], **data["call"])
    first = schedule.steps[0].sigma
    start = sqrt(1 + first**2) / first if scheduler.startswith("DPM") else 1.0
    value = distance(latents, ours(schedule, PROMPT, start=start))
    assert measured("stock", name, value) < max(1e-3, tolerance(schedule, PROMPT))


def runs_in_a_pipeline(schedule):
    try:
        StepScheduler.from_config(TINY.pipeline.scheduler.config, schedule=schedule)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("name", [n for n, schedule in ALL.items() if runs_in_a_pipeline(schedule)])
def test_our_scheduler_on_a_stock_pipeline_makes_our_latents(pipeline, name):
    schedule = ALL[name]
    pipeline.scheduler = StepScheduler.from_config(pipeline.scheduler.config, schedule=schedule)
    with guided(pipeline, schedule):
        latents = pipeline_latents(pipeline, guidance_scale=common.highest_guidance(schedule))
    value = distance(latents, ours(schedule, PROMPT))
    assert measured("StepScheduler", name, value) < tolerance(schedule, PROMPT)
