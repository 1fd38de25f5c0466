import copy
from dataclasses import replace

import diffusers
import pipelines
import pytest
import torch

from stepsampler import FreeU, Schedule, Step, UserError
from stepsampler.generate import generate, seeded_noise
from stepsampler.grids import from_sigmas, make_schedule
from stepsampler.guided import guided
from stepsampler.models import from_pipeline
from stepsampler.noise import FlowSchedule, NoiseSchedule
from stepsampler.sample import sample
from stepsampler.schedule import SOLVERS
from stepsampler.scheduler import StepScheduler

PROMPTS = ["a photo of a sneaker", "bag"]
SCALES = (0.0, 1.0, 3.0, 0.5, 7.0)
FREE_U = FreeU(1.3, 1.4, 0.9, 0.2)
SD = NoiseSchedule.scaled_linear()
FLUX, SD3 = FlowSchedule().spec("flux"), FlowSchedule().spec("sd3")
DISTILLED = replace(from_sigmas([1.0, 0.6], 0.0, [2.0, 5.0], 1, "ddim", FLUX), guidance="distilled")


def with_scales(schedule, scales=SCALES, **changes):
    steps = zip(schedule.steps, scales, strict=True)
    return replace(schedule, steps=tuple(replace(s, guidance_scale=w, **changes) for s, w in steps))


def some_schedule(grid="karras", n=5, solver="dpmpp-midpoint", **changes):
    order = min(2, SOLVERS[solver])
    made = make_schedule(grid, n, SD, solver=solver, order=order)
    return with_scales(made, SCALES[:n], **changes)


def own_loop(pipe, schedule, seeds=(3, 4)):
    model = from_pipeline(pipe)
    noise = seeded_noise(seeds, model.shape)
    prompts = PROMPTS[: len(seeds)]
    cond, uncond = model.encode(prompts), model.encode([""] * len(seeds), True)
    return noise, sample(model.denoiser(cond, uncond), noise, schedule)


def run(pipe, latents, schedule, **options):
    with torch.no_grad():
        return pipe(
            PROMPTS[: len(latents)],
            num_inference_steps=schedule.num_steps,
            latents=latents.clone(),
            output_type="latent",
            **options,
        ).images


def state(pipe):
    """All that `guided` touches."""
    net = getattr(pipe, "unet", None) or pipe.transformer
    free_u = [[getattr(b, k, None) for k in vars(FREE_U)] for b in getattr(net, "up_blocks", [])]
    config = dict(pipe.scheduler.config)
    return pipe.scheduler, config, free_u, [*net._forward_hooks, *net._forward_pre_hooks]


# ---- the images of our own loop


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-midpoint", "exact", "unipc-bh2"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_guidance_of_each_step_is_that_of_our_own_loop(solver, prediction_type):
    pipe = pipelines.stable_diffusion(prediction_type)
    schedule = some_schedule("power" if solver == "exact" else "karras", solver=solver)
    noise, expected = own_loop(pipe, schedule)
    before = state(pipe)
    with guided(pipe, schedule):
        found = run(pipe, noise, schedule)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert state(pipe) == before


@pytest.mark.parametrize("scale", [1.5, 7.5, 100.0])
def test_the_scale_of_the_call_does_not_matter(scale):
    pipe = pipelines.stable_diffusion("v_prediction")
    schedule = some_schedule()
    noise, expected = own_loop(pipe, schedule)
    with guided(pipe, schedule):
        found = run(pipe, noise, schedule, guidance_scale=scale)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_rescaled_guidance_is_that_of_our_own_loop():
    pipe = pipelines.stable_diffusion("v_prediction")
    schedule = some_schedule(guidance_rescale=0.7)
    noise, expected = own_loop(pipe, schedule)
    with guided(pipe, schedule):
        found = run(pipe, noise, schedule)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("decode", ["x", "alpha-x"])
def test_free_u_of_each_step_is_that_of_our_own_loop(decode):
    pipe = pipelines.stable_diffusion("v_prediction")
    schedule = some_schedule("power")
    steps = [
        replace(s, free_u=FREE_U if i in (1, 3) else None) for i, s in enumerate(schedule.steps)
    ]
    schedule = replace(schedule, steps=tuple(steps), decode=decode)
    noise, expected = own_loop(pipe, schedule)
    without = own_loop(pipe, some_schedule("power"))[1]
    assert (without - expected).abs().max() > 0.01
    before = state(pipe)
    with guided(pipe, schedule):
        found = run(pipe, noise, schedule)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert state(pipe) == before


