"""Workflows whose nodes ask for a scheduler by name, with the sigmas that ComfyUI 0.30 runs."""

import json

import pytest
from exporting import TARGET

from stepsampler.formats import read

SIDES = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0]}


def with_ksampler(steps):
    inputs = {
        **SIDES,
        "latent_image": ["4", 0],
        "seed": 0,
        "steps": steps,
        "cfg": 4.0,
        "sampler_name": "euler",
        "scheduler": "ddim_uniform",
        "denoise": 1.0,
    }
    return {"5": {"class_type": "KSampler", "inputs": inputs}}


def with_basic_scheduler(steps):
    scheduler = {"model": ["1", 0], "scheduler": "ddim_uniform", "steps": steps, "denoise": 1.0}
    custom = {
        "noise": ["6", 0],
        "latent_image": ["4", 0],
        "guider": ["7", 0],
        "sampler": ["8", 0],
        "sigmas": ["9", 0],
    }
    return {
        "6": {"class_type": "RandomNoise", "inputs": {"noise_seed": 0}},
        "7": {"class_type": "CFGGuider", "inputs": {**SIDES, "cfg": 4.0}},
        "8": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "9": {"class_type": "BasicScheduler", "inputs": scheduler},
        "5": {"class_type": "SamplerCustomAdvanced", "inputs": custom},
    }


@pytest.mark.parametrize(
    ("nodes", "asked", "run", "first"),
    [
        (with_ksampler, 5, 5, 5.13443),
        (with_ksampler, 6, 7, 14.43857),
        (with_ksampler, 7, 8, 14.26511),
        (with_basic_scheduler, 5, 5, 5.13443),
        (with_basic_scheduler, 6, 6, 5.90645),
        (with_basic_scheduler, 7, 7, 6.57065),
    ],
)
def test_ddim_uniform_has_one_step_more_where_they_do_not_divide_the_timesteps(
    nodes, asked, run, first
):
    """KSampler runs them all, BasicScheduler leaves out the first."""
    around = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
        "4": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": 512, "height": 512, "batch_size": 1},
        },
    }
    schedule = read(json.dumps(around | nodes(asked)), "comfyui", TARGET)
    assert schedule.num_steps == run
    assert schedule.sigmas[0] == pytest.approx(first, rel=1e-4)
