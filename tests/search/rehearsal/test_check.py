"""Ready studies go through every stage; `stepsearch check` says what they lack and cost."""

import json
import re
import sys
from pathlib import Path

import pipelines
import pytest

from stepsampler import UserError
from stepsampler.models import load as load_model
from stepsampler.presets import MODELS
from stepsampler.schedule import StatisticsSpec
from stepsearch.cli import main
from stepsearch.config import StudyConfig, load_config
from stepsearch.config.measuring import EvaluationConfig
from stepsearch.config.parts import RIVALS
from stepsearch.engine.stages.costs import costs, pixels
from stepsearch.rehearsal.check import missing
from stepsearch.rehearsal.dryrun import dry_run, kind_of, shrunk
from stepsearch.rehearsal.miniatures import FAMILIES
from stepsearch.rivals.baselines import published
from stepsearch.rivals.placement import most_passes

OURS = (
    "at most",
    "measuring",
    "measured on",
    "hours",
    "about",
    "dry run on",
    "nothing is missing",
)  # lines
STUDIES = Path(__file__).parents[3] / "studies"
# A ready study: the published schedules that it must have among its baselines.
READY = {
    "sd15-5-steps": {"seed-sd-5", "seed-unipc-sd-5", "dmn-sd-5", "gits-sd15-dpmpp-5"},
    "sd15-6-steps": {"seed-sd-6", "seed-sd-6-free", "seed-unipc-sd-6", "dmn-sd-6"},
    "sd15-8-steps": {"seed-sd-8", "seed-sd-8-free", "seed-unipc-sd-8", "gits-sd15-ipndm-8"},
    "sdxl-6-steps": {"seed-xl-6", "seed-unipc-xl-6", "seed-dunipc-xl-6-afs"},
    "sdxl-8-steps": {"seed-xl-8", "seed-unipc-xl-8", "seed-dunipc-xl-8-afs"},
    "sd3-6-steps": set(),
    "sd3-8-steps": set(),
    "flux-dev-8-steps": set(),
    "flux-dev-10-steps": {"oss-flux-10"},
    "z-image-8-steps": {"z-image-8"},
    "qwen-image-8-steps": {"qwen-image-8"},
    "chroma-8-steps": {"chroma-8"},
    "wan22-8-steps": set(),
    "z-image-turbo-8-steps": {"z-image-turbo-8"},
    "flux2-klein-4-steps": {"flux2-klein-4"},
    "flux-schnell-4-steps": {"flux-schnell-4"},
    "sdxl-lightning-4-steps": {"sdxl-lightning-4"},
    "sdxl-turbo-4-steps": {"sdxl-turbo-4"},
}

# Of the same model with another budget -> the one that goes through every stage
BUDGETS = {
    "sd15-6-steps": "sd15-5-steps",
    "sd15-8-steps": "sd15-5-steps",
    "sdxl-8-steps": "sdxl-6-steps",
    "sd3-8-steps": "sd3-6-steps",
    "flux-dev-8-steps": "flux-dev-10-steps",
}


def settings(**sections):
    space = {"num_steps": 5, "passes": 10}
    return StudyConfig.model_validate({"name": "t", "space": space} | sections)


def command(monkeypatch, capsys, *options):
    monkeypatch.setattr(sys, "argv", ["stepsearch", "check", *map(str, options)])
    code = 0
    try:
        main()
    except SystemExit as error:
        code = error.code
    said = capsys.readouterr()
    return code, said.out, said.err


def test_every_ready_study_is_known_here():
    others = {"tiny-3-steps", "tiny-3-steps-long", "tiny-4-steps"}
    assert {path.stem for path in STUDIES.glob("*.toml")} == set(READY) | others


