"""Statistics that a run makes itself: those of `stepsample statistics`, made once, and paid for."""

import json
import re
import shutil

import pipelines
import pytest
from reporting import command
from safetensors import safe_open
from small_study import small_study
from typer.testing import CliRunner

import stepsearch
from stepsampler import UserError, estimate, load
from stepsampler.cli.app import app
from stepsampler.models import load as load_model
from stepsampler.statistics.file import read_spec
from stepsearch.config import StudyConfig, load_config
from stepsearch.engine.claim import claimed
from stepsearch.engine.stages.costs import costs
from stepsearch.metrics.alignment import load_prompts
from stepsearch.rehearsal.check import missing
from stepsearch.rehearsal.dryrun import shrunk
from stepsearch.space.statistics import check_own, make_own, passes_of_own

OWN = {"guidance_scales": [3.0], "intervals": 8, "samples": 3}
V3 = {
    "space": {"num_steps": 2, "passes": 4, "solvers": ["dpm-v3"]},
    "evaluation": {"batch_size": 2},
    "baselines": {"solvers": ["dpm-v3"], "guidance_scales": [3.0], "rungs": [2]},
    "teacher": {"steps": 2},
    "search": {"trials": 2, "finalists": 1},
    "statistics": OWN,
}
TEXT = small_study(**V3)


