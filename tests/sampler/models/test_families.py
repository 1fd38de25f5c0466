"""Every family against its stock pipeline, on tiny random ones, in float32 on the CPU.

Images are equal to one step of 8 bits where our schedule is the stock scheduler's grid.
"""

from dataclasses import replace

import numpy as np
import pipelines
import pytest
import torch
from families import (
    SEEDS,
    STOCK,
    UNCONDITIONAL,
    counted,
    networks,
    our_images,
    prepare,
    prompts_of,
    short_schedule,
    stock_images,
    stock_schedule,
    take,
    unguide,
)
from pipelines import FAMILIES, PROMPTS

from stepsampler import FreeU, ScheduleError, UserError
from stepsampler.grids import make_schedule
from stepsampler.models import families, from_pipeline


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_our_images_are_those_of_the_stock_pipeline(name, guidance_scale):
    if name in UNCONDITIONAL and guidance_scale != 1:
        pytest.skip("no guidance without a condition")
    n = 4
    pipeline = prepare(name)
    theirs = stock_images(name, pipeline, n, guidance_scale)
    model = take(name, pipeline)
    ours = our_images(model, stock_schedule(model, n, guidance_scale), prompts_of(name))
    assert theirs.std() > 10, "an image, not a grey square"
    if model.prediction_type == "flow_prediction" and STOCK[name].even:  # shifted once, as there
        made = make_schedule("linspace", n, model.noise, model=model.spec).sigmas
        assert made == pytest.approx(pipeline.scheduler.sigmas.tolist(), abs=1e-6)
    torch.testing.assert_close(ours.float(), theirs, atol=1.0, rtol=0)


@pytest.mark.parametrize("name", [name for name, row in STOCK.items() if row.negative])
def test_negative_prompts_are_those_of_the_stock_pipeline(name):
    n, against = 2, ["a hat", "blue", "a grey coat"]
    pipeline = prepare(name)
    theirs = stock_images(name, pipeline, n, 3.0, negative_prompt=against)
    model = take(name, pipeline)
    schedule = stock_schedule(model, n, 3.0)
    ours = our_images(model, schedule, PROMPTS, negative_prompts=against).float()
    torch.testing.assert_close(ours, theirs, atol=1.0, rtol=0)
    assert (our_images(model, schedule, PROMPTS) - ours).abs().max() > 3, "they matter"


@pytest.mark.parametrize("name", [name for name, row in STOCK.items() if row.doubles])
def test_guidance_in_some_steps_is_that_of_the_stock_pipeline_without_it_in_the_others(name):
    n = 3
    pipeline = prepare(name)
    whole = stock_images(name, pipeline, n, 4.0)
    with unguide(name, pipeline, steps={0}):
        theirs = stock_images(name, pipeline, n, 4.0)
    model = take(name, pipeline)
    schedule = stock_schedule(model, n, 1.0, 4.0, 4.0)
    with counted(*networks(pipeline)) as rows:
        ours = our_images(model, schedule, prompts_of(name))
    torch.testing.assert_close(ours.float(), theirs, atol=1.0, rtol=0)
    assert sum(rows) == schedule.passes * len(SEEDS) == 5 * len(SEEDS)
    assert (theirs - whole).abs().max() > 3


def test_pixart_under_its_own_scheduler():
    """DPM-Solver++(2M) on evenly spaced timesteps, with order 1 on the last step."""
    pipeline = FAMILIES["pixart-sigma"]()
    theirs = stock_images("pixart-sigma", pipeline, 6, 3.0)
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
    plain = stock_images(name, pipeline, n, 3.0)
    pipeline.enable_freeu(**values)
    theirs = stock_images(name, pipeline, n, 3.0)
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
    theirs = stock_images(name, pipeline, n, 5.0, guidance_rescale=0.7)
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
    theirs = stock_images("sd3", pipeline, 2, 3.0)
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


