"""Reused guidance on stock pipelines, with a doubled batch or a call for each half."""

from dataclasses import replace

import diffusers
import pipelines
import pytest
import torch
from families import our_images, prepare, stock_images, take
from pipelines import PROMPTS

from stepsampler import UserError
from stepsampler.grids import from_sigmas, make_schedule
from stepsampler.guided import guided
from stepsampler.models import from_pipeline
from stepsampler.noise import NoiseSchedule


def reusing(schedule, *places):
    steps = [replace(s, guidance_reuse=i in places) for i, s in enumerate(schedule.steps)]
    return replace(schedule, steps=tuple(steps))


@pytest.mark.parametrize("name", ["sdxl", "sd3", "z-image", "chroma", "qwen-image", "lumina2"])
def test_a_guided_pipeline_reuses_as_our_own_loop_does(name):
    pipeline = prepare(name)
    model = take(name, pipeline)
    sigmas = [10.0, 5.0, 2.0, 1.0] if name == "sdxl" else [1.0, 0.8, 0.5, 0.3]
    scales = [4.0, 3.0, 1.0, 2.5]
    full = from_sigmas(sigmas, 0.0, scales, 2, "unipc-bh2", model.spec)
    schedule = reusing(full, 1, 3)
    assert (full.passes, schedule.passes) == (7, 5)
    ours = our_images(model, schedule, PROMPTS).float()
    rows = []
    model.net.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(args[0] if args else kwargs["hidden_states"])),
        with_kwargs=True,
    )
    with guided(pipeline, schedule):
        theirs = stock_images(name, pipeline, 4, 6.0)
    torch.testing.assert_close(ours, theirs, atol=1.0, rtol=0)
    assert sum(rows) == 5 * len(PROMPTS)  # no pass is paid that is not counted


def test_a_call_that_begins_with_a_reusing_step_is_refused():
    pipe = pipelines.stable_diffusion("v_prediction")
    SD = NoiseSchedule.scaled_linear()
    plain = make_schedule("karras", 5, SD, solver="ddim", order=1, guidance_scale=3.0)
    schedule = reusing(replace(plain, model=from_pipeline(pipe).spec), 1, 2, 3)
    later = diffusers.StableDiffusionImg2ImgPipeline(
        **pipe.components, requires_safety_checker=False
    )
    later.set_progress_bar_config(disable=True)
    options = {"image": torch.rand(1, 3, 32, 32), "num_inference_steps": 5}
    with guided(later, schedule):
        later("a bag", strength=1.0, output_type="latent", **options)
        with pytest.raises(UserError, match="step 2: it reuses the guidance of a step before it"):
            later("a bag", strength=0.6, output_type="latent", **options)
