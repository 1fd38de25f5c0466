"""Networks that come compiled, offloaded, with adapters or in a wrapper."""

from dataclasses import replace

import diffusers
import pipelines
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import LoraConfig, get_peft_model

from stepsampler import FreeU, UserError
from stepsampler.generate import generate
from stepsampler.grids import from_sigmas, make_schedule
from stepsampler.guided import guided
from stepsampler.models import from_pipeline
from stepsampler.noise import NoiseSchedule
from stepsampler.scheduler import StepScheduler

SD = NoiseSchedule.scaled_linear()
FREE_U = FreeU(1.3, 1.4, 0.9, 0.2)


@pytest.fixture
def pipe():
    torch.compiler.reset()
    return pipelines.stable_diffusion("v_prediction")


def some_schedule(free_u=False):
    made = make_schedule("karras", 3, SD, solver="dpmpp-midpoint", order=2)
    scales = zip(made.steps, (3.0, 1.0, 5.0), (None, FREE_U, None), strict=True)
    steps = (replace(s, guidance_scale=w, free_u=f if free_u else None) for s, w, f in scales)
    return replace(made, steps=tuple(steps))


def images(pipe, schedule):
    """By our own loop, and by the stock pipeline."""
    ours = next(iter(generate(from_pipeline(pipe), schedule, ["a bag"], (3,)))).images
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    with guided(pipe, schedule), torch.no_grad():
        theirs = pipe("a bag", num_inference_steps=3, latents=noise, output_type="latent").images
    return ours, theirs


def compiled(pipe):
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def compiled_in_place(pipe):
    pipe.unet.compile(backend="eager")


def offloaded(pipe):
    add_hook_to_module(pipe.unet, AlignDevicesHook("cpu"))


def with_adapters(pipe):
    pipe.unet = get_peft_model(pipe.unet, LoraConfig(r=2, target_modules=["to_v"]))


@pytest.mark.parametrize("free_u", [False, True])
@pytest.mark.parametrize("wrap", [compiled, compiled_in_place, offloaded, with_adapters])
def test_a_wrapped_network_makes_the_same_images(pipe, wrap, free_u):
    schedule = some_schedule(free_u)
    ours, theirs = images(pipe, schedule)
    wrap(pipe)
    net = pipe.unet
    ours_wrapped, theirs_wrapped = images(pipe, schedule)
    assert (ours_wrapped.int() - ours.int()).abs().max() <= 1
    torch.testing.assert_close(theirs_wrapped, theirs, rtol=1e-4, atol=1e-4)
    assert pipe.unet is net


def test_a_compiled_network_is_known_as_one(pipe):
    assert not from_pipeline(pipe).compiled
    for wrap in (compiled_in_place, compiled):
        other = pipelines.stable_diffusion()
        wrap(other)
        assert from_pipeline(other).compiled


def test_a_compiled_transformer_is_found(pipe):
    pipe = pipelines.sd3()
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    assert from_pipeline(pipe).net is pipe.transformer


def test_a_wrapper_without_a_config_is_refused_in_words(pipe):
    pipe.unet = torch.nn.DataParallel(pipe.unet)
    message = "the pipeline's network is a DataParallel without a config"
    with pytest.raises(UserError, match=message):
        from_pipeline(pipe)
    with pytest.raises(UserError, match=message), guided(pipe, some_schedule()):
        pass


def test_a_network_that_takes_its_scale_as_an_embedding_wants_distilled_guidance(pipe):
    config = {k: v for k, v in pipe.unet.config.items() if k[0] != "_"}
    pipe.unet = diffusers.UNet2DConditionModel(**config | {"time_cond_proj_dim": 8})
    with (
        pytest.raises(UserError, match="but the network's is distilled"),
        guided(pipe, some_schedule()),
    ):
        pass


# ---- pipelines around the same networks


def controlled(pipe):
    net = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8))
    for block in net.controlnet_down_blocks:
        torch.nn.init.normal_(block.weight, std=0.1, generator=torch.manual_seed(1))
    made = diffusers.StableDiffusionControlNetPipeline(
        **pipe.components, controlnet=net, requires_safety_checker=False
    )
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    return made, {"image": image}


def inpainting(pipe):
    config = {k: v for k, v in pipe.unet.config.items() if k[0] != "_"}
    torch.manual_seed(0)
    parts = {
        **pipe.components,
        "unet": diffusers.UNet2DConditionModel(**config | {"in_channels": 9}),
    }
    made = diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 16:] = 1
    return made, {"image": image, "mask_image": mask, "height": 32, "width": 32}


class Mine(diffusers.StableDiffusionPipeline):
    pass


def subclass(pipe):
    return Mine(**pipe.components, requires_safety_checker=False), {}


@pytest.mark.parametrize("build", [controlled, inpainting, subclass])
def test_constant_guidance_of_another_pipeline_is_its_own(pipe, build):
    pipe, options = build(pipe)
    pipe.set_progress_bar_config(disable=True)
    schedule = from_sigmas([14.6, 3.0, 1.0], 0.0, [4.0] * 3, 2, "dpmpp-midpoint")
    schedule = replace(schedule, model=SD.spec("stable-diffusion", "v_prediction"))
    options |= {"prompt": "a bag", "num_inference_steps": 3, "output_type": "latent"}

    def run(scale):
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            return pipe(**options, guidance_scale=scale, generator=generator).images

    with guided(pipe, schedule):
        found = run(7.5)
    pipe.scheduler = StepScheduler.from_config(pipe.scheduler.config, schedule=schedule)
    torch.testing.assert_close(found, run(4.0), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, run(1.0), atol=1e-2)


def test_perturbed_attention_is_refused(pipe):
    made = diffusers.StableDiffusionPAGPipeline(**pipe.components, requires_safety_checker=False)
    with pytest.raises(UserError, match="guides by perturbed attention too"):  # noqa: SIM117
        with guided(made, some_schedule()):
            pass


def test_a_scheduler_that_the_pipeline_swaps_is_refused():
    pipe = pipelines.ddpm()
    with guided(pipe, make_schedule("karras", 2, NoiseSchedule.linear(), solver="ddim", order=1)):
        pipe.scheduler = diffusers.DDPMScheduler()
        with pytest.raises(UserError, match="has put a DDPMScheduler in place of the schedule's"):
            pipe(1, num_inference_steps=2)
