"""Every family against its stock pipeline, on tiny random ones, in float32 on the CPU.

Images are equal to one step of 8 bits where our schedule is the stock scheduler's grid.
"""

from dataclasses import replace

import pipelines
import pytest
import torch
from pipelines import CALL, FAMILIES, PROMPTS

from stepsampler import FreeU, Schedule, ScheduleError, Step, UserError
from stepsampler.generate import generate, seeded_noise
from stepsampler.grids import from_sigmas, make_schedule
from stepsampler.models import families, from_pipeline

SEEDS = [0, 1, 2]
CLASSES = ["2", "tench", "999"]
FLOWS = ("sd3", "flux-dev", "flux-schnell", "sana")
UNCONDITIONAL = ("ddpm", "ddim")


def prepare(name):
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
    return replace(schedule, guidance=model.guidance)


def our_images(model, schedule, prompts, **options):
    batches = generate(model, schedule, prompts, SEEDS, **options)
    return torch.cat([batch.images for batch in batches])


def take(name, pipeline=None):
    """Our model of a tiny pipeline."""
    size = None if name in UNCONDITIONAL else pipelines.SIZE
    return from_pipeline(pipeline or prepare(name), size)


def short_schedule(model, guidance_scale=1.0, **options):
    """Three steps for any family."""
    first = 1.0 if model.prediction_type == "flow_prediction" else 8.0
    steps = [Step(first * part, guidance_scale, **options) for part in (1.0, 0.6, 0.2)]
    return Schedule(tuple(steps), 0.0, "ddim", model.spec, guidance=model.guidance)


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
    model = take(name, pipeline)
    ours = our_images(model, stock_schedule(model, n, guidance_scale), prompts_of(name))
    assert theirs.std() > 10, "an image, not a grey square"
    torch.testing.assert_close(ours.float(), theirs, atol=1.0, rtol=0)


@pytest.mark.parametrize("name", ["sdxl", "pixart-sigma", "sd3", "flux-schnell", "sana"])
def test_negative_prompts_are_those_of_the_stock_pipeline(name):
    n, against = 2, ["a hat", "blue", "a grey coat"]
    pipeline = prepare(name)
    options = {} if name == "flux-schnell" else {"negative_prompt": against}
    if name == "flux-schnell":
        options = {"negative_prompt": against, "true_cfg_scale": 3.0}
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    if name == "sdxl":
        left = pipeline.scheduler.alphas_cumprod[-1]
        options["latents"] = seeded_noise(SEEDS, (4, 16, 16)) * (1 - left).sqrt()
    if name != "flux-schnell":
        options["guidance_scale"] = 3.0
    options |= CALL.get(name, {})
    theirs = pipeline(
        PROMPTS, generator=generators, num_inference_steps=n, output_type="pt", **options
    ).images
    model = take(name, pipeline)
    schedule = stock_schedule(model, n, 3.0)
    ours = our_images(model, schedule, PROMPTS, negative_prompts=against).float()
    torch.testing.assert_close(ours, (theirs * 255).round(), atol=1.0, rtol=0)
    assert (our_images(model, schedule, PROMPTS) - ours).abs().max() > 3, "they matter"


