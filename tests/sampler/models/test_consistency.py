"""Latent consistency models: U-Nets that take the guidance scale as an embedding."""

from dataclasses import replace

import diffusers
import pytest
import torch
from families import SEEDS, our_images, stock_images, take
from pipelines import FAMILIES, PROMPTS, SIZE

from stepsampler import Schedule, ScheduleError, Step, UserError
from stepsampler.generate import noise_source
from stepsampler.grids import from_sigmas
from stepsampler.guided import guided
from stepsampler.models import from_pipeline
from stepsampler.presets import preset
from stepsearch.compare.contenders import OnSchedule, OnStock


def plain(name="stable-diffusion"):
    """A stock pipeline of another class around a U-Net of this kind."""
    pipeline = FAMILIES[name]()
    config = {k: v for k, v in pipeline.unet.config.items() if k[0] != "_"}
    torch.manual_seed(0)
    pipeline.unet = diffusers.UNet2DConditionModel(**config | {"time_cond_proj_dim": 16})
    pipeline.unet.time_embedding.cond_proj.weight.data *= 50
    return pipeline


@pytest.mark.parametrize("n", [1, 4])
def test_the_preset_makes_the_images_of_the_stock_pipeline(n):
    plan = preset(f"lcm-sd-{n}").schedule
    theirs = stock_images("lcm", FAMILIES["lcm"](), n, 8.0)
    ours = our_images(take("lcm"), plan, PROMPTS).float()
    assert theirs.std() > 10
    torch.testing.assert_close(ours, theirs, atol=1.0, rtol=0)


def test_the_scale_is_told_as_the_embedding_of_w_minus_1():
    model, seen = take("lcm"), []
    model.net.register_forward_pre_hook(
        lambda _net, _args, options: seen.append(options["timestep_cond"]), with_kwargs=True
    )
    plan = from_sigmas([14.0, 3.0], 0.0, [1.0, 8.5], 1, "ddim", model.spec)
    images = our_images(model, replace(plan, guidance="distilled"), PROMPTS)
    told = torch.tensor([0.0, 7.5])
    expected = model.pipeline.get_guidance_scale_embedding(told, embedding_dim=16)
    assert [len(rows) for rows in seen] == [3, 3], "one pass a step, whatever the scale"
    torch.testing.assert_close(torch.stack([rows[0] for rows in seen]), expected)
    other = replace(plan.steps[1], guidance_scale=2.0)
    changed = replace(plan, steps=(plan.steps[0], other), guidance="distilled")
    assert (our_images(model, changed, PROMPTS).int() - images.int()).abs().max() > 3


@pytest.mark.parametrize("name", ["stable-diffusion", "sdxl"])
def test_our_solvers_and_a_scale_of_each_step_run_on_it_as_on_a_guided_pipeline(name):
    pipeline = plain(name)
    model = from_pipeline(pipeline, SIZE)
    plan = from_sigmas([14.0, 6.0, 2.0, 0.5], 0.0, [8.0, 1.0, 3.0, 5.0], 2, "unipc-bh2", model.spec)
    plan = replace(plan, guidance=model.guidance)
    ours = our_images(model, plan, PROMPTS).float()
    noise = noise_source(SEEDS, model.shape)()
    options = {"prompt": PROMPTS, "height": SIZE, "width": SIZE, "output_type": "pt"}
    with guided(pipeline, plan):
        scale = pipeline.scheduler.init_noise_sigma  # `latents` are at unit variance
        latents = noise * 14.0 / (1 + 14.0**2) ** 0.5 / scale
        theirs = pipeline(num_inference_steps=4, latents=latents, **options).images
    torch.testing.assert_close(ours, (theirs * 255).round(), atol=1.0, rtol=0)


def test_its_own_pipeline_says_which_one_runs_a_schedule():
    plan = preset("lcm-sd-4").schedule
    with (
        pytest.raises(UserError, match=r"it wants x0 of its scheduler too, which a StableDiff"),
        guided(FAMILIES["lcm"](), plan),
    ):
        pass


def test_the_stock_pipeline_is_a_contender_beside_schedules():
    model = take("lcm")
    stock = OnStock(model, "d", 4, guidance_scale=8.0)
    assert stock.scheduler.timesteps is not None
    plan = OnSchedule("lcm-sd-4", preset("lcm-sd-4").schedule, model, "d")

    class Prompt:
        text = "a bag"

    pair = [torch.cat(list(c.batches(range(3), [Prompt()] * 3, 3))).int() for c in (stock, plan)]
    assert stock.name == "LCM, 4 steps, w 8"
    assert stock.passes == plan.passes == 4
    assert (pair[0] - pair[1]).abs().max() <= 2  # it starts from noise 0.2 % stronger
    with pytest.raises(UserError, match="by itself takes no negative prompt"):
        OnStock(model, "d", 4, negative_prompt="blue")


def test_a_schedule_without_distilled_guidance_is_refused():
    with pytest.raises(UserError, match="but the model's is distilled"):
        take("lcm").check(Schedule((Step(14.0, 2.0),)))


def test_fresh_noise_alone_wants_a_landing_of_order_1():
    steps = (Step(14.0), Step(3.0, order=2), Step(1.0, churn=1.0))
    with pytest.raises(ScheduleError, match="step 1: the step onto sigma 0, from where the next"):
        Schedule(steps)
    assert Schedule((steps[0], replace(steps[1], order=1), steps[2])).steps[2].churn == 1