def test_one_pipeline_runs_many_times_inside():
    pipe = pipelines.stable_diffusion("v_prediction")
    schedule = some_schedule()
    noise, expected = own_loop(pipe, schedule)
    with guided(pipe, schedule) as inside:
        assert inside is pipe
        for _ in range(2):
            found = run(pipe, noise, schedule)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_image_to_image_begins_with_the_guidance_of_its_first_step():
    pipe = pipelines.stable_diffusion("v_prediction")
    schedule = some_schedule(solver="ddim")
    later = diffusers.StableDiffusionImg2ImgPipeline(
        **pipe.components, requires_safety_checker=False
    )
    later.set_progress_bar_config(disable=True)
    results = []
    for each, strength in ((schedule, 0.6), (replace(schedule, steps=schedule.steps[2:]), 1.0)):
        with guided(later, each), torch.no_grad():
            output = later(
                "a bag",
                image=torch.rand(1, 3, 32, 32, generator=torch.manual_seed(1)),
                strength=strength,
                num_inference_steps=each.num_steps,
                generator=torch.Generator().manual_seed(2),
                output_type="latent",
            )
            results.append(output.images)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


# ---- other families


def latents_of(family, pipe):
    latents = torch.randn(2, 4, 16, 16, generator=torch.manual_seed(0))
    return pipe._pack_latents(latents, 2, 4, 16, 16) if family.startswith("flux") else latents


@pytest.mark.parametrize(
    "family", ["sdxl", "pixart-alpha", "pixart-sigma", "sd3", "sana", "flux-dev", "flux-schnell"]
)
def test_a_family_on_its_stock_pipeline_is_as_in_our_own_loop(family):
    pipe = pipelines.FAMILIES[family]()
    model = from_pipeline(pipe, size=pipelines.SIZE)
    flow = model.prediction_type == "flow_prediction"
    scales = [1.0] * 3 if family == "flux-schnell" else [4.0, 1.0, 2.5]
    sigmas = [1.0, 0.8, 0.5] if flow else [10.0, 3.0, 1.0]
    schedule = from_sigmas(sigmas, 0.0, scales, 2, "unipc-bh2", model.spec)
    schedule = replace(schedule, guidance=model.guidance)
    noise = seeded_noise((3, 4), model.shape)
    cond = model.encode(PROMPTS)
    uncond = None if family.startswith("flux") else model.encode(["", ""], True)
    with torch.inference_mode():
        expected = sample(model.denoiser(cond, uncond), noise, schedule)
    packs = family.startswith("flux")
    latents = pipe._pack_latents(noise, *noise.shape) if packs else noise
    with guided(pipe, schedule):
        found = run(pipe, latents, schedule, **pipelines.CALL.get(family, {}))
    if packs:
        found = pipe._unpack_latents(found, pipelines.SIZE, pipelines.SIZE, pipe.vae_scale_factor)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_the_scales_of_each_step_are_those_of_diffusers_own_callback(family):
    """Where the pipeline has one, for scales above 1."""
    pipe = pipelines.FAMILIES[family]()
    sigmas = [1.0, 0.8, 0.5] if family == "sd3" else [10.0, 3.0, 1.0]
    schedule = from_sigmas(
        sigmas, 0.0, [2.0, 6.0, 3.5], 1, "ddim", SD3 if family == "sd3" else None
    )
    latents = latents_of(family, pipe)
    with guided(pipe, schedule):
        found = run(pipe, latents, schedule)

    def after(pipe, i, _t, tensors):
        if i + 1 < schedule.num_steps:
            pipe._guidance_scale = schedule.steps[i + 1].guidance_scale
        return tensors

    constant = with_scales(schedule, [2.0] * 3)
    pipe.scheduler = StepScheduler.from_config(pipe.scheduler.config, schedule=constant)
    expected = run(pipe, latents, schedule, guidance_scale=2.0, callback_on_step_end=after)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scales", [(4.0, 1.0, 2.5), (0.0, 0.0, 0.0)])
