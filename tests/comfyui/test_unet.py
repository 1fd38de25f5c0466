"""A U-Net of ComfyUI's own with weights of diffusers', as from a checkpoint, and Free-U in it."""

from dataclasses import replace

import comfy.latent_formats
import comfy.ops
import engine
import ldm
import pytest
import torch
from cases import ALL, SCALE, TINY, WITH_FREE_U, distance, measured
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from diffusers import UNet2DConditionModel
from loaded import ALONE, BOTH, WITH, save

from stepsampler.denoiser import GuidedDenoiser
from stepsampler.generate import seeded_noise
from stepsampler.models.base import LatentModel
from stepsampler.sample import sample

SHAPE = (4, 16, 16)


@pytest.fixture(scope="module")
def theirs():
    """Random, with ComfyUI's 32 groups of channels."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=24,
    ).eval()


@pytest.fixture(scope="module")
def network(theirs):
    net = UNetModel(
        image_size=16,
        in_channels=4,
        out_channels=4,
        model_channels=32,
        num_res_blocks=1,
        channel_mult=(1, 2),
        num_heads=4,
        use_spatial_transformer=True,
        transformer_depth=[0, 1],
        transformer_depth_output=[0, 0, 1, 1],
        transformer_depth_middle=1,
        context_dim=24,
        legacy=False,
        operations=comfy.ops.disable_weight_init,
    ).eval()
    weights = {ldm._unet(key): value for key, value in theirs.state_dict().items()}
    net.load_state_dict(weights)
    return net


def sides():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 7, 24, generator=generator) for _ in range(2)]


def comfy_latents(node, network, schedule, place):
    model = engine.patcher(None)
    model.model.diffusion_model = network
    positive, negative = (engine.conditioning(side) for side in sides())
    parts = node.StepSchedule().make(model, positive, save(place, schedule), negative)
    sigmas, sampler, guider = parts
    return engine.sample(guider, sampler, sigmas, 2, SHAPE) * SCALE


@torch.no_grad()
def our_latents(theirs, schedule):
    cond, uncond = sides()

    def call(x, time, condition):
        at = torch.full((len(x),), time)
        return theirs(x, at, encoder_hidden_states=condition["context"], return_dict=False)[0]

    free_u = type("Stub", (), {"net": theirs, "uncompiled": TINY.uncompiled})()
    denoise = GuidedDenoiser(
        call,
        TINY.noise,
        "epsilon",
        {"context": cond},
        {"context": uncond},
        free_u=lambda values: LatentModel._free_u(free_u, values),
    )
    return sample(denoise, seeded_noise([2], SHAPE), schedule)


@BOTH
@pytest.mark.parametrize("name", ["seed-sd: seed-sd-5", "seed-sd: seed-sd-5-free"])
def test_a_unet_of_comfyui(node, theirs, network, place, name):
    schedule = ALL[name]
    latents, mine = comfy_latents(node, network, schedule, place), our_latents(theirs, schedule)
    assert distance(latents, mine) < 1e-4 * max(1, float(mine.std()))


@pytest.mark.parametrize("name", WITH_FREE_U)
def test_free_u_of_all_presets(theirs, network, place, name):
    schedule = ALL[name]
    latents, mine = comfy_latents(WITH, network, schedule, place), our_latents(theirs, schedule)
    value = distance(latents, mine) / max(1, float(mine.std()))
    assert measured("node", name, value) < 1e-4
    plain = replace(schedule, steps=tuple(replace(step, free_u=None) for step in schedule.steps))
    assert distance(our_latents(theirs, plain), mine) > 1e-3


def test_free_u_alone_is_that_of_diffusers_whatever_its_numbers(theirs, network, place):
    schedule = ALL["seed-sd: seed-sd-5-free"]
    changed = [
        replace(step, free_u=replace(step.free_u, b2=0.5, s1=0.3)) if step.free_u else step
        for step in schedule.steps
    ]
    schedule = replace(schedule, steps=tuple(changed))
    latents, mine = comfy_latents(ALONE, network, schedule, place), our_latents(theirs, schedule)
    assert distance(latents, mine) < 1e-4 * max(1, float(mine.std()))