@pytest.mark.parametrize("name", [name for name in READY if name not in BUDGETS])
def test_a_ready_study_goes_through_every_stage(name, tmp_path):
    config = load_config(STUDIES / f"{name}.toml")
    result = dry_run(config, kind_of(config), tmp_path)
    assert result.trials == 3
    names = {candidate.name for candidate, _, _ in result.screened}
    assert READY[name] <= names
    assert {c.schedule.passes for c, _, _ in result.screened} == {config.space.passes}
    schedule = json.loads((tmp_path / "run" / "best.json").read_text())
    distilled = name.startswith("flux-dev")
    assert schedule.get("guidance", "classifier-free") == (
        "distilled" if distilled else "classifier-free"
    )
    guided = [c.schedule for c, _, _ in result.screened if c.schedule.steps[-1].guidance_scale > 1]
    if config.space.guidance == "off":
        assert not guided
    else:
        assert distilled == (max(plan.num_steps for plan in guided) == config.space.passes)
    bound = costs(shrunk(config, kind_of(config), tmp_path)).passes
    spent = result.passes
    assert all(spent[stage] <= bound[stage] for stage in spent if stage != "rivals")
    paid = spent["baselines"] + spent["trials"]
    assert paid <= bound["baselines"] + bound["trials"] < 2 * paid


@pytest.mark.parametrize("name", BUDGETS)
def test_a_ready_study_of_another_budget_is_the_same_but_for_what_was_published_for_it(name):
    config, other = (load_config(STUDIES / f"{study}.toml") for study in (name, BUDGETS[name]))
    budget = {key: getattr(config.space, key) for key in ("num_steps", "max_steps", "passes")}
    space = other.space.model_copy(update=budget)
    known = other.baselines.model_copy(update={"presets": config.baselines.presets})
    same = {"name": name, "space": space, "baselines": known}
    assert other.model_copy(update=same) == config
    kind = "distilled" if name.startswith("flux-dev") else "classifier-free"
    found = published(config, MODELS[name.partition("-")[0]], kind)
    assert READY[name] <= {candidate.name for candidate in found}
    assert {candidate.schedule.passes for candidate in found} <= {config.space.passes}


def test_what_is_missing_is_one_sentence_each_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    study = STUDIES / "sd15-5-steps.toml"
    options = ("--no-dry-run", "--seconds-per-pass", 0.036)
    code, out, errors = command(monkeypatch, capsys, study, *options)
    assert code == 2
    assert "Traceback" not in out + errors
    lines = [line for line in out.splitlines() if line.startswith("missing: ")]
    assert [line.split()[1] for line in lines] == ["model", "prompts", "alignment", "reference"]
    # what has a hub id is downloaded by the libraries, real images are not
    downloaded = ["downloads it" in line for line in lines]
    assert downloaded == [True, False, True, False]
    total = sum(costs(load_config(study)).passes.values())
    assert f"at most {total:,} network passes of one image" in out
    assert f"about {total * 1e-5:.1f} hours of one device at 0.036 s a pass" in out
    assert "GB in the run's folder" in out


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_disk_space_is_that_of_the_models_own_images(kind, tmp_path):
    FAMILIES[kind]().save_pretrained(tmp_path / "model")
    model = {"id": str(tmp_path / "model")}
    study = {"name": "x", "model": model, "space": {"num_steps": 2, "passes": 4}}
    loaded = load_model(model["id"])
    in_files = "sample_size" in loaded.net.config  # else 1024
    known = loaded.size if in_files else 1024
    assert pixels(StudyConfig.model_validate(study)) == known**2
    study["model"] = {**model, "size": 64}
    assert pixels(StudyConfig.model_validate(study)) == 64**2
    study["model"]["size"] = "64x96"
    assert pixels(StudyConfig.model_validate(study)) == 64 * 96
    assert costs(load_config(STUDIES / "tiny-3-steps.toml")).disk < 100e6


