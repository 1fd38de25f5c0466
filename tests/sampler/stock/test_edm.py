"""EDM's preconditioning (Karras et al. 2022), on the stock classes and against their schedulers."""

from dataclasses import replace

import diffusers
import numpy as np
import pipelines
import pytest
import torch
from schedulers import SD

from stepsampler import ModelSpec, Schedule, ScheduleError, Step, UserError
from stepsampler.generate import generate, seeded_noise
from stepsampler.grids import GRIDS, from_sigmas, make_schedule
from stepsampler.guided import guided
from stepsampler.models import from_pipeline
from stepsampler.noise import EDMSchedule, noise_of, read_noise
from stepsampler.scheduler import StepScheduler

PROMPTS = ["a photo of a sneaker", "bag"]
SEEDS = (3, 4)
PLAYGROUND = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "prediction_type": "epsilon",
}
# Of CosineDPMSolverMultistepScheduler(), which needs torchsde
COSINE = {
    "sigma_min": 0.3,
    "sigma_max": 500,
    "sigma_data": 1.0,
    "sigma_schedule": "exponential",
    "prediction_type": "v_prediction",
    "rho": 7.0,
    "solver_order": 2,
}
COSXL = {
    "sigma_min": 0.002,
    "sigma_max": 120.0,
    "sigma_data": 1.0,
    "prediction_type": "v_prediction",
    "sigma_schedule": "exponential",
}
CONFIGS = {"playground": PLAYGROUND, "cosxl": COSXL}
EULER, DPM = diffusers.EDMEulerScheduler, diffusers.EDMDPMSolverMultistepScheduler


def pipeline(config, cls=EULER, **options):
    pipe = pipelines.FAMILIES["sdxl"]()
    pipe.scheduler = cls(**config, **options)
    return pipe


def stock_images(pipe, first, w=3.0, steps=5, **options):
    """From noise of the deviation `first`, whatever the scheduler multiplies it with."""
    pipe.scheduler.set_timesteps(steps)
    latents = seeded_noise(SEEDS, from_pipeline(pipe).shape)
    latents = latents * (first / pipe.scheduler.init_noise_sigma)
    made = pipe(
        PROMPTS,
        num_inference_steps=steps,
        latents=latents,
        guidance_scale=w,
        output_type="np",
        **options,
    )
    return made.images * 255


def our_images(pipe, schedule):
    (batch,) = generate(from_pipeline(pipe), schedule, PROMPTS, SEEDS)
    return batch.images.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("w", [1.0, 3.0])
@pytest.mark.parametrize(
    ("cls", "options", "solver", "order"),
    [
        (EULER, {}, "ddim", 1),
        (DPM, {"solver_order": 2}, "dpmpp-midpoint", 2),
        (DPM, {"solver_order": 2, "solver_type": "heun"}, "dpmpp-heun", 2),
        (DPM, {"solver_order": 3}, "dpmpp-midpoint", 3),
    ],
    ids=["Euler", "DPM++ 2", "DPM++ 2 heun", "DPM++ 3"],
)
def test_images_are_those_of_the_stock_scheduler(name, w, cls, options, solver, order):
    config = CONFIGS[name]
    pipe = pipeline(config, cls, **options)
    noise = from_pipeline(pipe).noise
    made = from_sigmas(noise.stock_sigmas(5), 0.0, [w] * 5, order, solver, lower_order_final=True)
    expected = stock_images(pipe, config["sigma_max"], w)
    np.testing.assert_allclose(pipe.scheduler.sigmas, made.sigmas, rtol=1e-5)
    assert np.abs(our_images(pipe, made) - expected).max() <= 1.0
    pipe.scheduler = StepScheduler.from_config(pipe.scheduler.config, schedule=made)
    assert np.abs(stock_images(pipe, config["sigma_max"], w) - expected).max() <= 1.0