def test_pixart_under_its_own_scheduler():
    """DPM-Solver++(2M) on evenly spaced timesteps, with order 1 on the last step."""
    pipeline = FAMILIES["pixart-sigma"]()
    theirs = stock_images("pixart-sigma", pipeline, PROMPTS, 6, 3.0)
    model = take("pixart-sigma", pipeline)
    options = {"order": 2, "guidance_scale": 3.0, "model": model.spec}
    schedule = make_schedule("linspace", 6, model.noise, **options)
    ours = our_images(model, schedule, PROMPTS).float()
    torch.testing.assert_close(ours, theirs, atol=1.0, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_image_depends_on_its_seed_alone(name):
    model = take(name)
    guidance_scale = 1.0 if name in UNCONDITIONAL else 2.0
    schedule, prompts = short_schedule(model, guidance_scale), prompts_of(name)
    together = our_images(model, schedule, prompts)
    alone = our_images(model, schedule, prompts, batch_size=1)
    assert (together.int() - alone.int()).abs().max() <= 1
    assert (together[0].int() - together[1].int()).abs().max() > 3


@pytest.mark.parametrize("name", ["stable-diffusion", "sdxl"])
def test_free_u_on_every_step_is_that_of_diffusers(name):
    n, values = 3, {"s1": 0.9, "s2": 0.2, "b1": 1.5, "b2": 1.6}
    pipeline = prepare(name)
    plain = stock_images(name, pipeline, PROMPTS, n, 3.0)
    pipeline.enable_freeu(**values)
    theirs = stock_images(name, pipeline, PROMPTS, n, 3.0)
    pipeline.disable_freeu()
    model = take(name, pipeline)
    schedule = stock_schedule(model, n, 3.0)
    steps = [replace(step, free_u=FreeU(**values)) for step in schedule.steps]
    ours = our_images(model, replace(schedule, steps=tuple(steps)), PROMPTS).float()
    torch.testing.assert_close(ours, theirs, atol=1.0, rtol=0)
    assert (theirs - plain).abs().max() > 10
    again = our_images(model, schedule, PROMPTS).float()
    torch.testing.assert_close(again, plain, atol=1.0, rtol=0)


@pytest.mark.parametrize("before", [None, (0.8, 0.7, 1.1, 1.3)])
def test_free_u_is_as_it_was_after_an_exception_in_the_network(before):
    model = take("stable-diffusion")
    if before:
        model.pipeline.enable_freeu(*before)
    block = model.net.up_blocks[-1]
    seen = []

    def fail(*_):
        seen.append((block.s1, block.s2, block.b1, block.b2))
        raise RuntimeError("in the network")

    handle = model.net.mid_block.register_forward_hook(fail)
    schedule = short_schedule(model, 2.0, free_u=FreeU(1.5, 1.6, 0.9, 0.2))
    with pytest.raises(RuntimeError, match="in the network"):
        our_images(model, schedule, PROMPTS)
    handle.remove()
    assert seen == [(0.9, 0.2, 1.5, 1.6)]
    after = tuple(getattr(block, name, None) for name in ("s1", "s2", "b1", "b2"))
    assert after == (before or (None,) * 4)


@pytest.mark.parametrize("name", ["stable-diffusion", "sdxl"])
def test_guidance_rescale_is_that_of_the_stock_pipeline(name):
    n = 3
    pipeline = prepare(name)
    theirs = stock_images(name, pipeline, PROMPTS, n, 5.0, guidance_rescale=0.7)
    model = take(name, pipeline)
    schedule = stock_schedule(model, n, 5.0)
    steps = [replace(step, guidance_rescale=0.7) for step in schedule.steps]
    ours = our_images(model, replace(schedule, steps=tuple(steps)), PROMPTS).float()
    torch.testing.assert_close(ours, theirs, atol=1.0, rtol=0)
    assert (our_images(model, schedule, PROMPTS) - ours).abs().max() > 3


@pytest.mark.parametrize("name", ["sd3", "flux-dev", "flux-schnell"])
@pytest.mark.parametrize("size", [32, 64])
def test_a_flow_has_the_shift_of_its_stock_scheduler(name, size):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    pipeline = FAMILIES[name]()
    model = from_pipeline(pipeline, size)
    even = [1.0, 0.75, 0.5, 0.1]
    options = {}
    if name == "flux-dev":
        options["mu"] = calculate_shift((size // 4) ** 2, 256, 4096, 0.5, 1.15)
    pipeline.scheduler.set_timesteps(sigmas=even, **options)
    ours = [model.noise.sigma(1000 * u) for u in even]
    assert pipeline.scheduler.sigmas[:-1].tolist() == pytest.approx(ours, rel=1e-5)


def test_sana_has_the_shift_of_its_stock_scheduler():
    model = take("sana", FAMILIES["sana"]())
    scheduler = model.pipeline.scheduler
    scheduler.set_timesteps(5)
    even = torch.linspace(0.999, 0, 6)[:-1].tolist()
    ours = [model.noise.sigma(1000 * u) for u in even]
    assert scheduler.sigmas[:-1].tolist() == pytest.approx(ours, abs=1e-3)


def test_sdxl_tells_the_network_the_real_size():
    seen = []
    model = from_pipeline(FAMILIES["sdxl"](), 48)
    call = model.net.forward

    def spy(*arguments, **options):
        seen.append(options["added_cond_kwargs"]["time_ids"])
        return call(*arguments, **options)

    model.net.forward = spy
    images = our_images(model, short_schedule(model), PROMPTS)
    assert images.shape[2:] == (48, 48)
    assert seen[0].tolist() == [[48, 48, 0, 0, 48, 48]] * 3


def test_an_empty_negative_prompt_of_sdxl_is_zeros_only_where_the_stock_one_is():
    forced = take("sdxl", pipelines.sdxl(True)).encode([""], negative=True)
    assert not forced["encoder_hidden_states"].any()
    assert not forced["text_embeds"].any()
    free = take("sdxl", pipelines.sdxl(False))
    torch.testing.assert_close(free.encode([""], negative=True), free.encode([""]))
    assert free.encode([""])["text_embeds"].any()


def test_sd3_works_without_t5():
    pipeline = pipelines.sd3(t5=False)
    theirs = stock_images("sd3", pipeline, PROMPTS, 2, 3.0)
    model = take("sd3", pipeline)
    ours = our_images(model, stock_schedule(model, 2, 3.0), PROMPTS).float()
    torch.testing.assert_close(ours, theirs, atol=1.0, rtol=0)


def test_the_guidance_of_flux_dev_is_distilled_and_never_taken_for_another():
    dev, schnell = take("flux-dev"), take("flux-schnell")
    schedule = short_schedule(dev, 3.5)
    assert schedule.passes == 3
    assert short_schedule(schnell, 3.5).passes == 6
    stronger = our_images(dev, short_schedule(dev, 9.0), PROMPTS).int()
    assert (our_images(dev, schedule, PROMPTS).int() - stronger).abs().max() > 3
    with pytest.raises(UserError, match="guidance is distilled, but the model's is classifier-f"):
        schnell.check(schedule)
    with pytest.raises(UserError, match="guidance is classifier-free, but the model's is distille"):
        dev.check(replace(schedule, guidance="classifier-free"))
    with pytest.raises(UserError, match="is distilled: it takes no negative prompt"):
        our_images(dev, schedule, PROMPTS, negative_prompts="blurry")
    with pytest.raises(ScheduleError, match="step 0: guidance_rescale needs classifier-free"):
        short_schedule(dev, 3.5, guidance_rescale=0.5)


def test_a_class_is_given_by_number_or_name_and_an_unknown_one_is_refused():
    model = take("dit")
    encoded = model.encode(["2", "man-eater", "Tinca tinca", "999", ""])
    assert encoded["class_labels"].tolist() == [2, 2, 0, 999, 1000]
    for wrong in ("1000", "-1", "dragon"):
        message = rf"is a class, 0 to 999 or one of 4 names such as 'Tinca tinca', got '{wrong}'"
        with pytest.raises(UserError, match=message):
            model.encode([wrong])


def test_an_unconditional_model_refuses_guidance_and_prompts():
    model = take("ddpm")
    with pytest.raises(UserError, match="guidance_scale is 2, but the model is unconditional"):
        model.check(short_schedule(model, 2.0))
    with pytest.raises(UserError, match="is unconditional and takes no prompt, got 'a bag'"):
        our_images(model, short_schedule(model), ["a bag"] * 3)
    with pytest.raises(UserError, match="size must be a multiple of 2 pixels, got 17"):
        from_pipeline(FAMILIES["ddpm"](), 17)


def test_free_u_is_refused_where_there_are_no_skips():
    model = take("dit")
    schedule = short_schedule(model, free_u=FreeU(1.5, 1.6, 0.9, 0.2))
    with pytest.raises(UserError, match="Free-U, which only U-Nets with skips have"):
        model.check(schedule)


def test_a_schedule_for_one_family_is_refused_by_another():
    schedule = short_schedule(take("sd3"))
    with pytest.raises(UserError, match="made for family 'sd3', but the model has 'flux'"):
        take("flux-schnell").check(schedule)


def test_the_supported_pipeline_classes():
    assert sorted(families()) == [
        "DDIMPipeline",
        "DDPMPipeline",
        "DiTPipeline",
        "FluxPipeline",
        "PixArtAlphaPipeline",
        "PixArtSigmaPipeline",
        "SanaPipeline",
        "StableDiffusion3Pipeline",
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
    ]
    assert {type(build()).__name__ for build in FAMILIES.values()} == set(families())


def test_what_no_family_can_sample_is_refused_by_name():
    from diffusers import StableDiffusionImg2ImgPipeline

    pipeline = FAMILIES["stable-diffusion"]()
    other = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    with pytest.raises(UserError, match="StableDiffusionImg2ImgPipeline are not supported; DDIM"):
        from_pipeline(other)
    for name, part in (("sdxl", "text_encoder_2"), ("flux-dev", "tokenizer_2"), ("dit", "vae")):
        broken = FAMILIES[name]()
        setattr(broken, part, None)
        with pytest.raises(UserError, match=rf"the {type(broken).__name__} has no {part}"):
            from_pipeline(broken)
    pipeline.unet.register_to_config(time_cond_proj_dim=8)
    with pytest.raises(UserError, match="scale as an embedding .a latent consistency model."):
        from_pipeline(pipeline)


@pytest.mark.parametrize(
    ("name", "offload"), [("stable-diffusion", "model"), ("flux-dev", "model"), ("sdxl", "group")]
)
def test_an_offloaded_pipeline_stays_offloaded(name, offload):
    """On a CPU nothing moves, but the hooks are there and must not be lost."""
    schedule = short_schedule(take(name), 2.0)
    expected = our_images(take(name), schedule, PROMPTS)
    pipeline = prepare(name)
    if offload == "model":
        pipeline.enable_model_cpu_offload(device="cpu")
    else:
        device = torch.device("cpu")
        pipeline.enable_group_offload(onload_device=device, offload_type="leaf_level")
    ours = our_images(take(name, pipeline), schedule, PROMPTS, batch_size=2)
    assert (ours.int() - expected.int()).abs().max() <= 1
    if offload == "model":
        assert len(pipeline._all_hooks) >= 3


def test_a_full_memory_is_one_sentence():
    model = take("stable-diffusion")

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model.net.mid_block.register_forward_hook(fail)
    with pytest.raises(UserError, match=r"batch of 3 does not fit .* smaller batch size \(--b"):
        our_images(model, short_schedule(model), PROMPTS)
    with pytest.raises(UserError, match="batch of 1 does not fit .* smaller size of the images"):
        our_images(model, short_schedule(model), PROMPTS, batch_size=1)
