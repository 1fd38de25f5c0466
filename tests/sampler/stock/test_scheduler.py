import json
from dataclasses import replace

import diffusers
import numpy as np
import pipelines
import pytest
import torch
from schedulers import SD, holding, some_schedule, stock, warned, without_schedule

from stepsampler import GoldenNoise, LearnedNoise, ModelSpec, Schedule, Step, UserError
from stepsampler.generate import seeded_noise
from stepsampler.grids import from_sigmas, make_schedule
from stepsampler.models import from_pipeline
from stepsampler.noise import FlowSchedule, NoiseSchedule
from stepsampler.sample import sample
from stepsampler.schedule import SOLVERS
from stepsampler.scheduler import StepScheduler, plan

FLOW = FlowSchedule().spec("some-flow")
PROMPTS = ["a photo of a sneaker", "bag"]
MULTISTEP = [solver for solver in SOLVERS if solver not in ("heun", "dpm-v3")]


def run(pipe, latents, steps, **options):
    with torch.no_grad():
        return pipe(
            PROMPTS[: len(latents)],
            num_inference_steps=steps,
            latents=latents.clone(),
            output_type="latent",
            **options,
        ).images


def own_loop(pipe, schedule, seeds=(3, 4)):
    model = from_pipeline(pipe)
    noise = seeded_noise(seeds, model.shape)
    prompts = PROMPTS[: len(seeds)]
    cond, uncond = model.encode(prompts), model.encode([""] * len(seeds), True)
    return noise, sample(model.denoiser(cond, uncond), noise, schedule)


# ---- the images of our own loop, on a stock pipeline


