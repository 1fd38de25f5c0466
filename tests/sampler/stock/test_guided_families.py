"""The images of a guided stock pipeline, text encoders and all, are those of our own loop."""

from dataclasses import replace

import pytest
import torch
from families import our_images, prepare, stock_images, take
from pipelines import PROMPTS

from stepsampler.grids import from_sigmas
from stepsampler.guided import guided

NEWER = (
    "z-image",
    "chroma",
    "qwen-image",
    "flux2-dev",
    "flux2-klein",
    "lumina2",
    "krea2",
    "hunyuan-image-distilled",
    "cogview4",
    "aura-flow",
    "ltx",
)


@pytest.mark.parametrize("name", NEWER)
def test_a_guided_pipeline_makes_the_images_of_our_own_loop(name):
    pipeline = prepare(name)
    model = take(name, pipeline)
    scales = [4.0, 1.0, 2.5]
    schedule = from_sigmas([1.0, 0.8, 0.5], 0.0, scales, 2, "unipc-bh2", model.spec)
    schedule = replace(schedule, guidance=model.guidance)
    ours = our_images(model, schedule, PROMPTS).float()
    with guided(pipeline, schedule):
        theirs = stock_images(name, pipeline, 3, 6.0)
    torch.testing.assert_close(ours, theirs, atol=1.0, rtol=0)
