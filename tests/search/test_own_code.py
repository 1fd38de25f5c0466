"""A study's own model and metric: they run where that is allowed, and nowhere else."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from reporting import command, toy_run

from stepsampler import UserError, models
from stepsampler.generate import generate
from stepsampler.presets import preset
from stepsearch.cli.app import app
from stepsearch.config import load_config
from stepsearch.config.code import code, digest_of, load_function
from stepsearch.engine.workers import Workers
from stepsearch.metrics.alignment import load_prompts
from stepsearch.metrics.distance import score
from stepsearch.metrics.evaluator import (
    TEST,
    Evaluator,
    objective_name,
    seeds_of,
)
from stepsearch.report.cards import history
from stepsearch.report.sources import of_run
from stepsearch.rivals.placement import recall_or_place

HOUSE = """
def pipeline():
    from diffusers import DiffusionPipeline
    from stepsampler.models import resolve
    return DiffusionPipeline.from_pretrained(resolve("tiny"))

def quantised():
    import torch
    made = pipeline()
    made.unet.register_buffer("codes", torch.ones(2, dtype=torch.int8))
    return made

def dark(images, prompts):
    assert all(isinstance(prompt, str) for prompt in prompts) and len(prompts) == len(images)
    return images.float().mean((1, 2, 3)) + len(prompts[0])

def one(images, prompts):
    return 1.0

def nothing():
    return None

def broken(images, prompts):
    raise ValueError("no\\nsuch thing")

def leaves(images, prompts):
    raise SystemExit

def words(images, prompts):
    return ["a"] * len(images)

def unknown(images, prompts):
    return [1.0, float("nan")]

def brightened(images, prompts):
    images.fill_(255)
    return images.float().mean((1, 2, 3)).requires_grad_()
"""
STUDY = """
model = "house:pipeline"
[space]
num_steps = 2
passes = 4
[evaluation]
metric = "house:dark"
images = 8
selection_images = 8
test_images = 8
batch_size = 8
rulers = ["patches"]
[baselines]
rungs = [2]
guidance_scales = [2.0]
orders = [1]
[teacher]
steps = 4
images = 8
[search]
trials = 2
algorithm = "random"
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "house.py").write_text(HOUSE)
    (tmp_path / "mine.toml").write_text(STUDY)
    yield tmp_path
    sys.modules.pop("house", None)


def test_what_is_allowed_is_the_model_and_the_objective_of_the_workers(here):
    config, seeds = load_config("mine.toml"), seeds_of(TEST, 8)
    plan = preset("seed-sd-4").schedule
    with code(True), Workers(config, here, ["cpu"]) as workers:
        subject = workers.describe()
        ((_, found),) = workers.measure([(plan, seeds)])
    assert objective_name(config.evaluation, subject.reference, 8) == "mean_dark_8"
    assert set(subject.rulers) == {"fd_texture128", "swd_patches"}  # FD becomes one
    prompts = load_prompts("fashion-mnist")
    texts = [prompts[seed % len(prompts)].text for seed in seeds]
    (batch,) = generate(models.load("tiny"), plan, texts, seeds, batch_size=8)
    each = batch.images.float().mean((1, 2, 3)) + len(texts[0])
    assert score(found.features, subject.reference.test).value == pytest.approx(each.mean().item())
    with pytest.raises(UserError, match="runs the function house:dark"):  # of whatever command
        Evaluator(config, here)


def test_a_metric_of_ones_own_has_its_name_wherever_a_search_shows_fd(here, tmp_path):
    def seen(**settings):
        toy_run(tmp_path / "toy")
        source = of_run(tmp_path / "toy")
        assert source.config is not None
        evaluation = source.config.evaluation.model_copy(update=settings)
        config = source.config.model_copy(update={"evaluation": evaluation})
        data = history.data(replace(source, config=config))
        drawn = str(history.charts(data)) + data["word"]
        return config.evaluation.word, "FD" in drawn, "dark" in drawn

    assert seen() == ("FD", True, False)
    assert seen(metric="house:dark") == ("dark", False, True)
    assert seen(extractor="patches") == ("distance", False, False)


@pytest.mark.parametrize("words", [["run"], ["check", "--no-dry-run"]])
def test_without_the_flag_it_is_refused_in_a_sentence(here, words):
    (here / "house.py").write_text("raise SystemExit('it ran')")
    error = command(words[0], "mine.toml", *words[1:]).exception
    assert isinstance(error, UserError)
    assert str(error) == (
        "model: the study runs the function house:pipeline: read it, then allow it with "
        "--allow-code"
    )


