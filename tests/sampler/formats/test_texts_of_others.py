"""What people hand to import and export, and what is said of each."""

import json
import re

import pytest
from diffusers import DPMSolverMultistepScheduler
from exporting import baseline

from stepsampler import UserError
from stepsampler.formats import Target, export, read, reading
from stepsampler.noise import FlowSchedule, NoiseSchedule
from stepsampler.presets import MODELS, preset

SD = NoiseSchedule.scaled_linear()
TARGET = Target(SD, MODELS["sd15"], guidance_scale=7.5)
FLUX = Target(FlowSchedule(), MODELS["flux"], guidance_scale=1.0)
SAMPLER = {
    "class_type": "KSampler",
    "inputs": {
        "seed": 1,
        "steps": 4,
        "cfg": 7,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    },
}


@pytest.mark.parametrize(
    "text",
    [
        "tensor([14.6146, 5.0, 0.0], device='cuda:0')",
        "tensor([14.6146, 5.0, 0.0], dtype=torch.float16)",
        "sigmas = torch.tensor([14.6146, 5.0, 0.0])",
        "array([14.6146, 5.    , 0.    ])",
    ],
)
def test_a_list_as_python_prints_it(text):
    assert read(text, "comfyui", TARGET).sigmas == (14.6146, 5.0, 0.0)
    timesteps = text.replace("14.6146, 5.0, 0.0", "999, 500, 100").replace(
        "14.6146, 5.    , 0.    ", "999. , 500. , 100. "
    )
    assert len(read(timesteps, "diffusers", TARGET).steps) == 3


def test_a_run_of_comfyuis_history_has_its_workflow():
    run = {"prompt": [0, "id", {"3": SAMPLER}, {}, ["9"]], "outputs": {}, "status": {}}
    made = read(json.dumps({"3f2a": run}), "comfyui", TARGET)
    assert made == read(json.dumps({"3": SAMPLER}), "comfyui", TARGET)


@pytest.mark.parametrize(
    ("text", "source", "message"),
    [
        ("14.6, inf, 0", "comfyui", "ManualSigmas knows no 'inf'"),
        (json.dumps([{"3": SAMPLER}]), "comfyui", "got a list of them: give one"),
        (
            '{"1": {"class_type": "KSampler (Efficient)", "inputs": {}}}',
            "comfyui",
            r"one; not read: node 1 \(KSampler \(Efficient\)\)",
        ),
        (
            '{"nodes": [{"id": 1, "type": "KSampler"}], "links": [[1, 2]]}',
            "comfyui",
            "or a workflow: a value in it is of another kind",
        ),
        ("{\n 3", "comfyui", "not JSON at line 2, column 2"),
        ("1, 0", "comfyui:x", "comfyui has no kinds, got 'comfyui:x'"),
        ("--sigmas=5,1,0", "sd.cpp", "--sigmas and its value are two words there"),
        ("--sigmas 5,1,0 --cfg-scale=2", "sd.cpp", "--cfg-scale and its value are two"),
        ("--sigmas 5,nan,0", "sd.cpp", "'nan' is not finite"),
        ("--sigmas 5,1,0 --cfg-scale inf", "sd.cpp", "--cfg-scale must be a number, got 'inf'"),
        ('-p "a fox --sigmas 1,0"', "sd.cpp", "expected arguments .* with --sigmas"),
        ("-p --sigmas 5,1,0", "sd.cpp", "expected arguments .* with --sigmas"),
        ('{"scheduler": "EulerDiscreteScheduler"}', "diffusers", "guidance_scale: config is miss"),
        (
            '{"_class_name": "EulerDiscreteScheduler", "shift": 3}',
            "diffusers",
            "config of EulerDiscreteScheduler says nothing of steps",
        ),
        (
            export(preset("seed-sd-6").schedule, "diffusers:StepScheduler", lossy=True).text,
            "diffusers",
            "config of StepScheduler holds rows, of which no schedule is made again",
        ),
        *[
            (baseline("linspace", 3).to_json(), source, "is a schedule already: it needs no import")
            for source in ("comfyui", "sd.cpp", "diffusers")
        ],
    ],
)
def test_what_it_is_instead_is_said(text, source, message):
    with pytest.raises(UserError, match=message) as caught:
        read(text, source, TARGET)
    assert not re.search("Error|Expecting|unpack", str(caught.value))


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        ("--easycache 0.2", ("--easycache 0.2",)),
        ("--cache-option threshold=1", ("--cache-option threshold=1",)),
        ("--skip-layer-start 0.1 --increase-ref-index", ("--skip-layer-start 0.1", "--increase-")),
        ("--anything-new", ("--anything-new",)),
        ("-p '--slg-scale 3' -n 'bad -i x' -H 512 -W 512 -s 3 --vae-tiling -v", ()),
        ("--lora-model-dir l --rng cpu --scheduler karras --eta 0 --diffusion-fa", ()),
    ],
)
def test_arguments_of_sd_cpp_that_are_not_known_to_bend_nothing_are_named(words, lost):
    found = reading(f"sd-cli --sigmas 5,1,0 {words}", "sd.cpp", TARGET, lossy=True)
    assert len(found.lost) == len(lost)
    assert all(a.startswith(b) for a, b in zip(found.lost, lost, strict=True))


