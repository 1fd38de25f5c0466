"""Folders of pipelines that no schedule fits or that are damaged: one sentence and exit code 2."""

import json
import sys

import pipelines
import pytest
from running import Here

import stepsampler.cli
import stepsearch.cli
from stepsampler import UserError
from stepsampler.grids import make_schedule
from stepsampler.noise import NoiseSchedule
from stepsearch.config import StudyConfig
from stepsearch.rehearsal.check import missing
from stepsearch.rehearsal.dryrun import kind_of

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


@pytest.mark.parametrize("name", ["model_index.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize(
    ("text", "why"),
    [("[" * 100_000, ": its lists and objects are nested too deep"), ("{", " is no JSON, or cut")],
    ids=["deep", "cut"],
)
def test_json_of_a_model_that_cannot_be_read_is_named(tmp_path, name, text, why):
    pipelines.stable_diffusion().save_pretrained(tmp_path)
    (tmp_path / name).write_text(text)
    space = {"num_steps": 5, "passes": 10}
    study = {"name": "t", "space": space, "model": {"id": str(tmp_path)}}
    config = StudyConfig.model_validate(study)
    said = f"{tmp_path / name}{why}"
    with pytest.raises(UserError, match=said):
        kind_of(config)
    if name == "model_index.json":
        assert said in " ".join(missing(config))
