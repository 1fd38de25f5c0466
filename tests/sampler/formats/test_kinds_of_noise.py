"""Zero terminal SNR and EDM's preconditioning in other tools' words."""

import json
from dataclasses import replace

import diffusers
import numpy as np
import pipelines
import pytest

from stepsampler import UserError, formats
from stepsampler.cli.display import describe
from stepsampler.formats import Target
from stepsampler.generate import generate, seeded_noise
from stepsampler.grids import from_sigmas
from stepsampler.models import from_pipeline
from stepsampler.noise import EDMSchedule, NoiseSchedule
from stepsampler.scheduler import StepScheduler

V = "v_prediction"
PLAIN = NoiseSchedule.scaled_linear()
NOISES = {
    "zero": (PLAIN.zero_terminal_snr(), V),
    "x0": (PLAIN.zero_terminal_snr(), "sample"),
    "playground": (EDMSchedule(0.002, 80.0, 0.5), "epsilon"),
    "cosxl": (EDMSchedule(0.002, 120.0, 1.0, None), V),
}
SAMPLING = {
    "zero": ("ModelSamplingDiscrete", {"sampling": V, "zsnr": True}),
    "x0": ("ModelSamplingDiscrete", {"sampling": "x0", "zsnr": True}),
    "playground": (
        "ModelSamplingContinuousEDM",
        {"sampling": "edm_playground_v2.5", "sigma_max": 80.0, "sigma_min": 0.002},
    ),
    "cosxl": (
        "ModelSamplingContinuousEDM",
        {"sampling": V, "sigma_max": 120.0, "sigma_min": 0.002},
    ),
}
PROMPTS, SEEDS = ["a photo of a sneaker", "bag"], (3, 4)


def schedule(name, scales=(3.0, 3.0, 3.0, 3.0), order=2):
    noise, kind = NOISES[name]
    times = [noise.last, 700, 400, 100]
    sigmas = [noise.sigma(t) for t in times]
    return from_sigmas(sigmas, 0.0, scales, order, model=noise.spec("sdxl", kind))


def target(name):
    noise, kind = NOISES[name]
    return Target(noise, noise.spec("sdxl", kind))


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("scales", [(3.0,) * 4, (1.0, 4.0, 4.0, 1.0)])
@pytest.mark.parametrize("to", ["comfyui", "comfyui-workflow"])
def test_comfyui_is_told_the_kind_of_noise_and_tells_it_back(name, scales, to):
    made = schedule(name, scales)
    text = formats.export(made, to).text
    data = json.loads(text)
    kind, inputs = SAMPLING[name]
    if to == "comfyui":
        assert data[kind] == inputs
    else:
        (node,) = (node for node in data.values() if node["class_type"] == kind)
        assert node["inputs"].pop("model") == ["1", 0]
        assert node["inputs"] == inputs
    assert formats.read(text, "comfyui", target(name)) == made
    others = [other for other in NOISES if other != name]
    for wrong in others:
        with pytest.raises(UserError, match="name (it|another)|is not the model's"):
            formats.read(text, "comfyui", target(wrong))
    plain = Target(PLAIN, PLAIN.spec("sdxl", NOISES[name][1]))
    with pytest.raises(UserError, match="name it with|zsnr is True, but the model has no zero"):
        formats.read(text, "comfyui", plain)


def test_a_page_of_comfyui_with_the_highest_sigma_of_its_own_is_read():
    text = json.dumps(
        {
            "ManualSigmas": {"sigmas": "4518.7578, 10.0, 2.0, 0.0"},
            "ModelSamplingDiscrete": {"sampling": V, "zsnr": True},
        }
    )
    made = formats.read(text, "comfyui", target("zero"))
    model = pipelines.stable_diffusion(V)
    model.scheduler = diffusers.DDIMScheduler.from_config(
        model.scheduler.config, rescale_betas_zero_snr=True
    )
    from_pipeline(model).check(replace(made, model=None))


def test_no_node_says_another_sigma_data():
    noise = EDMSchedule(0.002, 80.0, 0.7)
    made = from_sigmas([80.0, 1.0], 0.0, [1.0] * 2, 1, "ddim", noise.spec("sdxl", "epsilon"))
    with pytest.raises(UserError, match="cannot hold EDM's preconditioning with sigma_data 0.7"):
        formats.export(made, "comfyui")


@pytest.mark.parametrize(
    ("name", "said"), [("zero", "zero terminal SNR"), ("cosxl", "EDM's preconditioning")]
)
def test_sd_cpp_cannot_hold_it(name, said):
    with pytest.raises(UserError, match=f"sd.cpp cannot hold {said}"):
        formats.export(schedule(name), "sd.cpp")


