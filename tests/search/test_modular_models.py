"""Folders of modular pipelines in the commands that compare and search."""

import json
import sys

import diffusers
import pytest
from evaluating import command
from running import Here

import stepsearch.cli
from stepsampler import load
from stepsampler.generate import generate
from stepsampler.grids import make_schedule
from stepsampler.models import load as load_model
from stepsearch.compare.contenders import OnStock
from stepsearch.config import StudyConfig
from stepsearch.metrics.alignment import Prompt
from stepsearch.rehearsal.dryrun import as_modular, kind_of
from stepsearch.rehearsal.miniatures import FAMILIES

STUDY = """
[model]
id = 'model'
size = 32
[space]
num_steps = 2
passes = 4
[evaluation]
batch_size = 8
images = 8
rungs = []
selection_images = 8
test_images = 8
rulers = []
[baselines]
guidance_scales = [3.0]
orders = [1]
solvers = ['dpmpp-midpoint']
long_steps = []
rungs = [2]
test = 1
[teacher]
steps = 4
images = 8
[search]
trials = 2
finalists = 1
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modular") / "model"
    pipeline = as_modular(FAMILIES["sdxl"](), diffusers.StableDiffusionXLModularPipeline)
    pipeline.save_pretrained(str(folder), overwrite_modular_index=True)
    return folder


def images(contender):
    prompts = [Prompt("a photo of a sneaker", 7), Prompt("a bag", 8)]
    (made,) = contender.batches(range(2), prompts, 2)
    return made


def test_the_tiny_model_of_a_dry_run_is_of_the_same_family(saved, tmp_path):
    """Also where a modular class has a name of its own."""
    wan = as_modular(FAMILIES["wan-2.2"](), diffusers.Wan22ModularPipeline)
    wan.save_pretrained(str(tmp_path), overwrite_modular_index=True)
    study = {"name": "x", "space": {"num_steps": 4, "passes": 4}, "evaluation": {"reference": "r"}}
    for place, kind in ((saved, "sdxl"), (tmp_path, "wan-2.2")):
        config = StudyConfig.model_validate({**study, "model": {"id": str(place)}})
        assert kind_of(config) == kind


def test_the_scale_of_a_stock_contender_is_that_of_the_guider(saved):
    """A call of a modular pipeline takes none."""
    model = load_model(str(saved), size=32)
    own = model.pipeline.guider
    found = {}
    for w in (None, 3.0, 1.0):
        contender = OnStock(model, "digest", 2, w)
        found[w] = images(contender)
        assert contender.passes == (2 if w == 1 else 4)
        assert model.pipeline.guider is own
    model.pipeline.guider = diffusers.ClassifierFreeGuidance(guidance_scale=3.0)
    assert found[3.0].equal(images(OnStock(model, "digest", 2)))
    assert len({bytes(each.numpy()) for each in found.values()}) == 3


def test_evaluate_compares_schedules_and_its_own_scheduler(saved, tmp_path, monkeypatch, capsys):
    model = load_model(str(saved), size=32)
    plan = make_schedule("trailing", 2, model.noise, model=model.spec, guidance_scale=3.0)
    plan.save(tmp_path / "s.json")
    words = [
        tmp_path / "s.json",
        "--stock",
        2,
        "--guidance-scale",
        3,
        "--negative-prompt",
        "blurry",
    ]
    words += ["--model", saved, "--size", 32, "--images", 130, "--batch-size", 65]
    words += ["--extractor", "texture", "--cache", tmp_path / "cache", "-o", tmp_path / "out.json"]
    code, _, errors = command(monkeypatch, capsys, *words)
    assert code == 0, errors
    mine, theirs = json.loads((tmp_path / "out.json").read_text())["contenders"]
    assert (mine["passes"], theirs["passes"], theirs["name"]) == (4, 4, "DDIM, 2 steps, w 3")


def test_a_run_goes_through_all_stages(saved, tmp_path, monkeypatch, capsys):
    (tmp_path / "study.toml").write_text(STUDY.replace("'model'", f"'{saved}'"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stepsearch.report.session.Workers", Here)
    monkeypatch.setattr(sys, "argv", ["stepsearch", "run", "study.toml", "--tracking", "none"])
    with pytest.raises(SystemExit) as ended:
        stepsearch.cli.main()
    assert ended.value.code in (0, None)
    assert "found" in capsys.readouterr().out
    best = load(tmp_path / "runs" / "study" / "best.json")
    model = load_model(str(saved), size=32)
    assert best.model == model.spec
    (batch,) = generate(model, best, ["a fox"], [0])
    assert model.passes(best) == best.passes <= 4
    assert batch.images.shape == (1, 3, 32, 32)