def test_a_study_that_lacks_nothing_can_be_measured_and_dry_run(tmp_path, monkeypatch, capsys):
    """Its model is a folder, so that nothing needs to be told about it."""
    pipelines.stable_diffusion().save_pretrained(tmp_path / "model")
    study = tmp_path / "mine.toml"
    study.write_text(
        f'[model]\nid = "{tmp_path}/model"\nsize = 32\n'
        "[space]\nnum_steps = 2\npasses = 4\n"
        "[evaluation]\nbatch_size = 2\nimages = 80\nrungs = [20, 80]\n"
    )
    assert kind_of(load_config(study)) == "stable-diffusion"
    capsys.readouterr()  # what the libraries said of saving it
    code, out, err = command(monkeypatch, capsys, study, "--measure", "cpu")
    assert code == 0
    assert err == ""  # no advice of the libraries about the miniature
    stages = [line for line in out.splitlines() if re.match(" +0:[0-9]{2}  ", line)]
    assert all(
        line.startswith(OURS) for line in filter(None, out.splitlines()) if line not in stages
    )
    begun = [line.split("  ", 2)[-1].strip() for line in stages if line.endswith("…")]
    assert [line.split("  ")[-1] for line in begun] == [
        "a tiny model …",
        "loading …",
        "baselines, 2 images …",
        "teacher …",
        "search …",
        "selection …",
        "test …",
    ]
    assert "measured on cpu:" in out
    assert "s a pass" in out
    assert "minute or two" not in out  # which one machine needs, and another does not
    small = shrunk(load_config(study), "stable-diffusion", tmp_path / "small")
    most = sum(costs(small).passes.values())
    assert f"a tiny model: at most {most:,} network passes of one image" in out
    assert "dry run on a tiny random stable-diffusion model: 25 baselines, 3 trials" in out
    assert f"nothing is missing: stepsearch run {study}" in out


def test_weights_and_data_that_are_not_there_are_named(tmp_path):
    folder = tmp_path / "model"
    pipelines.stable_diffusion().save_pretrained(folder)
    next((folder / "unet").glob("*.safetensors")).unlink()
    (tmp_path / "empty").mkdir()
    both = "texture+clip:no/such"
    evaluation = {"extractor": both, "prompts": "p.txt", "reference": f"{tmp_path}/empty"}
    found = missing(settings(model={"id": str(folder)}, evaluation=evaluation))
    assert [sentence.split(":")[0] for sentence in found] == [
        f"model {str(folder)!r}",
        "extractor 'clip",
        "prompts 'p.txt'",
        "reference",
    ]
    assert "unet holds no .safetensors file" in found[0]
    assert "no images in it" in found[3]
    (folder / "model_index.json").unlink()
    assert "has no model_index.json" in missing(settings(model={"id": str(folder)}))[0]
    assert missing(settings(model={"id": "x.safetensors"})) == [
        "model 'x.safetensors': no such file"
    ]
    assert missing(settings()) == []


