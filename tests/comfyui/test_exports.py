"""What `stepsample export --to comfyui` writes, through ComfyUI's own nodes and samplers."""

import json
from dataclasses import replace
from math import sqrt

import engine
import flows
import pytest
from cases import (
    ALL,
    EXPORTED,
    HEUN,
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

from stepsampler.formats import export
from stepsampler.grids import whole_timesteps
from stepsampler.solvers import tableau


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


@pytest.mark.parametrize("name", EXPORTED)
def test_on_whole_timesteps_only_the_start_is_another(name):
    """What `--whole-timesteps` is for: core nodes tell the network what the file says."""
    schedule, prompt = whole_timesteps(ALL[name], TINY.noise, spread=True), next(iter(PROMPTS))
    nodes, model = json.loads(export(schedule, "comfyui").text), comfy_model()
    latents = engine.run(nodes, model, *prompts_of(prompt), PROMPTS[prompt], SHAPE) * SCALE
    first = schedule.steps[0].sigma
    at_the_top = first == pytest.approx(TINY.noise.sigma_max, rel=1e-5)
    start = sqrt(1 + first**2) / first if at_the_top else 1.0
    assert distance(latents, ours(schedule, prompt, start=start)) < tolerance(schedule, prompt)
    assert model.model.diffusion_model.times == [
        round(TINY.noise.timestep(s)) for s in called(schedule)
    ]


def called(schedule):
    return [row.step.sigma for row in tableau(schedule)]


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


def test_guidance_per_step_of_heun_is_another_image_in_core_nodes():
    """Which have it by sigma: the second call of a step gets the guidance of the next one."""
    assert HEUN not in EXPORTED
    schedule = ALL[HEUN]
    orders = tuple(replace(step, order=1) for step in schedule.steps)
    nodes = json.loads(export(replace(schedule, solver="ddim", steps=orders), "comfyui").text)
    nodes["KSamplerSelect"]["sampler_name"] = "heun"
    prompt = next(iter(PROMPTS))
    latents = engine.run(nodes, comfy_model(), *prompts_of(prompt), PROMPTS[prompt], SHAPE) * SCALE
    assert distance(latents, ours(schedule, prompt, as_comfyui=True)) > 0.3


@pytest.mark.parametrize("name", flows.FLOWS)
def test_flow_schedules_are_the_same_in_core_nodes(name):
    kind, schedule = flows.FLOWS[name]
    nodes = json.loads(export(schedule, "comfyui").text)
    model = flows.model(kind)
    sides = (engine.conditioning(side) for side in flows.sides())
    latents = engine.run(nodes, model, *sides, flows.SEED, flows.SHAPE)
    value = distance(latents, flows.latents(schedule))
    assert measured("core", f"flows: {name}", value) < flows.TOLERANCE
    assert model.model.diffusion_model.passes == schedule.passes
