"""Zero terminal SNR and EDM's preconditioning in ComfyUI's engine, on a toy network."""

import json

import engine
import pytest
import torch
from comfy_extras import nodes_model_advanced
from loaded import BOTH, save

from stepsampler import formats
from stepsampler.denoiser import GuidedDenoiser
from stepsampler.generate import seeded_noise
from stepsampler.grids import from_sigmas
from stepsampler.noise import EDMSchedule, NoiseSchedule
from stepsampler.sample import sample

SEED, SHAPE = 3, (4, 8, 8)
ZERO = NoiseSchedule.scaled_linear().zero_terminal_snr()
KINDS = {
    "zero terminal SNR": (ZERO, "v_prediction", "V_PREDICTION", {"zsnr": True}),
    "Playground": (
        EDMSchedule(0.002, 80.0, 0.5),
        "epsilon",
        "EDM",
        {"sigma_data": 0.5, "sigma_max": 80.0, "sigma_min": 0.002},
    ),
    "CosXL": (
        EDMSchedule(0.002, 120.0, 1.0),
        "v_prediction",
        "V_PREDICTION_EDM",
        {"sigma_max": 120.0, "sigma_min": 0.002},
    ),
}


def toy(x, t, context, _guidance):
    strength = context.mean((1, 2)).view(-1, 1, 1, 1)
    return torch.tanh(x * (1 + t.view(-1, 1, 1, 1) / 1000)) + strength * torch.cos(x)


def sides():
    generator = torch.Generator().manual_seed(SEED)
    return [torch.randn(1, 7, 12, generator=generator) for _ in range(2)]


def made(name, scales=(3.0, 1.0, 5.0, 2.0), order=2):
    noise, kind, *_ = KINDS[name]
    sigmas = [noise.sigma(t) for t in (noise.last, 700, 400, 100)]
    return from_sigmas(sigmas, 0.0, scales, order, "dpmpp-midpoint", noise.spec("sdxl", kind))


def ours(name, schedule):
    noise, kind, *_ = KINDS[name]
    cond, uncond = sides()

    def network(x, time, condition):
        return toy(x, torch.full((len(x),), time), condition["c"], None)

    denoiser = GuidedDenoiser(network, noise, kind, {"c": cond}, {"c": uncond})
    return sample(denoiser, seeded_noise([SEED], SHAPE), schedule)


def model(name):
    _, _, kind, settings = KINDS[name]
    return engine.patcher(toy, kind, settings, engine.comfy.latent_formats.LatentFormat)


@BOTH
@pytest.mark.parametrize("name", KINDS)
def test_the_node_makes_our_latents(place, node, name):
    schedule = made(name)
    positive, negative = (engine.conditioning(side) for side in sides())
    parts = node.StepSchedule().make(model(name), positive, save(place, schedule), negative)
    sigmas, sampler, guider = parts
    found = engine.sample(guider, sampler, sigmas, SEED, SHAPE)
    torch.testing.assert_close(found, ours(name, schedule), rtol=0, atol=5e-4)


@BOTH
@pytest.mark.parametrize("name", KINDS)
def test_the_node_refuses_the_other_kinds(place, node, name):
    positive, negative = (engine.conditioning(side) for side in sides())
    file = save(place, made(name))
    for other in [*KINDS, "plain"]:
        if other == name:
            continue
        wrong = model(other) if other in KINDS else engine.patcher(toy, "V_PREDICTION")
        with pytest.raises(ValueError, match="the schedule is for .*, but the model has"):
            node.StepSchedule().make(wrong, positive, file, negative)


@pytest.mark.parametrize("name", KINDS)
def test_core_nodes_make_our_latents_of_an_export(name):
    """On a model that says nothing: the export's own node gives it its kind of noise."""
    schedule = made(name)
    nodes = json.loads(formats.export(schedule, "comfyui").text)
    patched = engine.patcher(toy, "EPS", None, engine.comfy.latent_formats.LatentFormat)
    for kind in ("ModelSamplingDiscrete", "ModelSamplingContinuousEDM"):
        if kind in nodes:
            node = getattr(nodes_model_advanced, kind)()
            (patched,) = node.patch(patched, **nodes[kind])
    if name == "Playground":  # its latents have a scale of their own, which the toy has not
        patched.add_object_patch("latent_format", engine.comfy.latent_formats.LatentFormat())
    positive, negative = (engine.conditioning(side) for side in sides())
    found = engine.run(nodes, patched, positive, negative, SEED, SHAPE)
    torch.testing.assert_close(found, ours(name, schedule), rtol=0, atol=2e-2)


def test_the_last_level_of_comfyui_is_another():
    sampling = model("zero terminal SNR").get_model_object("model_sampling")
    assert float(sampling.sigmas[-1]) == pytest.approx(4518.76, abs=0.01)
    levels = [ZERO.sigma(t) for t in range(999)]
    torch.testing.assert_close(sampling.sigmas[:-1], torch.tensor(levels), rtol=1e-3, atol=0)
