"""A study, `evaluate` and `placement` of the very model that one samples; older digests stay."""

import json
import sys

import ldm
import pipelines
import pytest
import torch
from evaluating import command
from safetensors.torch import save_file

from stepsampler import Schedule, Step, UserError
from stepsampler.batch import run_batch
from stepsampler.generate import generate
from stepsampler.models import from_pipeline, load
from stepsampler.support.captions import Caption
from stepsearch.cli import main
from stepsearch.compare.contenders import OnSchedule, OnStock
from stepsearch.compare.harness import Clock, Harness
from stepsearch.config import StudyConfig, load_config
from stepsearch.engine.claim import claim_folder, claimed
from stepsearch.metrics.alignment import Prompt
from stepsearch.metrics.distance import score
from stepsearch.metrics.evaluator import Evaluator, Metric, additions_digest, model_digest
from stepsearch.rehearsal.check import missing
from stepsearch.rehearsal.dryrun import dry_run, kind_of
from stepsearch.rivals.placement import recall_or_place

PLAN = Schedule((Step(8.0, 2.0), Step(1.0, 1.0)), 0.0, "ddim")
SPACE = {"num_steps": 2, "passes": 4}
LONG = "a red fox jumps over a lazy dog, " * 2


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint and everything that it may be loaded with."""
    base = tmp_path_factory.mktemp("files")
    pipe = pipelines.stable_diffusion()
    pipe.save_pretrained(base / "sd")
    save_file(ldm.checkpoint(pipe), base / "sd.safetensors")
    torch.nn.init.normal_(pipe.vae.decoder.conv_out.weight)
    pipe.vae.save_pretrained(base / "vae")
    pipelines.save_lora(base / "x.safetensors")
    save_file({"<toy>": torch.randn(2, 32)}, base / "toy.safetensors")
    (base / "prompts.txt").write_text(f"a fox\n{LONG}\na <toy>\n")
    return base


def whole(base):
    return {
        "id": str(base / "sd.safetensors"),
        "config": str(base / "sd"),
        "vae": str(base / "vae"),
        "loras": [f"{base / 'x.safetensors'}:0.8"],
        "textual_inversions": [str(base / "toy.safetensors")],
        "clip_skip": 1,
        "long_prompts": "chunk",
    }


def study(base, model, **evaluation):
    evaluation = {"prompts": str(base / "prompts.txt"), "batch_size": 4, **evaluation}
    sections = {"space": SPACE, "model": model, "evaluation": evaluation}
    return StudyConfig.model_validate({"name": "t", **sections})


def test_nothing_that_is_as_it_was_has_another_digest(tmp_path):
    """Recorded before any of these settings: runs, caches and folders of then still open."""
    evaluator = Evaluator(StudyConfig.model_validate({"name": "x", "space": SPACE}), tmp_path)
    assert evaluator.identity == "98ec9746f007b869"
    assert evaluator._key(PLAN, range(8)) == "7a61266fd3fbe7282fc63fd2"
    model, metric = evaluator.model, Metric(evaluator.extractor, evaluator.reference)
    clock = Clock(torch.device("cpu"))
    harness = Harness([metric], evaluator.prompts, 50, tmp_path, clock, evaluator.judge)
    digest = " ".join([model_digest(model), *additions_digest(model, [], [])])
    known = {
        OnSchedule("x", PLAN, model, digest): (
            "9cdb8b6703523e9b153e3b74",
            ["ac9846c0b7ada7c7d27f8c04", "39c0b8bd08915374fb57ba01"],
        ),
        OnStock(model, digest, 4, 2.0): (
            "dc55e2bc1a634e2a02f2e7e6",
            ["47f8774d308c1d5a448b7213", "481d707c2e386d68aa54303d"],
        ),
    }
    for contender, (identity, keys) in known.items():
        assert contender.identity == identity
        assert harness._keys(contender, range(8)) == keys
    list(run_batch(model, PLAN, [Caption("a bag")], tmp_path / "b"))
    head = json.loads((tmp_path / "b" / "manifest.jsonl").read_text().splitlines()[0])
    assert head["model"] == "451e48a4a8fc8716"
    assert head["additions"] == {}


def test_the_study_of_an_older_run_still_opens(tmp_path):
    config = study(tmp_path, {})
    claim_folder(tmp_path, config)
    old = json.loads((tmp_path / "study.json").read_text())
    for key in ("config", "variant", "vae", "loras", "textual_inversions", "clip_skip"):
        del old["model"][key]
    del old["model"]["long_prompts"]
    del old["evaluation"]["negative_prompt"], old["evaluation"]["clip_long_prompts"]
    (tmp_path / "study.json").write_text(json.dumps(old))
    assert claimed(tmp_path) == config
    claim_folder(tmp_path, config)
    with pytest.raises(UserError, match=r"started with model.clip_skip = None, now it is 1"):
        claim_folder(tmp_path, study(tmp_path, {"clip_skip": 1}))


def test_a_study_sees_the_images_that_one_samples(files, tmp_path):
    given = whole(files)
    config = study(files, given, negative_prompt="blurry " * 20)
    evaluator = Evaluator(config, tmp_path)
    settings = {key: value for key, value in given.items() if key != "id"}
    model = load(given["id"], **settings)
    texts = ["a fox", LONG.strip(), "a <toy>", "a fox"]
    made = generate(model, PLAN, texts, range(4), negative_prompts="blurry " * 20, batch_size=4)
    assert torch.equal(evaluator.images(PLAN, range(4)), torch.cat([b.images for b in made]))
    plain = Evaluator(study(files, given), tmp_path)
    assert not torch.equal(evaluator.images(PLAN, range(4)), plain.images(PLAN, range(4)))


def test_variant_and_prediction_type_reach_the_model(tmp_path):
    pipe = pipelines.stable_diffusion().to(torch.bfloat16)
    pipe.save_pretrained(tmp_path / "m", variant="other")
    torch.nn.init.zeros_(pipe.unet.conv_out.weight)
    pipe.save_pretrained(tmp_path / "m")
    prompts = tmp_path / "p.txt"
    prompts.write_text("a fox\n")
    base = {"id": str(tmp_path / "m")}
    found = {
        Evaluator(study(tmp_path, base | more, prompts=str(prompts)), tmp_path).identity
        for more in ({}, {"variant": "other"}, {"prediction_type": "v_prediction"})
    }
    assert len(found) == 3


def test_each_setting_changes_the_identity_of_a_run(files, tmp_path):
    base = {"id": str(files / "sd")}
    found = {Evaluator(study(files, base), tmp_path).identity}
    for key, value in whole(files).items():
        if key in ("id", "config"):
            continue
        found.add(Evaluator(study(files, base | {key: value}), tmp_path).identity)
    lighter = [f"{files / 'x.safetensors'}:0.5"]
    found.add(Evaluator(study(files, base | {"loras": lighter}), tmp_path).identity)
    found.add(Evaluator(study(files, base, negative_prompt="x"), tmp_path).identity)
    assert len(found) == 8


def test_a_study_says_which_prompts_are_cut(files, tmp_path):
    (note,) = Evaluator(study(files, {"id": str(files / "sd")}), tmp_path).notes
    assert note.startswith("1 of 3 prompts are longer than the 16 tokens that CLIP takes")
    assert Evaluator(study(files, whole(files)), tmp_path).notes == []


@pytest.mark.parametrize(
    ("section", "key", "near"),
    [
        ("model", "lora", "loras"),
        ("model", "textual_inversion", "textual_inversions"),
        ("model", "clipskip", "clip_skip"),
        ("evaluation", "negative", "negative_prompt"),
    ],
)
def test_a_name_that_is_nearly_right_is_named(tmp_path, section, key, near):
    path = tmp_path / "k.toml"
    path.write_text(f"[{section}]\n{key} = 1\n[space]\nnum_steps = 3\npasses = 6\n")
    with pytest.raises(UserError, match=rf"unknown key '{section}.{key}'; did you mean '{near}'"):
        load_config(path)


def test_a_study_of_everything_is_checked_and_dry_run(files, tmp_path):
    config = study(files, whole(files), negative_prompt="blurry", reference=str(tmp_path))
    assert [line for line in missing(config) if "reference" not in line] == []
    assert kind_of(config) == "stable-diffusion"
    (tmp_path / "dry").mkdir()
    result = dry_run(config, "stable-diffusion", tmp_path / "dry")
    assert result.trials == 3
    absent = {**whole(files), "vae": "no/vae", "config": "no/config", "loras": ["a:0.5"]}
    absent["textual_inversions"] = ["b"]
    said = missing(study(files, absent))
    for what in ("config 'no/config'", "vae 'no/vae'", "LoRA 'a'", "textual inversion 'b'"):
        assert sum(line.startswith(what) for line in said) == 1


@pytest.mark.parametrize("kind", ["flux-dev", "ddpm"])
def test_a_negative_prompt_that_the_model_does_not_take_is_refused(kind, tmp_path):
    pipelines.FAMILIES[kind]().save_pretrained(tmp_path / "m")
    size = None if kind == "ddpm" else pipelines.SIZE
    prompts = "none" if kind == "ddpm" else "fashion-mnist"
    model = {"id": str(tmp_path / "m"), "size": size}
    with pytest.raises(UserError, match="it takes no negative prompt, got 'blurry'"):
        Evaluator(study(tmp_path, model, prompts=prompts, negative_prompt="blurry"), tmp_path)


def test_a_found_schedule_says_what_the_model_was_loaded_with(files, tmp_path):
    config = study(files, whole(files), negative_prompt="blurry")
    dry_run(config, "stable-diffusion", tmp_path)
    known = json.loads((tmp_path / "run" / "best.json").read_text())["provenance"]
    # The dry run leaves out what is of the real weights.
    assert known["clip_skip"] == 1
    assert known["long_prompts"] == "chunk"
    assert known["negative_prompt"] == "blurry"
    assert config.model.additions["loras"] == (f"{files / 'x.safetensors'}:0.8",)


def options(files):
    given = whole(files)
    found = ["--model", given["id"], "--config", given["config"], "--vae", given["vae"]]
    found += ["--lora", given["loras"][0], "--textual-inversion", given["textual_inversions"][0]]
    found += ["--clip-skip", 1, "--long-prompts", "chunk", "--negative-prompt", "blurry"]
    return [*found, "--prompts", files / "prompts.txt"]


def test_evaluate_scores_what_the_study_measures(files, tmp_path, monkeypatch, capsys):
    """A schedule and the stock pipeline on the same model, told the same."""
    evaluator = Evaluator(study(files, whole(files), negative_prompt="blurry"), tmp_path)
    PLAN.save(tmp_path / "plan.json")
    for n in (1, 2):  # recalled the second time
        code, out, errors = command(
            monkeypatch,
            capsys,
            tmp_path / "plan.json",
            *["--stock", 2, "--guidance-scale", 2, "--images", 8, "--batch-size", 4],
            *["--cache", tmp_path / "cache", "-o", tmp_path / "r.json", *options(files)],
            *(["--profile"] if n == 2 else []),
        )
        assert code == 0, errors
    assert "everything was recalled" in out
    data = json.loads((tmp_path / "r.json").read_text())
    assert (data["clip_skip"], data["long_prompts"]) == (1, "chunk")
    assert data["negative_prompt"] == "blurry"
    first = data["seeds"][0]
    found = evaluator.measure(PLAN, range(first, first + 8)).features
    expected = score(found, evaluator.reference.test).value
    assert data["contenders"][0]["scores"]["fd_texture128_8"]["value"] == expected


@pytest.mark.parametrize("name", ["stable-diffusion", "sdxl", "sd3"])
def test_the_stock_pipeline_is_told_what_the_schedules_are(name):
    """Its images under DDIM are those of the same levels in our loop."""
    settings = {"clip_skip": 1} if name == "sd3" else {"clip_skip": 1, "long_prompts": "chunk"}
    model = from_pipeline(pipelines.FAMILIES[name](), pipelines.SIZE, **settings)
    stock = OnStock(model, "", 3, 3.0, negative_prompt="blurry " * 9)
    prompts = [Prompt("a fox"), Prompt(LONG)]
    (made,) = stock.batches(range(2), prompts, 2)
    scheduler = model.pipeline.scheduler
    if name == "sd3":
        *sigmas, last = scheduler.sigmas.tolist()
    else:
        sigmas = [float(model.noise.sigma(t)) for t in scheduler.timesteps.tolist()]
        last = float(model.noise.sigma(0))
    plan = Schedule(tuple(Step(s, 3.0) for s in sigmas), last, "ddim", model.spec)
    (ours,) = generate(
        model, plan, [p.text for p in prompts], range(2), negative_prompts="blurry " * 9
    )
    assert (made.int() - ours.images.int()).abs().max() <= 1


def test_evaluate_says_which_prompts_are_cut(files, tmp_path, monkeypatch, capsys):
    PLAN.save(tmp_path / "plan.json")
    same = [tmp_path / "plan.json", "--prompts", files / "prompts.txt", "--batch-size", 4]
    same += ["--cache", tmp_path / "cache"]
    code, out, errors = command(monkeypatch, capsys, *same, "--images", 4)
    assert code == 0, errors
    assert "1 of 3 prompts are longer than the 16 tokens that CLIP takes" in out
    code, out, errors = command(monkeypatch, capsys, tmp_path, "--clip-skip", 1)
    assert code == 2
    assert "--clip-skip: of the model, but nothing that it makes is scored" in errors


def test_a_placement_is_of_the_model_that_one_samples(files, tmp_path, monkeypatch, capsys):
    evaluator = Evaluator(study(files, whole(files), negative_prompt="blurry"), tmp_path)
    monkeypatch.setattr("stepsearch.rivals.placement.IMAGES", {"gits": 2, "oss": 2, "ld3": 2})
    monkeypatch.setattr("stepsearch.rivals.placement.TRAJECTORIES", 2)
    monkeypatch.setattr("stepsearch.rivals.placement.seeds_of", lambda first, n: range(n))
    expected = recall_or_place(evaluator, "oss", 2, 2.0).sigmas
    words = ["stepsearch", "placement", "oss", "--steps", 2, "-o", tmp_path / "p.json"]
    words += ["--guidance-scale", 2, "--batch-size", 4, *options(files)]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert Schedule.from_json((tmp_path / "p.json").read_text()).sigmas == pytest.approx(expected)