def test_weights_that_cannot_be_read_are_missing(tmp_path):
    """From their headers: a run would find out when the weights are loaded."""
    folder, pointer = tmp_path / "model", tmp_path / "x.safetensors"
    pipelines.stable_diffusion().save_pretrained(folder)
    pointer.write_text("version https://git-lfs.github.com/spec/v1")

    def found(**model):
        return " ".join(missing(settings(model={"id": str(folder), **model})))

    assert found() == ""
    assert "has no weights of the variant fp16" in found(variant="fp16")
    assert "LoRA '" in found(loras=[f"{pointer}:0.5"])
    assert "is a Git LFS pointer" in found(loras=[f"{pointer}:0.5"])
    assert "is a Git LFS pointer" in found(textual_inversions=[str(pointer)])
    assert "is a Git LFS pointer" in found(id=str(pointer))
    assert "is a pickle" in found(id="x.ckpt")
    (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(pointer.read_bytes())
    assert "is a Git LFS pointer" in found()


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_is_in_the_estimate(name):
    """At the teacher's guidance with `num_steps`, and unguided with all passes."""
    found = costs(settings(baselines={"rivals": [name]})).passes
    assert found["rivals"] == 2 * most_passes(name, 5, 50) + most_passes(name, 10, 50)
    centre = settings(space={"num_steps": 5, "passes": 10, "max_steps": 6, "baseline": name})
    assert costs(centre).passes["rivals"] == 2 * sum(most_passes(name, n, 50) for n in (5, 6))


def test_every_solver_is_in_the_estimate():
    """DDIM has order 1 only, the other two orders."""
    one, both = (
        costs(settings(baselines={"solvers": solvers, "rungs": [10], "presets": []})).passes[
            "baselines"
        ]
        for solvers in (["dpmpp-midpoint"], ["dpmpp-midpoint", "ddim"])
    )
    assert both == 1.5 * one


def test_a_dry_run_has_a_solver_by_statistics_in_its_degenerate_form(tmp_path):
    config = settings(space={"num_steps": 5, "passes": 10, "solvers": ["exact", "dpm-v3"]})
    assert shrunk(config, "stable-diffusion", tmp_path).space.solvers == ("exact",)


def test_a_dry_run_has_a_small_ladder_and_no_earlier_run(tmp_path):
    evaluation = {"images": 80, "rungs": [20, 80]}
    small = shrunk(
        settings(evaluation=evaluation, search={"start_from": "runs/gone"}),
        "stable-diffusion",
        tmp_path,
    )
    assert (small.evaluation.images, small.evaluation.rungs) == (16, (8, 16))
    assert small.search.start_from is None


@pytest.mark.parametrize(
    ("names", "kept"), [(["oss", "ld3"], ()), (["gits", "oss"], ("dmn",)), (["hso"], ("dmn",))]
)
def test_the_rivals_of_a_dry_run_need_no_trajectories(tmp_path, names, kept):
    config = settings(baselines={"rivals": names})
    assert shrunk(config, "stable-diffusion", tmp_path).baselines.rivals == kept


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
def test_a_study_of_an_unconditional_model_goes_through_every_stage(kind, tmp_path):
    space = {"num_steps": 6, "passes": 6, "guidance": "off"}
    config = settings(
        model={"id": "a/b", "kind": kind},
        space=space,
        evaluation={"prompts": "none", "reference": "photos", "extractor": "lite0"},
        baselines={"rivals": ["dmn"]},
    )
    result = dry_run(config, kind, tmp_path)
    assert {row.candidate.schedule.passes for row in result.test} == {6}
    assert result.teacher.candidate.schedule.passes == 4
    texts = config.model_copy(update={"evaluation": EvaluationConfig(extractor="lite0")})
    with pytest.raises(UserError, match='evaluation.prompts must be "none", the model is uncond'):
        dry_run(texts, kind, tmp_path / "texts")


def test_a_dry_run_must_know_what_kind_of_model_it_is_for(tmp_path):
    with pytest.raises(UserError, match="model.kind is missing: no folder of 'a/b'"):
        kind_of(settings(model={"id": "a/b"}))
    with pytest.raises(UserError, match="model.kind must be one of stable-diffusion, sdxl"):
        kind_of(settings(model={"id": "a/b", "kind": "dalle"}))
    (tmp_path / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(UserError, match="KandinskyPipeline cannot run a schedule: its network is"):
        kind_of(settings(model={"id": str(tmp_path)}))


def test_a_flux_folder_is_told_apart_by_its_guidance(tmp_path):
    for kind in ("flux-dev", "flux-schnell"):
        pipelines.FAMILIES[kind]().save_pretrained(tmp_path / kind)
        assert kind_of(settings(model={"id": str(tmp_path / kind)})) == kind


@pytest.mark.parametrize(
    ("presets", "model", "message"),
    [
        (["seed-sd-6"], "sd15", "seed-sd-6 has 12 passes, but the study's budget is 10"),
        (["seed-xl-5"], "sd15", "seed-xl-5 is for family 'sdxl', but the model has 'stable-diffu"),
        (["seed-sd-5"], "sdxl", "seed-sd-5 is for family 'stable-diffusion', but the model has"),
        (["seed-sd5"], "sd15", "no preset 'seed-sd5'; the nearest are seed-sd-5"),
        (["ays-svd"], "sd15", "ays-svd is for no model of this sampler"),
        (["seed-xl-*"], "sd15", r"none of seed-xl-\* is for stable-diffusion \(epsilon\) with 10"),
    ],
)
def test_presets_that_do_not_fit_are_refused(presets, model, message):
    with pytest.raises(UserError, match=f"baselines.presets: {message}"):
        published(settings(baselines={"presets": presets}), MODELS[model])


def test_a_pattern_takes_what_fits_and_a_name_what_is_approximate_too():
    config = settings(baselines={"presets": ["seed-sd-*", "seed-sd-5", "seed-v3-sd-5"]})
    found = published(config, MODELS["sd15"])
    assert [c.name for c in found] == [
        "seed-sd-5",
        "seed-sd-5-free",
        "seed-sd-5-no-ct",
        "seed-v3-sd-5, approximate",
    ]
    assert {c.schedule.passes for c in found} == {10}
    known = [StatisticsSpec(7.5, 250)]
    with_statistics = published(config, MODELS["sd15"], statistics=known)[-1]
    assert (with_statistics.name, with_statistics.schedule.solver) == ("seed-v3-sd-5", "dpm-v3")
    everything = {c.name for c in published(settings(), MODELS["sd15"])}  # by default
    assert {"seed-sd-5", "seed-unipc-sd-5", "dmn-sd-5"} <= everything
    assert not any("approximate" in name for name in everything)
    assert not published(settings(baselines={"presets": []}), MODELS["sd15"])
    assert not published(settings(space={"num_steps": 31, "passes": 62}), MODELS["sd15"])
    wanted = settings(baselines={"presets": ["seed-v3-*"]})
    with pytest.raises(UserError, match="none of seed-v3-"):
        published(wanted, MODELS["sd15"])


@pytest.mark.parametrize(
    ("space", "presets", "expected"),
    [
        ({"num_steps": 2, "passes": 4}, ["*"], False),  # undistilled: two passes a step
        ({"num_steps": 2, "passes": 4}, ["sdxl-*", "*"], False),
        ({"num_steps": 2, "passes": 4}, ["sdxl-lightning-4"], True),
        ({"num_steps": 4, "passes": 4, "guidance": "off"}, ["*"], True),
    ],
)
def test_presets_for_distilled_models_are_of_studies_without_guidance(space, presets, expected):
    config = settings(space=space, baselines={"presets": presets})
    if presets[0] == "sdxl-*":
        with pytest.raises(UserError, match=r"none of sdxl-\* is for sdxl"):
            published(config, MODELS["sdxl"])
        return
    names = {c.name for c in published(config, MODELS["sdxl"])}
    assert ("sdxl-lightning-4" in names) == expected
    assert ("sdxl-turbo-4" in names) == (expected and presets == ["*"])


def test_the_guidance_of_a_preset_must_be_of_the_models_kind():
    config = settings(baselines={"presets": ["oss-flux-10"]})
    with pytest.raises(UserError, match="oss-flux-10 has distilled guidance, but the model's is"):
        published(config, MODELS["flux"])
    assert published(config, MODELS["flux"], "distilled")


def test_a_dry_run_reads_what_it_writes(tmp_path):
    """Captions of classes for DiT; pixels have one size."""
    for kind, size in (("dit", 32), ("ddpm", None)):
        folder = tmp_path / kind
        folder.mkdir()
        config = settings(model={"id": "a/b", "kind": kind}, evaluation={"extractor": "clip:x"})
        small = shrunk(config, kind, folder)
        assert small.model.size == size
        assert small.evaluation.extractor == "lite0"
        config = settings(model={"id": "a/b"}, evaluation={"extractor": "clip:x+texture+inception"})
        assert shrunk(config, kind, folder).evaluation.extractor == "lite0+texture"
        pipelines.FAMILIES[kind]().save_pretrained(folder / "model")
        assert load_model(small.model.id, size=small.model.size)
