"""Callbacks of a pipeline inside `guided` that turn its guidance off in the middle of a call."""

import pipelines
import pytest

from stepsampler import Schedule, Step, UserError
from stepsampler.guided import guided


def call(pipeline, scales, cut):
    def off(pipe, index, _, kwargs):
        if index == 0:
            pipe._guidance_scale = 0.0
            kwargs = {k: v.chunk(2)[-1] if cut else v for k, v in kwargs.items() if "embeds" in k}
        return kwargs

    pipeline.set_progress_bar_config(disable=True)
    plan = Schedule(tuple(Step(s, w) for s, w in zip((8.0, 4.0, 1.0), scales, strict=True)))
    with guided(pipeline, plan):
        return pipeline(
            "a fox",
            num_inference_steps=3,
            callback_on_step_end=off,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        )


@pytest.mark.parametrize("name", ["stable-diffusion", "sdxl"])
def test_one_that_leaves_both_halves_of_the_embeddings_is_named(name):
    with pytest.raises(
        UserError, match="step 1: guidance is off, but the embeddings of texts have"
    ):
        call(pipelines.FAMILIES[name](), (2.0, 1.0, 1.0), cut=False)


def test_one_that_cuts_them_runs_unguided_steps():
    assert call(pipelines.stable_diffusion(), (2.0, 1.0, 1.0), cut=True).images
    with pytest.raises(UserError, match="step 1: the pipeline calls its network without an uncond"):
        call(pipelines.stable_diffusion(), (2.0, 2.0, 1.0), cut=True)
