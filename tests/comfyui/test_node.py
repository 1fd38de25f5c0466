"""Our node in ComfyUI's engine: with stepsampler beside it, and as a folder that is alone."""

import json
from dataclasses import replace

import engine
import flows
import pytest
import torch
from cases import (
    ALL,
    HEUN,
    PROMPTS,
    SCALE,
    SHAPE,
    TINY,
    WITH_FREE_U,
    comfy_model,
    condition,
    distance,
    measured,
    ours,
    prompts_of,
    tolerance,
)
from loaded import ALONE, BOTH, WITH, save

from stepsampler import formats
from stepsampler.formats import comfyui, common
from stepsampler.grids import from_sigmas
from stepsampler.presets import MODELS
from stepsampler.sample import sample
from stepsampler.schedule import SOLVERS
from stepsampler.solvers import tableau

PROMPT = next(iter(PROMPTS))


def run(node, name, prompt=PROMPT, sampler=None, model=None):
    positive, negative = prompts_of(prompt)
    parts = node.StepSchedule().make(model or comfy_model(), positive, name, negative)
    sigmas, its_sampler, guider = parts
    return engine.sample(guider, sampler or its_sampler, sigmas, PROMPTS[prompt], SHAPE) * SCALE


@pytest.mark.parametrize("name", [name for name in ALL if name not in WITH_FREE_U])
def test_the_node_makes_our_latents(place, name):
    schedule, model = ALL[name], comfy_model()
    network = model.model.diffusion_model
    latents = run(WITH, save(place, schedule), model=model)
    value = measured("node", name, distance(latents, ours(schedule, PROMPT)))
    assert value < tolerance(schedule, PROMPT)
    assert network.passes == schedule.passes
    calls = [row.step.sigma for row in tableau(schedule) if row.step.analytic is None]
    exact = [TINY.noise.timestep(sigma) for sigma in calls]
    assert network.times == pytest.approx(exact, abs=5e-3)


def runs_alone(schedule):
    """Whether ComfyUI has its rule, and the file nothing that only our loop knows."""
    lost = common.choose(comfyui.SAMPLERS, schedule)[1] + common.losses(schedule)
    return not set(lost) - {"guidance_rescale"}


@pytest.mark.parametrize("name", [name for name in ALL if name not in WITH_FREE_U])
def test_alone_it_runs_the_rules_of_comfyui_and_refuses_others_by_name(place, name):
    schedule = ALL[name]
    file = save(place, schedule)
    if not runs_alone(schedule):
        with pytest.raises(ValueError, match=r"s\.json cannot be used .* install stepsampler"):
            run(ALONE, file)
        return
    assert distance(run(ALONE, file), ours(schedule, PROMPT)) < tolerance(schedule, PROMPT)


def test_its_rules_are_those_of_stepsampler():
    assert set(ALONE.RULES.split()) == set(SOLVERS) - {"dpm-v3"}


def test_alone_it_chooses_the_sampler_that_the_export_names(place):
    held = [s for s in ALL.values() if not common.choose(comfyui.SAMPLERS, s)[1]]
    assert len(held) > 50
    for schedule in held:
        orders = [step.order for step in schedule.steps]
        rule = common.rule(schedule)
        name = ALONE.stock_sampler(rule, orders, schedule.final_sigma, schedule.flow)
        assert name == common.choose(comfyui.SAMPLERS, schedule)[0]


@BOTH
def test_heun_with_guidance_per_step_is_ours(place, node):
    """Both calls of a step have its guidance, though the second is at the sigma of the next."""
    schedule = ALL[HEUN]
    assert len({step.guidance_scale for step in schedule.steps}) == 2
    latents = run(node, save(place, schedule))
    assert distance(latents, ours(schedule, PROMPT)) < tolerance(schedule, PROMPT)


@BOTH
def test_free_u_needs_a_unet_of_comfyui(place, node):
    schedule = ALL["seed-sd: seed-sd-5-free"]
    with pytest.raises(ValueError, match="s.json uses Free-U, which only U-Nets with skips have"):
        run(node, save(place, schedule))


@BOTH
@pytest.mark.parametrize("name", flows.FLOWS)
def test_flow_models(place, node, name):
    kind, schedule = flows.FLOWS[name]
    value = distance(flow_run(place, node, kind, schedule), flows.latents(schedule))
    assert measured("node", f"flows: {name}", value) < flows.TOLERANCE