def test_dit_whose_halves_are_the_other_way_round_is_as_in_our_own_loop(scales):
    """It takes no latents: images of the same generators, which it does not scale."""
    pipe = pipelines.dit()
    model = from_pipeline(pipe)
    sigmas = [model.noise.sigma_max, 3.0, 1.0]
    schedule = from_sigmas(sigmas, 0.0, scales, 2, "dpmpp-midpoint", model.spec)
    ours = [b.images for b in generate(model, schedule, ["0", "2"], (3, 4))]
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    with guided(pipe, schedule):
        found = pipe([0, 2], 9.0, generators, num_inference_steps=3, output_type="pt").images
    assert found.std() > 0.05
    torch.testing.assert_close(found * 255, ours[0].float(), rtol=0, atol=1.0)


def test_the_distilled_scale_of_each_step_is_an_input_of_flux():
    pipe = pipelines.flux(True)
    latents, options = latents_of("flux-dev", pipe), pipelines.CALL["flux-dev"]
    seen = []

    def spy(_net, _args, kwargs):
        seen.append(kwargs["guidance"].tolist())

    with guided(pipe, DISTILLED):
        handle = pipe.transformer.register_forward_pre_hook(spy, with_kwargs=True)
        varied = run(pipe, latents, DISTILLED, **options)
        handle.remove()
    assert seen == [[2.0, 2.0], [5.0, 5.0]]
    constant = with_scales(DISTILLED, [4.0, 4.0])
    with guided(pipe, constant):
        found = run(pipe, latents, constant, **options)
    pipe.scheduler = StepScheduler.from_config(pipe.scheduler.config, schedule=constant)
    expected = run(pipe, latents, constant, guidance_scale=4.0, **options)
    assert torch.equal(found, expected)
    assert not torch.equal(found, varied)


def test_a_network_without_guidance_runs_an_unguided_schedule():
    for pipe, schedule in (
        (pipelines.flux(False), from_sigmas([1.0, 0.6], 0.0, [1.0, 1.0], 1, "ddim", FLUX)),
        (pipelines.ddpm(), Schedule((Step(10.0), Step(1.0)), 0.0, "ddim")),
    ):
        with guided(pipe, schedule):
            if hasattr(pipe, "transformer"):
                options = pipelines.CALL["flux-schnell"]
                run(pipe, latents_of("flux-schnell", pipe), schedule, **options)
            else:
                pipe(2, num_inference_steps=2, output_type="pt")


# ---- the pipeline is as it was before


@pytest.mark.parametrize("installed", [False, True])
def test_everything_is_restored_after_an_exception(installed):
    pipe = pipelines.stable_diffusion("v_prediction")
    schedule = some_schedule(free_u=FREE_U)
    if installed:
        pipe.scheduler = StepScheduler.from_config(pipe.scheduler.config, schedule=schedule)
    pipe.enable_freeu(0.8, 0.3, 1.2, 1.1)
    before = state(pipe)

    def stop(_pipe, _i, _t, _tensors):
        assert isinstance(pipe.scheduler, StepScheduler)
        assert (pipe.scheduler is before[0]) == installed
        assert state(pipe)[2] != before[2]
        raise KeyboardInterrupt

    noise = torch.zeros(1, 4, 16, 16)
    with pytest.raises(KeyboardInterrupt), guided(pipe, schedule):
        run(pipe, noise, schedule, callback_on_step_end=stop)
    assert state(pipe) == before


def test_a_scheduler_with_another_schedule_is_replaced_for_the_time():
    pipe = pipelines.stable_diffusion("v_prediction")
    pipe.scheduler = StepScheduler.from_config(pipe.scheduler.config, schedule=some_schedule(n=3))
    before = state(pipe)
    with guided(pipe, some_schedule(n=5)):
        assert len(pipe.scheduler.timesteps) == 5
    assert state(pipe) == before


# ---- what a hook cannot do