@pytest.mark.parametrize("name", ["zero", "x0"])
@pytest.mark.parametrize("to", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_stock_schedulers_make_our_images(name, to):
    made = schedule(name, order=1 if to.startswith("Euler") else 2)
    text = formats.export(made, f"diffusers:{to}").text
    data = json.loads(text)
    assert data["config"]["rescale_betas_zero_snr"] is True
    again = formats.read(text, f"diffusers:{to}", target(name))
    assert again.sigmas == pytest.approx(made.sigmas, rel=1e-9)
    plain = Target(PLAIN, PLAIN.spec("sdxl", V))
    with pytest.raises(UserError, match="rescale_betas_zero_snr is that of another model"):
        formats.read(text, f"diffusers:{to}", plain)
    pipe = pipelines.FAMILIES["sdxl"]()
    kind = NOISES[name][1]
    config = pipe.scheduler.config
    pipe.scheduler = diffusers.DDIMScheduler.from_config(
        config, rescale_betas_zero_snr=True, prediction_type=kind
    )
    model = from_pipeline(pipe)
    (batch,) = generate(model, made, PROMPTS, SEEDS)
    pipe.scheduler = getattr(diffusers, to).from_config(
        config, prediction_type=kind, **data["config"]
    )
    found = pipe(
        PROMPTS,
        latents=seeded_noise(SEEDS, model.shape),
        guidance_scale=data["guidance_scale"],
        output_type="np",
        **data["call"],
    ).images
    ours = batch.images.permute(0, 2, 3, 1).numpy()
    assert np.abs(found * 255 - ours).max() <= 1.0


@pytest.mark.parametrize(
    ("name", "to"),
    [("playground", "EulerDiscreteScheduler"), ("cosxl", "DPMSolverMultistepScheduler")],
)
def test_stock_schedulers_do_not_take_levels_of_edm(name, to):
    with pytest.raises(UserError, match="has no levels of EDM, and diffusers' EDM schedulers chan"):
        formats.export(schedule(name, order=1), f"diffusers:{to}")


def test_continuous_timesteps_of_euler_make_our_images_of_a_cosxl():
    made = schedule("cosxl", order=1)
    exported = formats.export(made, "diffusers:EulerDiscreteScheduler")
    assert exported.lost == ()
    data = json.loads(exported.text)
    again = formats.read(exported.text, "diffusers:EulerDiscreteScheduler", target("cosxl"))
    assert again.sigmas == pytest.approx(made.sigmas, rel=1e-9)
    for other in ("playground", "zero"):
        with pytest.raises(UserError, match="timestep_type continuous is that of another model"):
            formats.read(exported.text, "diffusers:EulerDiscreteScheduler", target(other))
    plain = formats.export(schedule("zero", order=1), "diffusers:EulerDiscreteScheduler").text
    with pytest.raises(UserError, match="timestep_type discrete is that of another model|rescale_"):
        formats.read(plain, "diffusers:EulerDiscreteScheduler", target("cosxl"))
    pipe = pipelines.FAMILIES["sdxl"]()
    pipe.scheduler = diffusers.EDMEulerScheduler(
        sigma_min=0.002, sigma_max=120.0, sigma_data=1.0, prediction_type=V
    )
    model = from_pipeline(pipe)
    (batch,) = generate(model, made, PROMPTS, SEEDS)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, **data["config"]
    )
    found = pipe(
        PROMPTS,
        latents=seeded_noise(SEEDS, model.shape),
        guidance_scale=data["guidance_scale"],
        output_type="np",
        **data["call"],
    ).images
    ours = batch.images.permute(0, 2, 3, 1).numpy()
    assert np.abs(found * 255 - ours).max() <= 1.0


@pytest.mark.parametrize("name", NOISES)
def test_the_config_of_a_step_scheduler_says_the_kind_of_noise(name):
    made = schedule(name)
    text = formats.export(made, "diffusers:StepScheduler").text
    scheduler = StepScheduler.from_config(json.loads(text))
    scheduler.set_timesteps(4)
    noise = NOISES[name][0]
    times = [noise.network_time(step.sigma) for step in made.steps]
    assert scheduler.timesteps.tolist() == pytest.approx(times, rel=1e-4)
    assert scheduler.edm == isinstance(noise, EDMSchedule)
    assert scheduler.config.rescale_betas_zero_snr == (not scheduler.edm)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("zero", "for sdxl (v_prediction, zero terminal SNR)"),
        ("cosxl", "for sdxl (v_prediction, EDM with sigma_data 1)"),
        ("playground", "for sdxl (epsilon, EDM with sigma_data 0.5)"),
    ],
)
def test_show_says_it(name, said):
    lines = describe(schedule(name)).splitlines()
    assert said in lines[0]
    noise = NOISES[name][0]
    assert lines[2].split()[1] == f"{noise.network_time(noise.sigma_max):.2f}"