@pytest.mark.parametrize("name", ["ld3", "amed"])
def test_rivals_that_cannot_learn_from_a_quantised_network_are_refused(here, name):
    """A file holds none: a function alone returns one."""
    study = STUDY.replace("[baselines]", f'[baselines]\nrivals = ["dmn", "{name}"]')
    (here / "mine.toml").write_text(study.replace("house:pipeline", "house:quantised"))
    with code(True), pytest.raises(UserError, match=f"{name} learns by gradients: the network of"):
        recall_or_place(Evaluator(load_config("mine.toml"), here), name, 2, 2.0)


def test_a_worker_asks_too(here):
    from stepsearch.engine.claim import claim_folder

    claim_folder(here / "runs" / "mine", load_config("mine.toml"))
    error = command("worker", "runs/mine").exception
    assert "runs the function house:pipeline" in str(error)


def test_the_page_about_studies_names_the_commands_that_ask():
    group = typer.main.get_command(app)
    asking = {
        n for n, c in group.commands.items() if any("--allow-code" in p.opts for p in c.params)
    }
    text = (Path(__file__).parents[2] / "docs" / "searching.md").read_text()
    part = text[text.index("They run only with `--allow-code`, which") :]
    told = re.findall(r"`([\w-]+)`", part[: part.index("take each time anew")])
    assert asking == set(told) - {"--allow-code"}


def test_what_is_no_function_is_named(here):
    with code(True):
        for spec, sentence in {
            "house:absent": "the module has no function 'absent'",
            "absent_house:x": "No module named 'absent_house'",
        }.items():
            with pytest.raises(UserError, match=f"model: {spec}: {sentence}"):
                load_function("model", spec)
        function = load_function("model", "house:one")
        before = digest_of(function)
        (here / "house.py").write_text(HOUSE + "# changed\n")
        assert digest_of(function) != before
    for value, sentence in {
        "model = 'tiny'": "model",
        "model = 'os.system'": "module:function",
    }.items():
        (here / "x.toml").write_text(f"{value}\n[space]\nnum_steps = 2\npasses = 4\n")
        with pytest.raises(UserError, match=sentence):
            load_config("x.toml")


def test_what_own_code_raises_is_a_sentence_with_its_line(here):
    """Also at import, where a syntax error or an exit had been a traceback, or silence."""
    import torch

    from stepsearch.metrics.features import Own

    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    lines = (here / "house.py").read_text().splitlines()
    raised = lines.index('    raise ValueError("no\\nsuch thing")') + 1
    with code(True):
        for spec, sentence in {
            "house:broken": f"ValueError in house.py, line {raised}: no such thing",
            "house:leaves": f"SystemExit in house.py, line {raised + 3}",
            "house:words": "must return 2 numbers for as many images, got list of something else",
            "house:unknown": "must return finite numbers, got nan",
            "house:nothing": r"TypeError .* takes 0 positional arguments but 2 were given",
        }.items():
            with pytest.raises(UserError, match=rf"^evaluation.metric: {spec}: ({sentence})"):
                Own(spec)(images)
        for text, sentence in {
            "def f(:": r"invalid syntax \(bad.py, line 1\)",
            "1 / 0": "ZeroDivisionError in bad.py, line 1: division by zero",
            "raise SystemExit(3)": "SystemExit in bad.py, line 1: 3",
        }.items():
            (here / "bad.py").write_text(text)
            with pytest.raises(UserError, match=f"^model: bad:f: {sentence}$"):
                load_function("model", "bad:f")


def test_a_metric_cannot_change_the_images_that_others_see(here):
    import torch

    from stepsearch.metrics.features import Own

    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with code(True):
        found = Own("house:brightened")(images)
    assert found.numpy().tolist() == [[255.0], [255.0]]  # of a result with a gradient, too
    assert not images.any()


def test_a_metric_returns_a_number_for_each_image(here):
    import torch

    from stepsearch.metrics.features import Own

    with code(True):
        own = Own("house:one")
        with pytest.raises(UserError, match=r"must return 3 numbers .* got an array of shape \(\)"):
            own(torch.zeros(3, 3, 8, 8, dtype=torch.uint8))
        from stepsearch.config import ModelConfig
        from stepsearch.config.code import open_model_of

        with pytest.raises(UserError, match="must return a pipeline of diffusers, got NoneType"):
            open_model_of(ModelConfig(code="house:nothing"), "cpu")
