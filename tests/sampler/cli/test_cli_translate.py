"""`stepsample export` and `import` of workflows, and levels at whole timesteps."""

import json

import pytest
from typer.testing import CliRunner

from stepsampler import UserError, load
from stepsampler.cli.app import app
from stepsampler.grids import is_whole, whole_timesteps
from stepsampler.noise import NoiseSchedule
from stepsampler.presets import preset

SD = NoiseSchedule.scaled_linear()


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        result = CliRunner().invoke(app, list(arguments))
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


def test_a_workflow_goes_out_and_comes_back(run):
    written = run("export", "seed-sd-8", "--to", "comfyui-workflow", "-o", "w.json")
    assert "nearest whole timesteps" in written.stderr
    back = run("import", "w.json", "--from", "comfyui", "-o", "s.json")
    assert "not part of a schedule: CLIPTextEncode, CheckpointLoaderSimple" in back.stderr
    assert load("s.json").sigmas == preset("seed-sd-8").schedule.sigmas


def test_what_a_workflow_says_beside_is_refused_or_listed(run):
    run("export", "seed-sd-8", "--to", "comfyui-workflow", "-o", "w.json")
    with open("w.json") as file:
        nodes = json.load(file)
    guider = next(node for node in nodes.values() if node["class_type"] == "CFGGuider")
    nodes["99"] = {"class_type": "FreeU", "inputs": {"model": guider["inputs"]["model"]}}
    guider["inputs"]["model"] = ["99", 0]
    with open("w.json", "w") as file:
        json.dump(nodes, file)
    words = ("import", "w.json", "--from", "comfyui", "-o", "s.json")
    with pytest.raises(UserError, match=r"^w.json: a schedule does not hold node 99 \(FreeU\) \("):
        run(*words)
    assert run(*words, "--lossy").stderr.startswith("stepsample: left out: node 99 (FreeU)\n")


def test_levels_move_to_whole_timesteps_in_files_and_exports(run):
    preset("seed-sd-8").schedule.save("best.json")
    expected = whole_timesteps(preset("seed-sd-8").schedule, SD)
    for name in ("best.json", "seed-sd-8"):
        run("make", name, "--whole-timesteps", "-o", "whole.json")
        assert load("whole.json").steps == expected.steps
        assert "Moved to whole timesteps" in load("whole.json").provenance["note"]
    run("make", "karras", "--steps", "5", "--whole-timesteps", "-o", "karras.json")
    assert is_whole(load("karras.json"), SD)
    text = run("export", "best.json", "--to", "comfyui", "--whole-timesteps").stdout
    again = run("export", "whole.json", "--to", "comfyui")
    assert again.stdout == text
    assert "whole timesteps" not in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["make", "oss-flux-10"], "--whole-timesteps: a flow model has no whole timesteps"),
        (["export", "oss-flux-10", "--to", "comfyui"], "--whole-timesteps: a flow model has no"),
        (
            ["make", "karras", "--steps", "300"],
            "--whole-timesteps: steps .* would both be at",
        ),
        (["make", "x.json"], "x.json: No such file"),
    ],
)
def test_levels_that_cannot_move_are_refused(run, arguments, message):
    out = [] if arguments[0] == "export" else ["-o", "y.json"]
    with pytest.raises(UserError, match=message):
        run(*arguments, "--whole-timesteps", *out)


def test_a_scheduler_that_is_kept_is_named_by_its_config(run, tmp_path):
    config = tmp_path / "scheduler_config.json"
    config.write_text(json.dumps({"shift": 3.0, "shift_terminal": None}))
    words = ["--to", "diffusers:FlowMatchEulerDiscreteScheduler", "--scheduler-config", str(config)]
    data = json.loads(run("export", "oss-flux-10", *words).stdout)
    assert data["config"] == {"shift": 3.0, "shift_terminal": None}
    config.write_text("[]")
    with pytest.raises(UserError, match="a scheduler's config is an object, got list"):
        run("export", "oss-flux-10", *words)
    config.write_text("{")
    with pytest.raises(UserError, match="scheduler_config.json: not JSON"):
        run("export", "oss-flux-10", *words)
