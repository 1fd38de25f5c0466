"""`stepsample show MODEL --steps N`, `diff` of such, and scales as diffusers calls them."""

import json
from dataclasses import replace

import pipelines
import pytest
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from typer.testing import CliRunner

from stepsampler import UserError, load
from stepsampler.cli.app import app
from stepsampler.grids import from_sigmas
from stepsampler.models import resolve
from stepsampler.noise import FlowSchedule

DPM = "DPMSolverMultistepScheduler"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        result = CliRunner().invoke(app, list(arguments))
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


def test_show_prints_what_a_model_does(run):
    first, head, *lines = run("show", "tiny", "--steps", "4", "--scheduler", DPM).stdout.split("\n")
    assert first.startswith(f"StableDiffusionPipeline with {DPM}: 4 steps, 8 passes per image")
    assert head.split()[:4] == ["step", "timestep", "told", "sigma"]
    scheduler = DPMSolverMultistepScheduler.from_pretrained(resolve("tiny"), subfolder="scheduler")
    scheduler.set_timesteps(4)
    told, sigmas = scheduler.timesteps.tolist(), scheduler.sigmas.tolist()
    for i, line in enumerate(lines[:4]):
        assert [float(x) for x in line.split()[:3]] == [i, told[i], told[i]]
        assert line.split()[3:] == [f"{sigmas[i]:.4f}", f"{sigmas[i + 1]:.4f}", "7.5", "2"]


def test_diff_takes_models_under_schedulers_and_schedules(run):
    same = run("diff", "tiny", "tiny", "--steps", "3")
    assert (same.exit_code, same.stdout) == (0, "")
    other = run("diff", "tiny", f"tiny:{DPM}", "--steps", "3")
    assert other.exit_code == 1
    assert "step 0: sigma 2.92955 -> 4.1167\n" in other.stdout
    pipelines.sd3().save_pretrained("sd3")
    tail = (1.0, 0.857692301273346, 0.602150559425354, 0.008928571827709675)
    plan = from_sigmas(tail, 0.0, [7.0] * 4, 1, "ddim", FlowSchedule().spec("sd3"))
    plan.save("same.json")
    same = run("diff", "same.json", "sd3", "--steps", "4")
    assert (same.exit_code, same.stdout) == (0, "")
    steps = (*plan.steps[:3], replace(plan.steps[3], sigma=0.3, guidance_scale=1.0))
    replace(plan, steps=steps).save("other.json")
    assert run("diff", "sd3", "other.json", "--steps", "4").stdout.splitlines() == [
        "step 3: sigma 0.00892857 -> 0.3",
        "step 3: timestep 8.92857 -> 300",
        "step 3: guidance 7 -> 1",
        "step 3: passes 2 -> 1",
    ]
    assert run("diff", "sd3", "same.json", "--steps", "3").stdout.endswith("only in the second\n")


def test_levels_of_euler_with_continuous_timesteps_are_shown_and_compared(run):
    """Those of a CosXL: EDM's, of which its network is told ln(sigma) / 4."""
    pipe = pipelines.FAMILIES["sdxl"]()
    own = {"prediction_type": "v_prediction", "timestep_type": "continuous"}
    own |= {"use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 120.0}
    pipe.scheduler = EulerDiscreteScheduler(**pipelines.BETAS, **own)
    pipe.save_pretrained("cosxl")
    _, _, first, *rest = run("show", "cosxl", "--steps", "5").stdout.splitlines()
    assert first.split() == ["0", "1.20", "1.19687", "120.0000", "25.5920", "5", "2"]
    assert rest[4:] == [
        "note: the last step begins with 0.2 % of noise: its passes are nearly wasted"
    ]
    run(
        "make",
        "karras",
        "--steps",
        "5",
        "--model",
        "cosxl",
        "--guidance-scale",
        "5",
        "-o",
        "k.json",
    )
    assert "for sdxl (v_prediction, EDM with sigma_data 1)" in run("show", "k.json").stdout
    same = run("diff", "k.json", "cosxl", "--steps", "5")
    assert (same.exit_code, same.stdout) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "seed-sd-5", "--scheduler", DPM], "--scheduler goes with a model and --steps"),
        (["show", "seed-sd-5", "--size", "64"], "--size goes with a model and --steps"),
        (["show", "seed-sd-5", "--steps", "4"], "--steps goes with a model, and seed-sd-5 is a"),
        (["show", "tiny", "--steps", "4", "--plot", "x.png"], "--plot draws a schedule, not what"),
        (["diff", "seed-sd-5", "seed-sd-6", "--size", "64"], "--size goes with a model and"),
        (["show", "nowhere", "--steps", "4"], "nowhere"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run, arguments, message):
    with pytest.raises(UserError, match=message):
        run(*arguments)


@pytest.mark.parametrize(
    ("family", "key", "number", "told"),
    [
        ("z-image", "guidance_scale", 3.0, "guidance_scale = w - 1: 3 for 4 here"),
        ("krea2", "guidance_scale", 3.0, "guidance_scale = w - 1: 3 for 4 here"),
        ("qwen-image", "true_cfg_scale", 4.0, "true_cfg_scale, and guides only beside a negative"),
        ("chroma", "guidance_scale", 4.0, None),
    ],
)
def test_show_and_exports_say_the_number_that_the_pipeline_wants(run, family, key, number, told):
    plan = from_sigmas((1.0, 0.5), 0.0, [4.0] * 2, 1, "ddim", FlowSchedule().spec(family))
    plan.save("s.json")
    assert (f"guidance: diffusers' pipeline calls it {told}" in run("show", "s.json").stdout) == (
        told is not None
    )
    flow = "diffusers:FlowMatchEulerDiscreteScheduler"
    written = run("export", "s.json", "--to", flow, "-o", "d.json")
    assert (told or "diffusers' pipeline") in written.stderr or told is None
    with open("d.json") as file:
        data = json.load(file)
    assert data[key] == number
    assert ("guidance_scale" in data) == (key == "guidance_scale")
    # tools that combine as we do get our w
    assert "--cfg-scale 4.0" in run("export", "s.json", "--to", "sd.cpp").stdout
    model = {"z-image": pipelines.z_image, "krea2": pipelines.krea2}.get(family)
    if model:
        model().save_pretrained("model")
        run("import", "d.json", "--from", "diffusers", "--model", "model", "-o", "back.json")
        assert [step.guidance_scale for step in load("back.json").steps] == [4.0, 4.0]


def test_an_unguided_schedule_needs_no_such_sentence(run):
    plan = from_sigmas((1.0, 0.5), 0.0, [1.0] * 2, 1, "ddim", FlowSchedule().spec("z-image"))
    plan.save("s.json")
    assert "guidance: diffusers" not in run("show", "s.json").stdout
    flow = "diffusers:FlowMatchEulerDiscreteScheduler"
    assert json.loads(run("export", "s.json", "--to", flow).stdout)["guidance_scale"] == 0.0