def flow_run(place, node, kind, schedule):
    positive, negative = (engine.conditioning(side) for side in flows.sides())
    model = flows.model(kind)
    parts = node.StepSchedule().make(model, positive, save(place, schedule), negative)
    sigmas, sampler, guider = parts
    latents = engine.sample(guider, sampler, sigmas, flows.SEED, flows.SHAPE)
    assert model.model.diffusion_model.passes == schedule.passes
    return latents


@BOTH
def test_distilled_guidance_of_each_step_and_noise_that_a_flow_leaves(place, node):
    """Which core nodes have no place for."""
    schedule = from_sigmas([1.0, 0.7, 0.4], 0.1, [1.0, 6.0, 2.0], 1, "ddim", MODELS["flux"])
    schedule = replace(schedule, guidance="distilled")
    latents = flow_run(place, node, "FLUX", schedule)
    assert distance(latents, flows.latents(schedule)) < flows.TOLERANCE
    constant = tuple(replace(step, guidance_scale=6.0) for step in schedule.steps)
    assert distance(latents, flows.latents(replace(schedule, steps=constant))) > 1e-2


@BOTH
def test_other_samplers_at_the_same_sigmas_get_the_guidance_of_their_step(place, node):
    schedule = ALL["made: ddim interval"]
    file = save(place, schedule)
    euler = engine.call("KSamplerSelect", "euler")
    assert distance(run(node, file, sampler=euler), ours(schedule, PROMPT)) < 1e-4
    elsewhere = engine.call("KSamplerSelect", "dpm_2")  # calls in the middle of steps
    with pytest.raises(ValueError, match="calls the network at sigma .* none of the schedule's"):
        run(node, file, sampler=elsewhere)


@BOTH
def test_a_run_cut_in_two_is_the_whole(place, node):
    """SplitSigmas, and the second half without new noise."""
    schedule = ALL["made: ddim interval"]
    positive, negative = prompts_of(PROMPT)
    parts = node.StepSchedule().make(comfy_model(), positive, save(place, schedule), negative)
    sigmas, sampler, guider = parts
    euler = engine.call("KSamplerSelect", "euler")
    half = engine.sample(guider, euler, sigmas[:4], PROMPTS[PROMPT], SHAPE)
    nothing = engine.nodes_custom_sampler.Noise_EmptyNoise()
    advanced = engine.NODES["SamplerCustomAdvanced"]
    end = advanced.execute(nothing, guider, euler, sigmas[3:], {"samples": half}).args[0]
    assert distance(end["samples"] * SCALE, ours(schedule, PROMPT)) < 1e-4
    if node is WITH:
        with pytest.raises(ValueError, match="runs all of it"):
            engine.sample(guider, sampler, sigmas[:4], PROMPTS[PROMPT], SHAPE)


def test_the_model_that_went_in_stays_as_it_was(place):
    model = comfy_model()
    before = type(model.get_model_object("model_sampling"))
    schedule = ALL["studies: tiny-3-steps"]
    run(WITH, save(place, schedule), model=model)
    assert type(model.get_model_object("model_sampling")) is before
    latents = engine.run(
        json.loads(formats.export(schedule, "comfyui").text), model, *prompts_of(PROMPT), 0, SHAPE
    )
    assert distance(latents * SCALE, ours(schedule, PROMPT, as_comfyui=True)) < 1e-4


@BOTH
@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("V_PREDICTION", {}, "for epsilon, but the model has v_prediction"),
        ("FLOW", {"shift": 3.0}, "for epsilon, but the model has flow_prediction"),
        ("EDM", {}, "for epsilon, but the model has epsilon with sigma_data 1"),
        ("V_PREDICTION_EDM", {}, "for epsilon, but the model has v_prediction with sigma_data 1"),
        ("EPS", {"linear_end": 0.02}, "for sigmas .*, but the model has"),
        ("EPS", {"zsnr": True}, "for sigmas .*, but the model has"),
    ],
)
def test_another_kind_of_model_is_refused(place, node, kind, settings, message):
    model = engine.patcher(lambda x, *_: x, kind, settings)
    with pytest.raises(ValueError, match=message):
        run(node, save(place, ALL["studies: tiny-3-steps"]), model=model)


@BOTH
def test_a_schedule_for_no_model_in_particular_is_for_no_flow(place, node):
    schedule = from_sigmas([1.0, 0.5], 0.0, [1.0, 1.0], 1, "ddim", None)
    with pytest.raises(ValueError, match="a flow model: a schedule for it must name one"):
        run(node, save(place, schedule), model=flows.model("FLOW"))
    assert distance(run(node, save(place, schedule)), ours(schedule, PROMPT)) < 1e-4


