"""Folders of pipelines that no schedule fits: one sentence and exit code 2, whichever command."""

import json
import sys

import pipelines
import pytest
from running import Here

import stepsampler.cli
import stepsearch.cli
from stepsampler.grids import make_schedule
from stepsampler.noise import NoiseSchedule

OTHER = "it is no pipeline from texts to pictures or videos"
REFUSED = {
    "StableDiffusionXLInstructPix2PixPipeline": OTHER,
    "QwenImageEditPipeline": OTHER,
    "StableDiffusionInpaintPipeline": OTHER,
    "StableDiffusionControlNetPipeline": OTHER,
    "StableDiffusionUpscalePipeline": OTHER,
    "KandinskyV22PriorPipeline": OTHER,
    "StableUnCLIPPipeline": OTHER,
    "WuerstchenCombinedPipeline": OTHER,
    "UnCLIPPipeline": "it has 3 schedulers",
    "StableCascadeCombinedPipeline": OTHER,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("refused")
    pipelines.stable_diffusion().save_pretrained(path / "model")
    noise = NoiseSchedule.scaled_linear()
    make_schedule("power", 2, noise, guidance_scale=2.0).save(path / "s.json")
    (path / "study.toml").write_text(
        f"[model]\nid = '{path / 'model'}'\nsize = 32\n[space]\nnum_steps = 2\npasses = 4\n"
        "[evaluation]\nbatch_size = 2\nimages = 80\nrungs = [20, 80]\n"
    )
    return path


COMMANDS = {
    "stepsample": (stepsampler.cli, ["s.json", "--prompt", "a fox", "--model", "model"]),
    "stepsearch run": (stepsearch.cli, ["run", "study.toml"]),
    "stepsearch check": (stepsearch.cli, ["check", "study.toml"]),
}


# A run prepares much before it loads its model by the way of the others: it is asked once
CALLS = [
    (cls, command)
    for cls in [*REFUSED, "MysteryPipeline"]
    for command in COMMANDS
    if command != "stepsearch run" or cls == "UnCLIPPipeline"
]


@pytest.mark.parametrize(("cls", "command"), CALLS)
def test_a_pipeline_that_no_schedule_fits_is_one_sentence(cls, command, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    index = place / "model" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": cls}))
    cli, words = COMMANDS[command]
    monkeypatch.setattr("stepsearch.report.session.Workers", Here)
    monkeypatch.setattr(sys, "argv", [command.split()[0], *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    expected = f"a {cls} cannot run a schedule: {REFUSED.get(cls)}"
    if cls not in REFUSED:
        expected = f"must name a pipeline class of diffusers as its _class_name, got '{cls}'"
    assert ended.value.code == 2, said
    assert [line for line in said.err.splitlines() if line.endswith(expected)] == [
        said.err.splitlines()[-1]
    ]
    assert "Traceback" not in said.err