def held(path):
    """What a file of statistics says; the order of its keys differs from write to write."""
    with safe_open(path, framework="np") as file:
        numbers = {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118
        return numbers, file.metadata()


def study(**sections):
    space = {"num_steps": 2, "passes": 4, "solvers": ["dpm-v3"]}
    return StudyConfig.model_validate({"name": "x", "space": space, **sections})


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What `stepsample statistics` makes of the same settings, and says."""
    folder = tmp_path_factory.mktemp("alone")
    config, texts = study(), folder / "p.txt"
    prompts = load_prompts(config.evaluation.prompts)
    texts.write_text("\n".join(prompt.text for prompt in prompts))
    out = folder / "s.safetensors"
    options = {"guidance-scale": 3, "intervals": 8, "samples": 3, "batch-size": 2}
    given = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
    done = CliRunner().invoke(app, ["statistics", *given, "--prompts", str(texts), "-o", str(out)])
    assert done.exit_code == 0, done.output
    took = re.search(r"took ([\d,]+) network passes", done.output)[1]
    return out, int(took.replace(",", ""))


def test_a_cut_run_goes_on_makes_what_the_command_makes_and_counts_its_passes(
    alone, tmp_path, monkeypatch
):
    file, place = tmp_path / "mine.toml", tmp_path / "run"
    file.write_text(TEXT)
    with monkeypatch.context() as cut:

        def killed(*given):
            keep(*given)
            raise KeyboardInterrupt

        keep = estimate._keep
        cut.setattr(estimate, "_keep", killed)
        with pytest.raises(KeyboardInterrupt):
            stepsearch.run(file, place)
    own = place / "statistics-3.safetensors"
    assert estimate.done_of(own) == 2
    assert not own.exists()
    said = command("run", file, "--run", place, "--workers", 1).stdout
    assert re.search(r"statistics: 3 samples, at most \d+ network passes", said)
    assert f"{own}: statistics of guidance scale 3 in 8 intervals" in said
    assert held(own) == held(alone[0])
    result = json.loads((place / "result.json").read_text())
    assert result["passes"]["statistics"] == alone[1]
    assert f"(statistics {alone[1]}, " in said
    assert result["search_passes"] == sum(result["passes"].values())
    assert load(place / "best.json").statistics.digest == read_spec(str(own)).digest
    assert claimed(place).model.statistics == (str(own),)

    moved = tmp_path / "moved"
    shutil.move(place, moved)
    monkeypatch.setattr(estimate, "_add", None)  # nothing is made again
    again = stepsearch.run(file, moved)
    assert again.schedule == load(moved / "best.json")
    assert json.loads((moved / "result.json").read_text())["passes"] == result["passes"]


def test_its_passes_are_those_of_the_network(tmp_path):
    """Rows of its batches, counted."""
    config = study(evaluation={"batch_size": 2}, statistics=OWN).naming_own(tmp_path)
    rows = []
    model = load_model("tiny")
    model.net.register_forward_pre_hook(lambda net, args, kwargs: rows.append(
        len(kwargs.get("sample", args[0] if args else ()))), with_kwargs=True)  # fmt: skip
    (file,) = config.model.statistics
    for _ in estimate.estimate(model, ["a coat"], 3.0, 8, 3, tmp_path / "s", batch_size=2):
        pass
    assert sum(rows) == passes_of_own(config)
    assert passes_of_own(config, "distilled") == sum(rows) // 2
    assert make_own(config, "cpu")[0].startswith(f"{file}: statistics of guidance scale 3 in 8")
    assert make_own(config, "cpu") == []


def test_check_names_the_cost_and_lacks_nothing():
    baselines = {"solvers": ["dpm-v3"], "guidance_scales": [3.0], "presets": []}
    config = study(statistics=OWN, baselines=baselines)
    assert missing(config) == []
    most = costs(config)
    assert most.passes["statistics"] == passes_of_own(config) == 2 * (3 * (9 + 3) + 3 * 3)
    assert "statistics 0 %, rivals" in most.lines(None)[0]
    none = costs(study(baselines=baselines)).passes
    assert (none["statistics"], none["baselines"]) == (0, 0)
    assert most.passes["baselines"] > 0


def test_the_float16_study_has_them_in_float32(tmp_path):
    config = study(model={"dtype": "float16"}, statistics=OWN).naming_own(tmp_path)
    assert len(make_own(config, "cpu")) == 1


def test_a_dry_run_makes_none(tmp_path):
    small = shrunk(study(statistics=OWN), "stable-diffusion", tmp_path)
    assert not small.statistics.files
    assert small.space.solvers == ("exact",)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"space": {"num_steps": 2, "passes": 4}}, "nothing goes by them, as dpm-v3 is among the"),
        ({"model": {"stock": True}}, "our own loop samples, not of this pipeline"),
        ({"statistics": {**OWN, "guidance_scales": [9.0]}}, "the model's are of guidance scale 9"),
    ],
)
def test_what_cannot_be_made_is_missing(sections, message):
    (sentence,) = missing(study(**{"statistics": OWN, **sections}))
    assert message in sentence


def test_of_a_flow_model_there_are_none(tmp_path):
    pipelines.FAMILIES["sd3"]().save_pretrained(tmp_path)
    model = load_model(str(tmp_path), size=pipelines.SIZE)
    with pytest.raises(UserError, match="for variance-preserving models, this is none"):
        check_own(study(statistics=OWN), model)


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ({"space": {"solvers": ["exact"]}, "baselines": {"solvers": ["exact"]}}, {}, "nothing goe"),
        ({}, {"storage": "sqlite:///x.db"}, "workers elsewhere would lack the files: make them wi"),
        ({"model": {"statistics": ["s"]}}, {}, "model.statistics: names files, but statistics.gui"),
        ({"model": {"code": "a:b"}}, {"allow_code": True}, "none of a model that a function retur"),
        ({"statistics": {"guidance_scales": [2, 2.0]}}, {}, "guidance_scales: must differ, got"),
    ],
)
def test_a_run_refuses_it_before_anything_is_written(
    changed, options, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").write_text("def b(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    sections = {name: V3.get(name, {}) | changed.get(name, {}) for name in V3 | changed}
    (tmp_path / "mine.toml").write_text(small_study(**sections))
    with pytest.raises(UserError, match=message):
        stepsearch.run("mine.toml", "run", **options)
    left = sorted(path.name for path in (tmp_path / "run").glob("*"))
    assert [name for name in left if name.endswith((".json", ".safetensors"))] == []


def test_quick_baselines_without_it_need_none(tmp_path):
    from stepsearch.cli.running import _run_of

    text = small_study(baselines={"solvers": ["dpm-v3"]}, statistics=OWN)
    (tmp_path / "mine.toml").write_text(text)
    assert load_config(tmp_path / "mine.toml").statistics.files
    assert not _run_of(tmp_path / "mine.toml", None, True, None, {})[0].statistics.files