def test_a_call_without_guidance_is_refused():
    for pipe, options in (
        (pipelines.stable_diffusion(), {}),
        (pipelines.pixart_sigma(), pipelines.CALL["pixart-sigma"]),
    ):
        before = state(pipe)
        schedule = Schedule((Step(10.0, 3.0), Step(1.0, 1.0)), 0.0, "ddim")
        for count in (1, 2):
            noise = torch.randn(count, 4, 16, 16)
            with (
                pytest.raises(UserError, match="pass it a guidance_scale above 1"),
                guided(pipe, schedule),
            ):
                run(pipe, noise, schedule, guidance_scale=1.0, **options)
        assert state(pipe) == before


def test_guidance_beside_the_distilled_one_is_refused():
    pipe = pipelines.flux(True)
    options = {**pipelines.CALL["flux-dev"], "true_cfg_scale": 3.0, "negative_prompt": ["", ""]}
    with (
        pytest.raises(UserError, match="more than once .* beside the distilled one"),
        guided(pipe, DISTILLED),
    ):
        run(pipe, latents_of("flux", pipe), DISTILLED, **options)


def test_rescaling_by_the_pipeline_is_refused():
    pipe = pipelines.stable_diffusion()
    schedule = some_schedule()
    with (
        pytest.raises(UserError, match="guidance_rescale is a part .* with 0, got 0.7"),
        guided(pipe, schedule),
    ):
        run(pipe, torch.zeros(1, 4, 16, 16), schedule, guidance_rescale=0.7)


@pytest.mark.parametrize(
    ("build", "schedule", "message"),
    [
        (pipelines.sd3, replace(DISTILLED, guidance="classifier-free", model=SD3), None),
        (
            pipelines.sd3,
            replace(DISTILLED, model=SD3),
            "guidance is distilled, but the network's is not",
        ),
        (
            pipelines.flux,
            replace(DISTILLED, guidance="classifier-free"),
            "guidance is classifier-free, but the network's is distilled",
        ),
        (
            pipelines.sd3,
            from_sigmas([1.0, 0.5], 0.0, [2, 2], 2, "heun", SD3),
            "heun calls the network twice a step",
        ),
        (pipelines.dit, Schedule((Step(1.0, free_u=FREE_U),)), "only U-Nets with skips have"),
        (pipelines.stable_diffusion, DISTILLED, "made for family 'flux', but the pipeline"),
    ],
)
def test_a_schedule_that_the_pipeline_cannot_run_is_refused_at_once(build, schedule, message):
    pipe = build()
    before = state(pipe)
    if message is None:
        with guided(pipe, schedule):
            pass
    else:
        with pytest.raises(UserError, match=message), guided(pipe, schedule):
            raise AssertionError("never inside")
    assert state(pipe) == before


def test_a_schedule_of_another_family_is_refused():
    from stepsampler.presets import open_schedule

    pipe = pipelines.stable_diffusion()
    with (
        pytest.raises(UserError, match="made for family 'sdxl', but the pipeline is of 'stable-"),
        guided(pipe, open_schedule("seed-xl-5-plain")),
    ):
        pass


def test_guiding_twice_is_refused_and_leaves_the_first_context_whole():
    pipe = pipelines.stable_diffusion()
    plan = Schedule((Step(4.0, 2.0), Step(1.0, 3.0)), 0.5, "ddim")
    with guided(pipe, plan):
        with pytest.raises(UserError, match="the pipeline is guided already"), guided(pipe, plan):
            pass
        pipe("a bag", num_inference_steps=2, output_type="latent")
        with pytest.raises(UserError, match="all steps are taken: inside `guided` only the"):
            pipe.unet(torch.zeros(2, 4, 16, 16), 1.0, torch.zeros(2, 16, 32))
    with guided(pipe, plan):
        pipe("a bag", num_inference_steps=2, output_type="latent")


def test_a_pipeline_made_or_copied_inside_is_not_guided_outside():
    pipe = pipelines.stable_diffusion()
    schedule, noise = some_schedule(), seeded_noise([3], (4, 16, 16))
    stock = pipe.scheduler
    expected = run(pipe, noise, schedule)
    with guided(pipe, schedule):
        made = diffusers.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
        copied = copy.deepcopy(pipe)
    for other in (made, copied):
        other.set_progress_bar_config(disable=True)
        other.scheduler = stock
        assert torch.equal(run(other, noise, schedule), expected)