@BOTH
def test_a_start_above_the_model_is_refused(place, node):
    schedule = from_sigmas([20.0, 1.0], 0.0, [1.0, 1.0], 1, "ddim", None)
    with pytest.raises(ValueError, match="first sigma, 20, is above the model's highest, 14.61"):
        run(node, save(place, schedule))


@BOTH
def test_guidance_needs_a_negative_prompt_and_no_guidance_none(place, node):
    positive, _ = prompts_of(PROMPT)
    file = save(place, ALL["made: ddim"])
    with pytest.raises(ValueError, match="s.json has guided steps: connect a negative prompt"):
        node.StepSchedule().make(comfy_model(), positive, file)
    unguided = ALL["made: ddim unguided"]
    parts = node.StepSchedule().make(comfy_model(), positive, save(place, unguided))
    sigmas, sampler, guider = parts
    latents = engine.sample(guider, sampler, sigmas, PROMPTS[PROMPT], SHAPE) * SCALE
    assert distance(latents, ours(unguided, PROMPT)) < 1e-4


@BOTH
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "s.json"),
        ("[" * 5000, "s.json"),
        ("[1, 2]", "s.json"),
        ('{"format": "other/2"}', "expected format 'stepsearch.schedule/1', got 'other/2'"),
        ('{"format": "stepsearch.schedule/1", "solver": "ddim", "final_sigma": 0}', "steps"),
        (
            '{"format": "stepsearch.schedule/1", "solver": "ddim", "final_sigma": 0, "steps": '
            '[{"sigma": NaN, "guidance_scale": 1, "order": 1}]}',
            "NaN|nan",
        ),
        (
            '{"format": "stepsearch.schedule/1", "solver": "ddim", "final_sigma": 2, "steps": '
            '[{"sigma": 1, "guidance_scale": 1, "order": 1}]}',
            "fall",
        ),
        (
            '{"format": "stepsearch.schedule/1", "solver": "eular", "final_sigma": 0, "steps": '
            '[{"sigma": 1, "guidance_scale": 1, "order": 1}]}',
            "eular",
        ),
        (
            '{"format": "stepsearch.schedule/1", "solver": "ddim", "final_sigma": 0, "steps": '
            f'[{{"sigma": 1{"0" * 400}, "guidance_scale": 1, "order": 1}}]}}',
            "too large",
        ),
        (
            '{"format": "stepsearch.schedule/1", "solver": "ddim", "final_sigma": 0, "steps": '
            '[{"sigma": 1, "guidance_scale": 1, "order": 1, "time_scale": 0.9}]}',
            "time_scale",
        ),
        (" " * 1_000_001, "at most 1,000,000 bytes"),
    ],
)
def test_what_is_no_schedule_is_refused_by_name(place, node, text, message):
    (place / "s.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        run(node, "s.json")
    assert "s.json cannot be used as a schedule" in str(error.value)


@BOTH
@pytest.mark.parametrize("name", ["../outside.json", "/etc/passwd", "a/../../outside.json"])
def test_only_files_of_that_folder_are_read(place, node, name):
    ALL["made: ddim"].save(place.parent / "outside.json")
    with pytest.raises(FileNotFoundError, match="not found"):
        run(node, name)
    with pytest.raises(FileNotFoundError, match="not found"):
        node.StepSchedule.IS_CHANGED(schedule=name)
    assert node.StepSchedule.INPUT_TYPES()["required"]["schedule"] == ([],)


def test_noise_of_a_batch(place):
    """Two latents at once: each as ComfyUI's noise has it, through the same steps."""
    schedule = ALL["seed-sd: seed-sd-5"]
    positive, negative = prompts_of(PROMPT)
    parts = WITH.StepSchedule().make(comfy_model(), positive, save(place, schedule), negative)
    sigmas, sampler, guider = parts
    empty = {"samples": torch.zeros(2, *SHAPE)}
    noise = engine.call("RandomNoise", PROMPTS[PROMPT])
    out = engine.call("SamplerCustomAdvanced", noise, guider, sampler, sigmas, empty)["samples"]
    start = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(PROMPTS[PROMPT]))
    with torch.inference_mode():
        sides = [
            {k: v.expand(2, -1, -1) for k, v in condition(*side).items()}
            for side in ((PROMPT,), ("", True))
        ]
        mine = sample(TINY.denoiser(*sides), start, schedule)
    assert distance(out * SCALE, mine) < 1e-4