@pytest.mark.parametrize(
    ("name", "options"),
    [("z-image", {"cfg_truncation": 0.1}), ("lumina2", {"cfg_trunc_ratio": 0.4})],
)
def test_truncated_guidance_is_a_schedule_without_it_in_the_last_steps(name, options):
    pipeline = prepare(name)
    theirs = stock_images(name, pipeline, 3, 4.0, **options)
    model = take(name, pipeline)
    ours = our_images(model, stock_schedule(model, 3, 4.0, 1.0, 1.0), PROMPTS).float()
    torch.testing.assert_close(ours, theirs, atol=1.0, rtol=0)
    assert (stock_images(name, pipeline, 3, 4.0) - theirs).abs().max() > 3


@pytest.mark.parametrize("name", ["flux-dev", "flux2-dev"])
def test_distilled_guidance_of_each_step_is_told_to_the_network(name):
    scales = [1.0, 6.0, 2.5]
    pipeline = prepare(name)
    left = iter(scales)
    tell = pipeline.transformer.register_forward_pre_hook(
        lambda _net, args, named: (args, {**named, "guidance": torch.full((3,), next(left))}),
        with_kwargs=True,
    )
    theirs = stock_images(name, pipeline, 3, 4.0)
    tell.remove()
    model = take(name, pipeline)
    schedule = stock_schedule(model, 3, *scales)
    with counted(model.net) as rows:
        ours = our_images(model, schedule, PROMPTS)
    torch.testing.assert_close(ours.float(), theirs, atol=1.0, rtol=0)
    assert sum(rows) == schedule.passes * len(SEEDS) == 3 * len(SEEDS)


def test_a_distilled_klein_ignores_the_scale_that_ours_takes():
    pipeline = pipelines.flux2_klein(is_distilled=True)
    theirs = stock_images("flux2-klein", pipeline, 2, 4.0)
    model = take("flux2-klein", pipeline)
    unguided, guided = (our_images(model, stock_schedule(model, 2, w), PROMPTS) for w in (1, 4))
    torch.testing.assert_close(unguided.float(), theirs, atol=1.0, rtol=0)
    assert (guided.int() - unguided.int()).abs().max() > 3


@pytest.mark.parametrize("size", [32, 264])  # either side of 4,300 tokens
def test_the_shift_of_flux2_depends_on_the_number_of_steps(size):
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    pipeline = FAMILIES["flux2-dev"]()
    model = from_pipeline(pipeline, size)
    noise, spec = model.noise, model.spec
    for n in (1, 4, 28, 50):
        mu = compute_empirical_mu((size // 4) ** 2, n)
        pipeline.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / n, n), mu=mu)
        ours = make_schedule("linspace", n, noise, model=spec).sigmas
        assert ours == pytest.approx(pipeline.scheduler.sigmas.tolist(), abs=1e-6)


def test_a_distilled_krea2_has_the_same_shift_at_all_sizes():
    pipeline = pipelines.krea2(is_distilled=True)
    stock_images("krea2", pipeline, 3, 1.0)
    ours = make_schedule("linspace", 3, take("krea2", pipeline).noise).sigmas
    assert ours == pytest.approx(pipeline.scheduler.sigmas.tolist(), abs=1e-6)


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


def test_every_family_has_a_miniature_and_a_row_in_the_table():
    assert {type(build()).__name__ for build in FAMILIES.values()} == set(families())
    assert set(STOCK) == set(FAMILIES)


def test_what_no_family_can_sample_is_refused_by_name():
    from diffusers import StableDiffusionImg2ImgPipeline

    pipeline = FAMILIES["stable-diffusion"]()
    other = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    with pytest.raises(
        UserError, match="StableDiffusionImg2ImgPipeline cannot run a schedule: it is no"
    ):
        from_pipeline(other)
    for name, part in (("sdxl", "text_encoder_2"), ("flux-dev", "tokenizer_2"), ("dit", "vae")):
        broken = FAMILIES[name]()
        setattr(broken, part, None)
        with pytest.raises(UserError, match=rf"the {type(broken).__name__} has no {part}"):
            from_pipeline(broken)


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
