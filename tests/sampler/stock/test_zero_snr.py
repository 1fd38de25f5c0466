"""Zero terminal SNR, as every stock scheduler has it: Lin et al. 2023, arXiv 2305.08891."""

import inspect
from dataclasses import replace

import diffusers
import numpy as np
import pipelines
import pytest
import torch
from schedulers import SD, stock

from stepsampler import Schedule, Step, UserError
from stepsampler.generate import generate, seeded_noise
from stepsampler.grids import from_sigmas, make_schedule
from stepsampler.guided import guided
from stepsampler.models import from_pipeline
from stepsampler.noise import NoiseSchedule, noise_of, read_noise
from stepsampler.scheduler import StepScheduler

PROMPTS = ["a photo of a sneaker", "bag"]
SEEDS = (3, 4)
OPTIONS = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
ZERO = {**pipelines.BETAS, **OPTIONS}
NOISE = SD.zero_terminal_snr()
DPM = {"algorithm_type": "dpmsolver++", "solver_order": 2, "timestep_spacing": "trailing"}


def pipeline(family="stable-diffusion", **options):
    pipe = pipelines.FAMILIES[family]()
    pipe.scheduler = diffusers.DDIMScheduler(**{**ZERO, **options}, clip_sample=False)
    return pipe


def stock_images(pipe, scheduler, steps, w=3.0, **options):
    pipe.scheduler = scheduler
    model = from_pipeline(pipe)
    latents = seeded_noise(SEEDS, model.shape)
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


def timesteps_of(scheduler, steps):
    scheduler.set_timesteps(steps)
    return [float(t) for t in scheduler.timesteps]


def test_levels_are_those_of_diffusers():
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    expected = torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0).numpy()
    np.testing.assert_allclose(NOISE.alphas_cumprod[:-1], expected[:-1], rtol=1e-9)
    assert expected[-1] == 0
    assert NOISE.sigma_max == pytest.approx(4096, abs=1e-3)
    euler = diffusers.EulerDiscreteScheduler(**ZERO)
    sigmas = (1 / euler.alphas_cumprod.double() - 1).sqrt()
    np.testing.assert_allclose([NOISE.sigma(t) for t in range(1000)], sigmas, rtol=2e-4)
    read, kind = read_noise(euler.config)
    assert kind == "v_prediction"
    np.testing.assert_allclose(read.alphas_cumprod, NOISE.alphas_cumprod, rtol=1e-3)


PATCHED = {"DPMSolverMultistep", "EulerAncestralDiscrete", "EulerDiscrete", "UniPCMultistep"}
# fmt: off
INFINITE = {
    "CogVideoXDDIM", "CogVideoXDPM", "DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel",
    "LCM", "TCD",
}
SILENT = {
    "DEISMultistep", "DPMSolverMultistepInverse", "DPMSolverSinglestep", "HeunDiscrete",
    "KDPM2AncestralDiscrete", "KDPM2Discrete", "LMSDiscrete", "PNDM", "RePaint", "SASolver",
}
# fmt: on


def test_what_each_stock_scheduler_makes_of_it():
    """Its last sigma, as docs/schedules.md says it; all keep the option in their config."""
    found: dict[float, set[str]] = {}
    for name in dir(diffusers):
        cls = getattr(diffusers, name)
        if not name.endswith("Scheduler") or "beta_schedule" not in parameters(cls):
            continue
        if name == "UnCLIPScheduler":
            continue  # has squaredcos_cap_v2 alone
        scheduler = cls.from_config(diffusers.DDIMScheduler(**ZERO).config)
        assert scheduler.config["rescale_betas_zero_snr"] is True
        last = float(scheduler.alphas_cumprod[-1])
        sigma = round((1 / last - 1) ** 0.5, 2) if last else np.inf
        found.setdefault(sigma, set()).add(name.removesuffix("Scheduler"))
    assert found == {4096.0: PATCHED, np.inf: INFINITE, 14.61: SILENT}


def parameters(cls):
    return inspect.signature(cls.__init__).parameters if isinstance(cls, type) else ()