# EulerDiscreteScheduler as the configs of CosXL and of Stable Video Diffusion have it
CONTINUOUS = {
    **pipelines.BETAS,
    "prediction_type": "v_prediction",
    "timestep_type": "continuous",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
ENDS = {"sigma_min": 0.002, "sigma_max": 120.0}
PLACED = {
    "karras": {**ENDS, "use_karras_sigmas": True},
    "exponential": {**ENDS, "use_exponential_sigmas": True},
    "karras between the betas": {"use_karras_sigmas": True},
    "betas": {"timestep_spacing": "linspace"},
}


def continuous(name):
    return diffusers.EulerDiscreteScheduler(**{**CONTINUOUS, **PLACED[name]})


@pytest.mark.parametrize("name", PLACED)
@pytest.mark.parametrize("sigma", [0.0291, 0.3, 1.0, 14.6])
def test_continuous_timesteps_of_euler_are_edms_preconditioning(name, sigma):
    """diffusers' own input, time and x0 at a level, and EDM's of sigma_data 1 (eq. 7), of -F."""
    theirs = continuous(name)
    noise, kind = read_noise(theirs.config)
    theirs.set_timesteps(sigmas=[sigma, 0.0])
    x, output = torch.randn(2, 1, 4, 8, 8, generator=torch.manual_seed(0), dtype=torch.float64)
    (time,) = theirs.timesteps
    told = theirs.scale_model_input(x, time)
    x0 = theirs.step(output, time, x).pred_original_sample
    ours = noise.scales(sigma, kind)
    assert float(time) == pytest.approx(noise.network_time(sigma), abs=1e-6)
    torch.testing.assert_close(told, ours.c_in * x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        x0.double(), ours.c_skip * x + ours.c_out * output, rtol=1e-5, atol=1e-5
    )
    assert noise.sigma_data == 1.0


@pytest.mark.parametrize("w", [1.0, 3.0])
@pytest.mark.parametrize("name", PLACED)
def test_images_are_those_of_euler_with_continuous_timesteps(name, w):
    pipe = pipeline({}, lambda: continuous(name))
    model = from_pipeline(pipe)
    pipe.scheduler.set_timesteps(5)
    sigmas = [float(s) for s in pipe.scheduler.sigmas]
    if name in ("karras", "exponential"):
        np.testing.assert_allclose(model.noise.stock_sigmas(5), sigmas[:-1], rtol=1e-5)
        assert (model.noise.sigma_min, model.noise.sigma_max) == tuple(ENDS.values())
    made = from_sigmas(sigmas[:-1], 0.0, [w] * 5, 1, "ddim", model.spec)
    expected = stock_images(pipe, sigmas[0], w)
    assert np.abs(our_images(pipe, made) - expected).max() <= 1.0
    latents = seeded_noise(SEEDS, model.shape)
    with guided(pipe, made):
        found = pipe(PROMPTS, num_inference_steps=5, latents=latents, output_type="np").images
    assert np.abs(found * 255 - expected).max() <= 1.0
    theirs = pipe.scheduler.config
    pipe.scheduler = StepScheduler.from_config(theirs, schedule=made)
    assert pipe.scheduler.config.sigma_data == 1.0
    assert read_noise(pipe.scheduler.config)[0] == model.noise
    assert np.abs(stock_images(pipe, sigmas[0], w) - expected).max() <= 1.0


def test_guidance_of_each_step_is_that_of_our_own_loop():
    pipe = pipeline(PLAYGROUND)
    made = make_schedule("karras", 4, from_pipeline(pipe).noise, solver="unipc-bh2", order=3)
    steps = [
        replace(s, guidance_scale=w, guidance_rescale=0.5 * (w > 1))
        for s, w in zip(made.steps, (1.0, 4.0, 2.0, 1.0), strict=True)
    ]
    made = replace(made, steps=tuple(steps))
    expected = our_images(pipe, made)
    latents = seeded_noise(SEEDS, from_pipeline(pipe).shape)
    with guided(pipe, made):
        found = pipe(PROMPTS, num_inference_steps=4, latents=latents, output_type="np").images
    assert np.abs(found * 255 - expected).max() <= 1.0


def test_latents_with_a_mean_and_a_deviation_are_decoded_as_the_stock_pipeline_does():
    pipe = pipeline(PLAYGROUND)
    pipe.vae.register_to_config(
        latents_mean=[-1.6, 1.2, -0.6, 0.4], latents_std=[8.4, 5.7, 6.6, 5.2], scaling_factor=0.5
    )
    made = make_schedule("karras", 5, from_pipeline(pipe).noise, solver="ddim", guidance_scale=3.0)
    made = replace(made, steps=tuple(replace(s, order=1) for s in made.steps))
    expected = stock_images(pipe, 80.0)
    assert np.abs(our_images(pipe, made) - expected).max() <= 1.0


def test_image_to_image_starts_as_the_stock_scheduler_does():
    config = EULER(**PLAYGROUND).config
    stock, steps = EULER(**PLAYGROUND), 6
    stock.set_timesteps(steps)
    sigmas = [float(s) for s in stock.sigmas]
    ours = StepScheduler.from_config(config, schedule=from_sigmas(sigmas[:-1], 0.0, [1] * 6, 1))
    x, noise, output = torch.randn(3, 1, 4, 8, 8, generator=torch.manual_seed(0))
    states = []
    for scheduler in (stock, ours):
        scheduler.set_begin_index(3)
        scheduler.is_scale_input_called = True
        t = scheduler.timesteps[3]
        start = scheduler.add_noise(x, noise, t[None])
        told = scheduler.scale_model_input(start, t)
        states.append((start, told, scheduler.step(output, t, start).prev_sample))
    for a, b in zip(*states, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_saved_scheduler_is_the_same_again(tmp_path):
    made = make_schedule("karras", 4, EDMSchedule())
    saved = StepScheduler.from_config(EULER(**PLAYGROUND).config, schedule=made)
    saved.save_pretrained(tmp_path)
    again = StepScheduler.from_pretrained(tmp_path)
    assert again.edm
    assert torch.equal(again.timesteps, saved.timesteps)
    torch.testing.assert_close(again.timesteps[0], torch.tensor(np.log(80.0) / 4).float())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_schedule_says_which_it_is_for(name):
    model = from_pipeline(pipeline(CONFIGS[name]))
    made = make_schedule("karras", 4, model.noise, model=model.spec)
    again = Schedule.from_json(made.to_json())
    assert again == made
    assert again.model.sigma_data == CONFIGS[name]["sigma_data"]
    found = noise_of(again)
    assert (found.sigma_max, found.sigma_data) == (model.noise.sigma_max, again.model.sigma_data)
    model.check(again)
    with pytest.raises(
        UserError, match="EDM's preconditioning .*, but the model has none of EDM's"
    ):
        from_pipeline(pipelines.FAMILIES["sdxl"]()).check(
            replace(again, model=replace(again.model, prediction_type="epsilon"))
        )


def test_without_preconditioning_the_file_is_as_before():
    spec = SD.spec("sdxl", "epsilon")
    assert "sigma_data" not in Schedule((Step(1.0),), model=spec).to_json()


@pytest.mark.parametrize("name", CONFIGS)
def test_levels_and_timesteps_are_inverse(name):
    noise, _ = read_noise(EULER(**CONFIGS[name]).config)
    for t in (0.0, 1.0, 333.3, 999.0, 1000.0):
        assert noise.timestep(noise.sigma(t)) == pytest.approx(t, abs=1e-6)
    assert noise.sigma(0) == pytest.approx(noise.sigma_min)
    assert noise.sigma(1000) == pytest.approx(noise.sigma_max)


def test_every_placement_can_be_made():
    for grid in GRIDS:
        if not grid.startswith("ays"):
            made = make_schedule(grid, 6, EDMSchedule())
            assert made.steps[0].sigma <= 80.0 * (1 + 1e-9)


def test_with_a_sigma_data_of_one_v_is_that_of_a_variance_preserving_model():
    edm = EDMSchedule(0.002, 120.0, 1.0)
    for sigma in (0.01, 1.0, 14.6):
        np.testing.assert_allclose(
            edm.scales(sigma, "v_prediction"), SD.scales(sigma, "v_prediction")
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: from_pipeline(pipeline(PLAYGROUND)).check(Schedule((Step(81.0),))),
            "above the mod",
        ),
        (
            lambda: read_noise(DPM(**{**PLAYGROUND, "prediction_type": "sample"}).config),
            "prediction_type must be one of epsilon, v_prediction, got 'sample'",
        ),
        (
            lambda: read_noise({**EULER().config, "sigma_min": 90.0}),
            "0 < sigma_min < sigma_max <= .* of the model's scheduler, got 90.0, 80.0, 0.5",
        ),
        (
            lambda: read_noise(COSINE),
            "neither betas, nor EDM's preconditioning",
        ),
        (
            lambda: read_noise(diffusers.CMStochasticIterativeScheduler().config),
            "neither betas, nor EDM's preconditioning",
        ),
        (
            lambda: read_noise(diffusers.EulerDiscreteScheduler(timestep_type="continuous").config),
            "timestep_type continuous of the model's scheduler goes with .* v_prediction alone, as",
        ),
        (
            lambda: read_noise({**continuous("karras").config, "sigma_max": 0.001}),
            "0 < sigma_min < sigma_max <= .* of the model's scheduler, got 0.002, 0.001, 1.0",
        ),
        *(
            (
                lambda high=high: read_noise({**continuous("karras").config, "sigma_max": high}),
                f"0 < sigma_min < sigma_max <= 1,000,000 .*, got 0.002, {shown}",
            )
            for high, shown in (
                (1e300, "1e.300"),
                (float("nan"), "nan"),
                (float("inf"), "inf"),
                ([1, 2], r"\[1, 2\]"),
                ("120", "120"),
                (True, "True"),
            )
        ),
        (
            lambda: read_noise({**continuous("karras").config, "timestep_type": "steady"}),
            "timestep_type of the model's scheduler must be discrete or continuous, got 'steady'",
        ),
        (
            lambda: read_noise({**diffusers.DDIMScheduler().config, "prediction_type": "v"}),
            "prediction_type must be one of epsilon, v_prediction, sample, got 'v'",
        ),
    ],
)
def test_what_is_not_known_is_refused(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_it_decodes_x_alone_and_wants_a_schedule():
    spec = ModelSpec("sdxl", "epsilon", (0.002, 80.0), 0.5)
    with pytest.raises(
        ScheduleError, match="decode of a model with EDM's preconditioning must be x"
    ):
        Schedule((Step(1.0),), 0.5, model=spec, decode="alpha-x")
    text = (
        Schedule((Step(1.0),), model=spec).to_json().replace('"sigma_data": 0.5', '"sigma_data": 0')
    )
    with pytest.raises(ScheduleError, match="model: sigma_data must be above 0, got 0"):
        Schedule.from_json(text)
    with pytest.raises(ValueError, match="levels of a diffusion model come in a schedule"):
        StepScheduler.from_config(EULER().config).set_timesteps(4)


def test_a_pipeline_that_takes_a_step_twice_is_refused():
    """As those of Cosmos 1, which look at the prediction first; and which start elsewhere."""
    made = make_schedule("karras", 4, EDMSchedule())
    scheduler = StepScheduler.from_config(EULER(**PLAYGROUND).config, schedule=made)
    x = torch.randn(1, 4, 8, 8)
    scheduler.step(x, scheduler.timesteps[0], x)
    scheduler._step_index -= 1
    with pytest.raises(ValueError, match="step 0 is taken twice"):
        scheduler.step(x, scheduler.timesteps[0], x)
    scheduler.set_timesteps()
    scheduler.step(x, scheduler.timesteps[0], x)