@pytest.mark.parametrize("solver", MULTISTEP)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("grid", ["karras", "power"])  # onto 0, and onto a sigma above it
def test_a_stock_pipeline_makes_the_latents_of_our_own_loop(solver, prediction_type, grid):
    pipe = pipelines.stable_diffusion(prediction_type)
    order = SOLVERS[solver]
    schedule = make_schedule(grid, 5, SD, solver=solver, order=order, guidance_scale=3.0)
    noise, expected = own_loop(pipe, schedule)
    pipe.scheduler = StepScheduler.from_config(pipe.scheduler.config, schedule=schedule)
    found = run(pipe, noise, 5, guidance_scale=3.0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("decode", ["x", "alpha-x"])
@pytest.mark.parametrize("form", ["data", "noise"])
def test_both_decode_scales_and_both_forms_are_those_of_our_own_loop(decode, form):
    pipe = pipelines.stable_diffusion("v_prediction")
    schedule = make_schedule("power", 4, SD, solver="unipc-bh2", order=3, guidance_scale=2.0)
    steps = tuple(replace(s, prediction=form) for s in schedule.steps)
    schedule = replace(schedule, steps=steps, decode=decode)
    noise, expected = own_loop(pipe, schedule)
    pipe.scheduler = StepScheduler.from_config(pipe.scheduler.config, schedule=schedule)
    found = run(pipe, noise, 4, guidance_scale=2.0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def with_numbers(schedule):
    """The same levels with a gain, weights and another time in some steps."""
    first, second, *others, last = schedule.steps
    second = replace(second, order=2, weights=(1.6, -0.5), gain=0.97)
    others = [replace(s, time_scale=0.9, gain=1.05) for s in others]
    last = replace(last, order=3, weights=(1.4, -0.3, -0.1), prediction="noise")
    return replace(schedule, steps=(replace(first, gain=1.02), second, *others, last))


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_gains_weights_and_times_of_steps_are_those_of_our_own_loop(family):
    pipe = pipelines.FAMILIES[family]()
    model = from_pipeline(pipe)
    plain = make_schedule("linspace", 5, model.noise, solver="ddim", order=1, guidance_scale=3.0)
    schedule = with_numbers(replace(plain, model=model.spec))
    noise, expected = own_loop(pipe, schedule)
    pipe.scheduler = StepScheduler.from_config(pipe.scheduler.config, schedule=schedule)
    found = run(pipe, noise, 5, guidance_scale=3.0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_images_differ_by_at_most_one_grey_value():
    pipe = pipelines.stable_diffusion("v_prediction")
    schedule = some_schedule(guidance_scale=3.0)
    model = from_pipeline(pipe)
    noise, latents = own_loop(pipe, schedule)
    pipe.scheduler = StepScheduler.from_config(pipe.scheduler.config, schedule=schedule)
    images = pipe(
        PROMPTS, num_inference_steps=5, latents=noise, guidance_scale=3.0, output_type="np"
    )
    expected = model.decode(latents).permute(0, 2, 3, 1).numpy()
    assert np.abs(images.images * 255 - expected).max() <= 1.0


def test_a_half_precision_pipeline_gets_half_precision_latents_back():
    scheduler = holding(some_schedule())
    x = torch.randn(1, 4, 8, 8, dtype=torch.bfloat16)
    output = scheduler.step(x, scheduler.timesteps[0], x)
    assert output.prev_sample.dtype == torch.bfloat16


def test_a_learned_variance_is_not_used():
    x, output = torch.randn(2, 4, 8, 8), torch.randn(2, 8, 8, 8)
    a, b = holding(some_schedule()), holding(some_schedule())
    with_variance = a.step(output, a.timesteps[0], x).prev_sample
    assert torch.equal(with_variance, b.step(output[:, :4], b.timesteps[0], x).prev_sample)


# ---- every family, against its stock scheduler on the same grid at order 1


def order_one_of(ddim, steps):
    """The schedule whose steps are at a stock scheduler's timesteps."""
    ddim.set_timesteps(steps)
    noise = NoiseSchedule.from_scheduler_config(ddim.config)
    sigmas = [noise.sigma(t) for t in ddim.timesteps.tolist()]
    return from_sigmas(sigmas, 0.0, [1.0] * steps, 1, "ddim")


@pytest.mark.parametrize("family", ["sdxl", "pixart-alpha", "pixart-sigma"])
def test_variance_preserving_families_equal_ddim_at_order_one(family):
    pipe = pipelines.FAMILIES[family]()
    betas = {k: pipe.scheduler.config[k] for k in ("beta_start", "beta_end", "beta_schedule")}
    ddim = diffusers.DDIMScheduler(**betas, clip_sample=False, timestep_spacing="trailing")
    schedule = order_one_of(ddim, 4)
    latents = torch.randn(2, 4, 16, 16, generator=torch.manual_seed(0))
    options = {**pipelines.CALL.get(family, {}), "guidance_scale": 3.0}
    pipe.scheduler = StepScheduler.from_config(pipe.scheduler.config, schedule=schedule)
    found = run(pipe, latents, 4, **options)
    unscaled = pipe.scheduler.init_noise_sigma  # DDIM does not multiply its noise
    pipe.scheduler = ddim
    expected = run(pipe, latents * unscaled, 4, **options)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("family", ["sd3", "flux-dev", "flux-schnell", "sana"])
def test_flow_families_equal_their_stock_schedulers_at_order_one(family):
    pipe = pipelines.FAMILIES[family]()
    channels = 4
    latents = torch.randn(2, channels, 16, 16, generator=torch.manual_seed(0))
    if family.startswith("flux"):
        latents = pipe._pack_latents(latents, 2, channels, 16, 16)
    options = {**pipelines.CALL.get(family, {}), "guidance_scale": 3.0}
    if family == "sana":  # its own rounds timesteps to whole numbers
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    expected = run(pipe, latents, 4, **options)
    sigmas = pipe.scheduler.sigmas.tolist()
    schedule = from_sigmas(sigmas[:-1], sigmas[-1], [1.0] * 4, 1, "ddim", FLOW)
    pipe.scheduler = StepScheduler.from_config(pipe.scheduler.config, schedule=schedule)
    found = run(pipe, latents, 4, **options)
    assert pipe.scheduler.sigmas.tolist() == pytest.approx(sigmas)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_dit_which_takes_neither_timesteps_nor_sigmas_runs_the_schedule():
    pipe = pipelines.dit()
    ddim = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    schedule = order_one_of(ddim, 4)

    def images(steps):
        generator = torch.Generator().manual_seed(0)
        arguments = {"generator": generator, "num_inference_steps": steps, "output_type": "pt"}
        return pipe([0, 2], guidance_scale=4.0, **arguments).images

    pipe.scheduler = ddim
    expected = images(4)
    pipe.scheduler = StepScheduler.from_config(pipe.scheduler.config, schedule=schedule)
    torch.testing.assert_close(images(250), expected, rtol=0, atol=1 / 255)


def test_unconditional_pixels_equal_ddim_and_are_not_clipped():
    pipe = pipelines.ddpm()
    assert pipe.scheduler.config.clip_sample
    ddim = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    schedule = order_one_of(ddim, 4)
    images = []
    for scheduler in (ddim, StepScheduler.from_config(pipe.scheduler.config, schedule=schedule)):
        pipe.scheduler = scheduler
        generator = torch.Generator().manual_seed(0)
        images.append(pipe(2, generator, num_inference_steps=4, output_type="pt").images)
    torch.testing.assert_close(*images, rtol=0, atol=1 / 255)


def test_ddim_pipeline_swaps_any_scheduler_for_its_own():
    """Why it is «not possible» in the table of docs/pipelines.md."""
    pipe = pipelines.ddim()
    made = diffusers.DDIMPipeline(pipe.unet, holding(some_schedule()))
    assert isinstance(made.scheduler, diffusers.DDIMScheduler)


def test_flux_rounds_the_timestep_to_the_dtype_of_its_latents():
    """Why a bfloat16 FLUX is not exact in the table of docs/pipelines.md."""
    pipe = pipelines.flux(True).to(torch.bfloat16)
    schedule = from_sigmas([1.0, 0.7137], 0.0, [3.0] * 2, 1, "ddim", FLOW)
    pipe.scheduler = StepScheduler.from_config(pipe.scheduler.config, schedule=schedule)
    seen = []
    pipe.transformer.register_forward_pre_hook(
        lambda _net, _args, kwargs: seen.append(kwargs["timestep"][0].item()), with_kwargs=True
    )
    latents = torch.zeros(1, 64, 16, dtype=torch.bfloat16)
    run(pipe, latents, 2, height=32, width=32)
    assert seen[1] != pytest.approx(0.7137, abs=1e-5)
    assert seen[1] == pytest.approx(0.7137, abs=3e-3)


# ---- image-to-image


def test_image_to_image_starts_mid_schedule_at_order_one():
    """From step 2 it is the schedule of the last three steps, whose first stands alone."""
    pipe = pipelines.stable_diffusion("v_prediction")
    schedule = some_schedule(order=2, solver="unipc-bh2")
    image = torch.rand(1, 3, 32, 32, generator=torch.manual_seed(1))
    results = []
    first, *others = schedule.steps[2:]
    alone = replace(first, order=1, corrector=False)
    short = replace(schedule, steps=(alone, *others))
    for held, strength in ((schedule, 0.6), (short, 1.0)):
        scheduler = StepScheduler.from_config(pipe.scheduler.config, schedule=held)
        parts = {**pipe.components, "scheduler": scheduler}
        later = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
        later.set_progress_bar_config(disable=True)
        with torch.no_grad():
            results.append(
                later(
                    "a bag",
                    image=image,
                    strength=strength,
                    num_inference_steps=held.num_steps,
                    generator=torch.Generator().manual_seed(2),
                    output_type="latent",
                ).images
            )
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    assert results[0].isfinite().all()


def test_image_to_image_with_more_steps_than_the_schedule_says_which_number_to_pass():
    scheduler = holding(some_schedule())
    with pytest.raises(
        ValueError, match="begin_index must be 0 to 4, got 10.*num_inference_steps=5"
    ):
        scheduler.set_begin_index(10)


def test_noise_is_added_as_stock_schedulers_add_it():
    x, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.manual_seed(0))
    t = torch.tensor([0, 321, 999])
    torch.testing.assert_close(
        without_schedule().add_noise(x, noise, t), stock().add_noise(x, noise, t)
    )
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    mine = StepScheduler.from_config(flow.config)
    torch.testing.assert_close(
        mine.scale_noise(x, flow.timesteps[[1, 300, 998]], noise),
        flow.scale_noise(x, flow.timesteps[[1, 300, 998]], noise),
    )


@pytest.mark.parametrize("t", [0.25, 500.5, 998.75])
def test_noise_between_timesteps_is_that_of_the_noise_schedule(t):
    noised = without_schedule().add_noise(torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([t]))
    sigma = NoiseSchedule.from_scheduler_config(stock().config).sigma(t)
    assert noised.item() == pytest.approx(sigma / np.sqrt(1 + sigma**2), rel=1e-5)


# ---- the scheduler alone


def test_the_rows_are_plain_json_and_the_network_gets_fractional_timesteps():
    rows = plan(some_schedule(order=2), stock().config)
    assert json.loads(json.dumps(rows)) == rows
    scheduler = holding(some_schedule(order=2))
    noise = NoiseSchedule.from_scheduler_config(stock().config)
    expected = [noise.timestep(step.sigma) for step in some_schedule().steps]
    assert scheduler.timesteps.tolist() == pytest.approx(expected)
    assert scheduler.timesteps.dtype == torch.float32
    assert any(t != round(t) for t in scheduler.timesteps.tolist())


def test_a_schedule_comes_as_an_object_as_json_or_as_rows():
    schedule = some_schedule()
    rows = plan(schedule, stock().config)
    for given in (schedule, json.loads(schedule.to_json()), rows):
        assert holding(given).config.schedule == rows


def test_another_number_of_steps_is_ignored_with_a_warning():
    scheduler = holding(some_schedule())
    with warned() as messages:
        scheduler.set_timesteps(50)
        scheduler.set_timesteps(5)
        scheduler.set_timesteps(sigmas=[0.5], mu=1.2)
    assert messages == ["num_inference_steps=50 is ignored: the schedule has 5 steps."]
    assert scheduler.num_inference_steps == 5


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"guidance_scale": 2.0}, "varies the guidance scale"),
        ({"free_u": {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}}, "uses Free-U"),
        ({"guidance_rescale": 0.7}, "rescales guidance"),
    ],
)
def test_what_a_scheduler_leaves_to_guided_is_said(change, what):
    data = json.loads(some_schedule().to_json())
    data["steps"][1] |= change
    for schedule in (data, Schedule.from_json(json.dumps(data))):
        with warned() as messages:
            holding(schedule)
        assert [what in message for message in messages] == [True]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (from_sigmas([4.0, 1.0], 0.0, [1, 1], 2, "heun"), "heun calls the network twice a step"),
        (
            Schedule((Step(4.0), Step(1.0)), golden_noise=GoldenNoise(3.0, 5.0)),
            "golden noise calls the network before the first step",
        ),
        (
            Schedule((Step(4.0), Step(1.0)), golden_noise=LearnedNoise("0123456789abcdef")),
            "learned golden noise is made of the noise and the prompt",
        ),
        (Schedule((Step(4.0, analytic=0.9), Step(1.0))), "an analytic first step calls no network"),
        (Schedule((Step(1.0),), model=FLOW), "the pipeline's prediction type is epsilon"),
        (Schedule((Step(20.0),)), "step 0: sigma 20 is above the model's highest"),
        (
            Schedule((Step(1.0),), model=SD.spec("sd", "v_prediction")),
            "the schedule was made for prediction type 'v_prediction', but the model has 'epsilon'",
        ),
        (
            Schedule((Step(1.0),), model=ModelSpec("sd", "epsilon", (1.0, 2.0))),
            "the schedule was made for a noise schedule with sigmas 1, 2",
        ),
    ],
)
def test_a_schedule_that_it_cannot_execute_is_refused(schedule, message):
    with pytest.raises(UserError, match=message) as error:
        holding(schedule)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (stock(rescale_betas_zero_snr=True), "rescale_betas_zero_snr does not go with .* epsilon"),
        (stock(thresholding=True), "thresholding of the pipeline's scheduler is not supported"),
        (diffusers.CMStochasticIterativeScheduler(), "neither betas, nor EDM's levels, nor a flow"),
        (diffusers.EulerDiscreteScheduler(timestep_type="continuous"), "timestep_type of the"),
        (diffusers.FlowMatchEulerDiscreteScheduler(1), "num_train_timesteps .* must be 1000, got"),
    ],
)
def test_a_model_that_it_does_not_know_is_refused(scheduler, message):
    with pytest.raises(ValueError, match=message):
        StepScheduler.from_config(scheduler.config)


def test_rows_for_another_prediction_type_are_refused():
    rows = plan(some_schedule(), stock().config)
    with pytest.raises(ValueError, match="rows are for epsilon, .* is v_prediction"):
        holding(rows, "v_prediction")


def test_steps_out_of_turn_are_refused():
    x = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match="call set_timesteps before step"):
        without_schedule().step(x, 0, x)
    scheduler = holding(some_schedule(2))
    for t in scheduler.timesteps:
        scheduler.step(x, t, x)
    with pytest.raises(ValueError, match="all 2 steps are taken"):
        scheduler.step(x, 0, x)
    with pytest.raises(ValueError, match="num_inference_steps must be at least 1, got None"):
        without_schedule().set_timesteps()