@pytest.mark.parametrize(
    ("scheduler", "solver", "order"),
    [
        (diffusers.EulerDiscreteScheduler(**ZERO, timestep_spacing="trailing"), "ddim", 1),
        (diffusers.DPMSolverMultistepScheduler(**ZERO, **DPM), "dpmpp-midpoint", 2),
        (
            diffusers.DPMSolverMultistepScheduler(**ZERO, **DPM, solver_type="heun"),
            "dpmpp-heun",
            2,
        ),
        (
            diffusers.UniPCMultistepScheduler(
                **ZERO, solver_order=2, timestep_spacing="trailing", solver_type="bh2"
            ),
            "unipc-bh2",
            2,
        ),
        (
            diffusers.DDIMScheduler(**ZERO, clip_sample=False, timestep_spacing="trailing"),
            "ddim",
            1,
        ),
    ],
    ids=["Euler", "DPM++", "DPM++ heun", "UniPC", "DDIM, whose first sigma is infinite"],
)
@pytest.mark.parametrize("family", ["stable-diffusion", "sdxl"])
@pytest.mark.parametrize("w", [1.0, 3.0])
def test_images_are_those_of_the_stock_scheduler(scheduler, solver, order, family, w):
    pipe = pipeline(family)
    timesteps = timesteps_of(scheduler, 5)
    assert timesteps[0] == 999
    sigmas = [NOISE.sigma(t) for t in timesteps]
    schedule = from_sigmas(sigmas, 0.0, [w] * 5, order, solver, lower_order_final=True)
    expected = stock_images(pipe, scheduler, 5, w)
    assert np.abs(our_images(pipe, schedule) - expected).max() <= 1.0
    held = StepScheduler.from_config(scheduler.config, schedule=schedule)
    assert np.abs(stock_images(pipe, held, 5, w) - expected).max() <= 1.0


def test_guidance_of_each_step_is_that_of_our_own_loop():
    pipe = pipeline("sdxl")
    made = make_schedule("trailing", 4, NOISE, solver="unipc-bh2", order=3)
    scales = zip(made.steps, (4.0, 1.0, 2.0, 1.0), strict=True)
    made = replace(made, steps=tuple(replace(s, guidance_scale=w) for s, w in scales))
    expected = our_images(pipe, made)
    latents = seeded_noise(SEEDS, from_pipeline(pipe).shape)
    with guided(pipe, made):
        found = pipe(PROMPTS, num_inference_steps=4, latents=latents, output_type="np").images
    assert np.abs(found * 255 - expected).max() <= 1.0


@pytest.mark.parametrize("sigma", [4096.0, 4518.8, 1e6])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-midpoint", "unipc-bh2", "ipndm"])
def test_any_number_for_infinity_makes_the_same_images(sigma, solver):
    pipe = pipeline()
    schedule = make_schedule("trailing", 4, NOISE, solver=solver, guidance_scale=3.0)
    first = replace(schedule.steps[0], sigma=sigma)
    other = replace(schedule, steps=(first, *schedule.steps[1:]))
    assert np.abs(our_images(pipe, other) - our_images(pipe, schedule).astype(float)).max() <= 1


def test_one_step_is_what_the_network_predicts_of_noise_alone():
    pipe = pipeline()
    model = from_pipeline(pipe)
    noise = seeded_noise(SEEDS, model.shape)
    condition = model.encode(PROMPTS)
    found = model.denoiser(condition, None)(4096 * noise, Step(4096.0))
    expected = -model.network(noise, 999.0, condition)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_a_schedule_says_which_it_is_for(tmp_path):
    model = from_pipeline(pipeline())
    made = make_schedule("trailing", 4, model.noise, model=model.spec)
    again = Schedule.from_json(made.to_json())
    assert again == made
    assert again.model.noise[-1] == pytest.approx(4096, rel=1e-6)
    found = noise_of(again)
    assert isinstance(found, NoiseSchedule)
    assert found.sigma_max == NOISE.sigma_max
    theirs = replace(made.model, noise=(*made.model.noise[:-1], 4518.8))  # ComfyUI's last level
    assert theirs.mismatch(made.model) is None
    plain = from_pipeline(pipelines.stable_diffusion("v_prediction"))
    with pytest.raises(UserError, match=r"sigmas .*, 4096, but the model has .*, 14.61"):
        plain.check(made)
    with pytest.raises(UserError, match=r"sigmas .*, 14.61, but the model has .*, 4096"):
        model.check(make_schedule("trailing", 4, plain.noise, model=plain.spec))


def test_what_cannot_go_with_it_is_refused_by_name():
    with pytest.raises(UserError, match="does not go with a model that predicts epsilon"):
        from_pipeline(pipeline(prediction_type="epsilon"))
    with pytest.raises(ValueError, match="does not go with a prediction of epsilon"):
        StepScheduler.from_config(stock(rescale_betas_zero_snr=True).config)
    analytic = Schedule((Step(4096.0, analytic=0.95), Step(10.0)))
    with pytest.raises(UserError, match="no gain of an analytic step is right"):
        from_pipeline(pipeline()).check(analytic)


def test_betas_that_end_below_the_tools_number_still_fall():
    """DDPM's: half of alpha-bar of the level before."""
    noise = NoiseSchedule.linear().zero_terminal_snr()
    assert noise.sigma_max == pytest.approx(2**0.5 * noise.sigma(998), rel=1e-3)