def test_steps_that_sd_cpp_would_not_take_are_said():
    found = reading("--steps 20 --sigmas 5,1,0", "sd.cpp", TARGET)
    assert found.notes == ("--steps 20: --sigmas has 2, which hold",)
    assert reading("--steps 2 --sigmas 5,1,0", "sd.cpp", TARGET).notes == ()


def dpm(**changed):
    call = changed.pop("call", {"timesteps": [999, 500, 100]})
    name = "DPMSolverMultistepScheduler"
    return json.dumps({"scheduler": name, "config": changed, "call": call, "guidance_scale": 5})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (dpm(prediction_type="v_prediction"), 'prediction_type = "v_prediction" of another model'),
        (dpm(beta_start=0.1), "beta_start = 0.1 of another model"),
        (dpm(beta_schedule="linear"), 'beta_schedule = "linear" of another model'),
        (dpm(call={"timesteps": [999, 1], "sigmas": [1]}), "has both sigmas and timesteps"),
        (dpm(final_sigmas_type="last"), "final_sigmas_type must be zero or sigma_min, got 'last'"),
        (dpm(call={"timesteps": [999, 500.5]}), "the timestep 500.5, of which it takes 500"),
    ],
)
def test_what_diffusers_says_of_another_model_or_list_is_not_passed_over(text, message):
    with pytest.raises(UserError, match=message):
        read(text, "diffusers", TARGET)


def test_stock_dpm_takes_whole_timesteps_as_read():
    scheduler = DPMSolverMultistepScheduler(beta_schedule="scaled_linear")
    scheduler.set_timesteps(timesteps=[999, 500.5])
    assert scheduler.timesteps.tolist() == [999, 500]  # what the refusal above says


def test_betas_of_the_same_model_are_none_of_another():
    same = dpm(beta_schedule="scaled_linear", beta_start=0.00085, prediction_type="epsilon")
    assert reading(same, "diffusers", TARGET).lost == ()
    scale = {step.guidance_scale for step in read(same, "diffusers", TARGET).steps}
    without = json.loads(same) | {"guidance_scale": None}
    assert scale == {5.0}
    assert read(json.dumps(without), "diffusers", TARGET).steps[0].guidance_scale == 7.5


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("comfyui", {"shift": 3.0}, "--shift is of diffusers:FlowMatch"),
        ("sd.cpp", {"checkpoint": "x"}, "--checkpoint is of comfyui-workflow, got --to sd.cpp"),
        ("comfyui", {"version": "mended"}, "--for-version is of sd.cpp, got --to comfyui"),
        ("comfyui-workflow", {"mu": 1.0}, "--mu is of diffusers:FlowMatch"),
        ("diffusers:EulerDiscreteScheduler", {"scheduler_config": {}}, "--scheduler-config is of"),
        ("diffusers:FlowMatchEulerDiscreteScheduler", {"mu": 1.0}, "--mu is of --scheduler-con"),
        (
            "diffusers:FlowMatchEulerDiscreteScheduler",
            {"scheduler_config": {"shift": 2.0}, "shift": 3.0},
            "--shift: the scheduler that is kept has its own",
        ),
        ("sd.cpp:x", {}, "sd.cpp has no kinds, got 'sd.cpp:x'"),
        ("diffusers", {}, "so give one after a colon"),
    ],
)
def test_an_option_of_another_format_is_refused(to, options, message):
    plan = preset("oss-flux-10").schedule if "FlowMatch" in to else baseline("linspace", 3)
    with pytest.raises(UserError, match=message):
        export(plan, to, **options)
