"""What `stepsample export --to comfyui` writes, through ComfyUI's own nodes and samplers."""

import json
from math import sqrt

import engine
import pytest
import torch
from cases import (
    ALL,
    EXPORTED,
    PROMPTS,
    SCALE,
    SHAPE,
    TINY,
    comfy_model,
    distance,
    measured,
    ours,
    prompts_of,
    tolerance,
)

from stepsampler.denoiser import GuidedDenoiser
from stepsampler.formats import export
from stepsampler.generate import seeded_noise
from stepsampler.grids import from_sigmas
from stepsampler.noise import FlowSchedule
from stepsampler.presets import MODELS, preset
from stepsampler.sample import sample


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_core_nodes_make_our_latents_from_their_start_at_their_timesteps(name, prompt):
    schedule, model = ALL[name], comfy_model()
    network = model.model.diffusion_model
    nodes = json.loads(EXPORTED[name])
    latents = engine.run(nodes, model, *prompts_of(prompt), PROMPTS[prompt], SHAPE) * SCALE
    measured("core", name, distance(latents, ours(schedule, prompt)))
    allowed = distance(latents, ours(schedule, prompt, as_comfyui=True))
    assert measured("allowed", name, allowed) < tolerance(schedule, prompt)
    assert network.passes == schedule.passes
    assert all(t == round(t) for t in network.times)


def test_that_start_and_those_timesteps_are_no_trifle():
    """What the documentation says of them: neither alone explains the difference."""
    prompt = next(iter(PROMPTS))
    schedule = ALL["studies: tiny-3-steps"]
    assert schedule.steps[0].sigma == pytest.approx(TINY.noise.sigma_max)
    theirs, mine = ours(schedule, prompt, as_comfyui=True), ours(schedule, prompt)
    start = sqrt(1 + schedule.steps[0].sigma ** 2) / schedule.steps[0].sigma
    assert start == pytest.approx(1.00234, abs=1e-5)
    assert distance(theirs, mine) > 3e-3
    assert distance(theirs, ours(schedule, prompt, start=start)) > 1e-3


def toy(x, t, context, guidance):
    """A flow that is linear neither in x nor in time; `t` from 0 to 1."""
    strength = context.mean((1, 2)).view(-1, 1, 1, 1)
    scale = 0.1 if guidance is None else guidance.view(-1, 1, 1, 1) / 10
    return torch.tanh(x * (1 + t.view(-1, 1, 1, 1))) + strength * torch.cos(x) + scale * x


FLOWS = {
    "oss-flux-10": ("FLUX", preset("oss-flux-10").schedule),
    "flux": ("FLUX", from_sigmas([1.0, 0.8, 0.55, 0.3], 0.0, [3.5] * 4, 1, "ddim", MODELS["flux"])),
    "sd3": ("FLOW", from_sigmas([1.0, 0.9, 0.75, 0.5], 0.0, [5.0] * 4, 1, "ddim", MODELS["sd3"])),
    "sd3 heun": (
        "FLOW",
        from_sigmas([1.0, 0.9, 0.75, 0.5], 0.0, [5.0] * 4, 2, "heun", MODELS["sd3"]),
    ),
    "sd3 ipndm": (
        "FLOW",
        from_sigmas([1.0, 0.9, 0.75, 0.5, 0.2], 0.0, [5.0] * 5, 4, "ipndm", MODELS["sd3"]),
    ),
}


def flow_sides(seed):
    """Conditions of a prompt and of none."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 7, 12, generator=generator) for _ in range(2)]


def flow_model(kind):
    per_time = 1000 if kind == "FLOW" else 1  # of what ComfyUI tells SD3 and FLUX
    settings = {"shift": 3.0 if kind == "FLOW" else 1.15}
    return engine.patcher(
        lambda x, t, context, guidance: toy(x, t / per_time, context, guidance),
        kind,
        settings,
        engine.comfy.latent_formats.LatentFormat,
    )


def flow_latents(schedule, seed):
    cond, uncond = flow_sides(seed)

    def network(x, time, condition):
        at = torch.full((len(x),), time / 1000)
        return toy(x, at, condition["context"], condition.get("guidance"))

    denoise = GuidedDenoiser(
        network,
        FlowSchedule(),
        "flow_prediction",
        {"context": cond},
        {"context": uncond},
        schedule.guidance == "distilled",
    )
    return sample(denoise, seeded_noise([seed], (4, 8, 8)), schedule)


@pytest.mark.parametrize("name", FLOWS)
def test_flow_schedules_are_the_same_in_core_nodes(name):
    kind, schedule = FLOWS[name]
    nodes = json.loads(export(schedule, "comfyui").text)
    model = flow_model(kind)
    positive, negative = (engine.conditioning(side) for side in flow_sides(3))
    latents = engine.run(nodes, model, positive, negative, 3, (4, 8, 8))
    value = distance(latents, flow_latents(schedule, 3))
    assert measured("core", f"flows: {name}", value) < 5e-6
    assert model.model.diffusion_model.passes == schedule.passes
