"""`stepsearch evaluate`: the same numbers as the search's test, identity, resuming, refusals."""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pipelines
import pytest
import torch
from evaluating import command, pictures
from PIL import Image

from stepsampler import Schedule, Step, UserError, load
from stepsampler.generate import generate
from stepsampler.grids import make_schedule
from stepsampler.models import load as load_model
from stepsampler.models import model_digest as digest_of_weights
from stepsampler.noise import NoiseSchedule
from stepsearch.cli import main
from stepsearch.compare.contenders import OnSchedule, OnStock
from stepsearch.compare.figures import with_error
from stepsearch.compare.harness import Clock, Harness
from stepsearch.compare.table import cell, compare
from stepsearch.config import StudyConfig
from stepsearch.metrics.alignment import load_prompts
from stepsearch.metrics.distance import Score, score
from stepsearch.metrics.evaluator import TEST, Evaluator, Metric, model_digest
from stepsearch.metrics.features import Judge, load_extractor
from stepsearch.metrics.images import ImageFiles
from stepsearch.metrics.protocol import Seeds, held_out
from stepsearch.metrics.reference import fit, load_reference

ROOT = Path(__file__).parents[3]
FILE = ROOT / "studies" / "tiny-3-steps.schedule.json"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The found schedule and a stock scheduler on the bundled model, once."""
    base = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        words = f"evaluate {FILE} --stock 3 --guidance-scale 2 --images 24 --batch-size 12"
        words += f" --scheduler EulerDiscreteScheduler --cache {base}/cache --profile"
        words += " --distance fd --distance kid --distance fd-infinity --distance prc"
        words += f" -o {base}/result.json"
        patch.setattr(sys, "argv", ["stepsearch", *words.split()])
        with pytest.raises(SystemExit, match="0"):
            main()
    return base, json.loads((base / "result.json").read_text()), words


def test_the_search_and_the_command_give_the_same_numbers(evaluated, tmp_path):
    """Through workers or not: one protocol, and on a CPU the same bits."""
    _, data, _ = evaluated
    config = StudyConfig.model_validate(
        {"name": "t", "space": {"num_steps": 5, "passes": 10}, "evaluation": {"batch_size": 12}}
    )
    evaluator = Evaluator(config, tmp_path)
    schedule = load(FILE)

    def measure(jobs):
        for place, (_, seeds) in enumerate(jobs):
            yield place, evaluator.measure(schedule, seeds)

    (row,) = held_out(["it"], 24, 12, evaluator.reference, measure)
    found = data["contenders"][0]["scores"]["fd_texture128_24"]
    assert found["value"] == row.score.value
    assert found["left_out"] == row.score.left_out.tolist()
    assert data["seeds"] == [TEST, TEST + 23]
    alignment = data["contenders"][0]["scores"]["alignment"]
    assert alignment["value"] == pytest.approx(row.measurement.alignment)


def test_every_number_carries_its_identity_and_its_error(evaluated):
    _, data, _ = evaluated
    (metric,) = data["metrics"]
    assert metric["extractor_digest"] == load_extractor("texture").digest
    assert metric["reference_images"] == 10_000
    assert metric["resizing"] == "none, images are 32 x 32"
    first, stock = data["contenders"]
    assert set(first["scores"]) == {
        "fd_texture128_24",
        "fdinf_texture128_24",
        "kid_texture128_24",
        "precision_texture128_24",
        "recall_texture128_24",
        "alignment",
    }
    assert first["scores"]["fd_texture128_24"]["conservative"]  # 24 images, 128 axes
    assert not first["scores"]["kid_texture128_24"]["conservative"]
    assert (first["passes"], stock["passes"]) == (6, 6)  # counted: three guided steps
    assert stock["name"] == "EulerDiscrete, 3 steps, w 2"
    assert (
        first["scores"]["kid_texture128_24"]["value"]
        < stock["scores"]["kid_texture128_24"]["value"]
    )


def test_differences_are_paired_and_have_intervals(evaluated):
    _, data, _ = evaluated
    found = {d["metric"]: d for d in data["differences"]}["kid_texture128_24"]
    a, b = (
        Score(s["value"], np.array(s["left_out"]))
        for s in (c["scores"]["kid_texture128_24"] for c in data["contenders"])
    )
    difference, se = b.minus(a)
    assert found["difference"] == difference
    low, high = found["interval_95"]
    assert (high - low) / (2 * se) == pytest.approx(a.quantile)
    assert 2.0 < a.quantile < 2.6


def test_a_second_run_recalls_everything(evaluated, monkeypatch, capsys):
    base, data, words = evaluated
    code, out, _ = command(monkeypatch, capsys, *words.split()[1:])
    assert code == 0
    assert "nothing was measured" in out
    assert json.loads((base / "result.json").read_text()) == data
    assert "(fd_texture128_24)" in out


def test_results_of_before_can_be_compared_if_everything_is_equal(
    evaluated, tmp_path, monkeypatch, capsys
):
    base, data, _ = evaluated
    whole, data = data, copy.deepcopy(data)
    common = ["--images", 24, "--batch-size", 12, "--cache", base / "cache"]
    path = base / "result.json"
    code, out, _ = command(monkeypatch, capsys, FILE, *common, "--with", path)
    assert code == 0
    assert "EulerDiscrete" in out
    name = data["contenders"][0]["name"]  # in both: the row of before has the name of its file
    assert f"{name} (result)" in out
    data["metrics"][0]["extractor_digest"] = "another"
    (tmp_path / "other.json").write_text(json.dumps(data))
    code, _, errors = command(monkeypatch, capsys, FILE, *common, "--with", tmp_path / "other.json")
    assert code == 2
    said = "its fd_texture128: extractor_digest differ, so its scores do not compare: another there"
    assert said in errors
    for key, value in (("range", "search"), ("fit", "none"), ("size", 64)):
        (tmp_path / "other.json").write_text(json.dumps({**whole, key: value}))
        code, _, errors = command(
            monkeypatch, capsys, FILE, *common, "--with", tmp_path / "other.json"
        )
        assert code == 2
        assert f"its {key} differ, so its scores do not compare: {value} there" in errors
    data["n"] = 25
    (tmp_path / "other.json").write_text(json.dumps(data))
    code, _, errors = command(monkeypatch, capsys, FILE, *common, "--with", tmp_path / "other.json")
    assert "its n differ, so its scores do not compare: 25 there, 24 here" in errors
    moved = copy.deepcopy(whole)
    moved["metrics"][0]["note"] = "the same real images were elsewhere then"
    (tmp_path / "other.json").write_text(json.dumps(moved))
    code, _, _ = command(monkeypatch, capsys, FILE, *common, "--with", tmp_path / "other.json")
    assert code == 0
    for damaged in ({"contenders": None}, {"contenders": [{"name": "x"}]}, {"metrics": [{}]}):
        (tmp_path / "other.json").write_text(json.dumps({**whole, **damaged}))
        code, _, errors = command(
            monkeypatch, capsys, FILE, *common, "--with", tmp_path / "other.json"
        )
        assert code == 2
        assert "other.json: not a whole result of stepsearch evaluate" in errors
    (tmp_path / "other.json").write_text("{}")
    code, _, errors = command(monkeypatch, capsys, FILE, *common, "--with", tmp_path / "other.json")
    assert "the format must be 'stepsearch.evaluation/1', got None" in errors


def test_folders_are_scored_and_their_oddities_said(tmp_path, monkeypatch, capsys):
    real = pictures(tmp_path / "real", 40)
    made = pictures(tmp_path / "made", 30, seed=1)
    same = pictures(tmp_path / "same", 20, constant=True)
    Image.open(made / "003.png").convert("L").save(made / "003.png")
    options = ["--images", 20, "--reference", real, "--extractor", "texture-whole"]
    options += ["--cache", tmp_path / "cache", "--distance", "fd", "--distance", "kid"]
    code, out, errors = command(
        monkeypatch, capsys, made, same, *options, "-o", tmp_path / "r.json"
    )
    assert code == 0, errors
    assert "20 of 30 images, drawn" in out
    assert "1 of 20 images were not RGB" in out  # of those that are measured
    assert "all images are the same: their covariance is zero" in out
    assert "(fd_texture_20)" in out
    data = json.loads((tmp_path / "r.json").read_text())
    chosen = ImageFiles.find(made).chosen(20).names
    images = torch.cat(
        [
            torch.from_numpy(np.array(Image.open(made / name).convert("RGB")))[None]
            for name in chosen
        ]
    ).permute(0, 3, 1, 2)
    extractor = load_extractor("texture-whole")
    reference = load_reference(str(real), extractor, 32, tmp_path / "cache")
    expected = score(extractor(images).numpy(), reference.test)
    found = data["contenders"][0]["scores"]["fd_texture_20"]["value"]
    assert found == pytest.approx(expected.value)


def test_what_no_image_is_needed_for_is_said_before_the_first(tmp_path):
    def measured(*_):
        raise AssertionError("an image was asked for")

    bench = harness(tmp_path)
    bench.measure = measured
    model = load_model("tiny")
    (metric,) = bench.metrics
    bare = replace(metric, reference=replace(metric.reference, sample=None))
    for metrics, distance, message in (
        ([bare], "kid", "kid needs features of real images; the statistics of .* only moments"),
        ([bare], "prc", "prc needs features of real images"),
        ([metric, metric], "fd", "two of them would both be called fd_texture"),
    ):
        bench.metrics = metrics
        with pytest.raises(UserError, match=message):
            compare([OnSchedule("mine", load(FILE), model, "d")], bench, Seeds.of(n=8), [distance])


def test_settings_of_a_network_are_part_of_the_models_digest():
    """The VAE's scaling factor changes every image and no weight."""
    model = load_model("tiny")
    first = model_digest(model)
    assert model_digest(load_model("tiny")) == first
    vae = model.pipeline.vae
    vae.register_to_config(scaling_factor=2 * vae.config.scaling_factor)
    assert model_digest(model) != first


def test_a_model_that_has_sampled_has_the_digest_it_had():
    """Its tokenizer keeps how the last prompts were padded and cut."""
    model = load_model("tiny")
    before = model_digest(model), digest_of_weights(model)
    tokenizer = model.pipeline.tokenizer.backend_tokenizer
    model.encode(["a photo of a bag"])
    assert tokenizer.padding
    kept = tokenizer.to_str()
    assert (model_digest(model), digest_of_weights(model)) == before
    assert tokenizer.to_str() == kept


def test_a_models_digests_are_the_same_on_every_processor():
    """The scheduler's cumulative product rounds as the vector unit adds: 2e-15 in the last sigma.

    A worker on another machine was refused, and a batch did not resume there.
    """
    digests = []
    for off in (0.0, 4e-16):
        model = load_model("tiny")
        model.noise = NoiseSchedule(tuple(a * (1 + off) for a in model.noise.alphas_cumprod))
        digests.append((model_digest(model), digest_of_weights(model)))
    assert digests[0] == digests[1]


def test_a_stock_scheduler_that_cannot_run_the_model_is_refused():
    model = load_model("tiny")
    with pytest.raises(UserError, match="--stock: the model has 1000 timesteps, got 1001 steps"):
        OnStock(model, "d", 1001)
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler is not for a variance-pr"):
        OnStock(model, "d", 2, scheduler="FlowMatchEulerDiscreteScheduler")


class Broken:
    name, digest, axes = "broken", "1", None

    def prepare(self, images):
        return images

    def features(self, prepared):
        return torch.full((len(prepared), 2), torch.nan)


def harness(tmp_path, extractor=None, batch=4):
    texture = load_extractor("texture-whole")
    real = torch.randint(0, 256, (30, 3, 32, 32), generator=torch.manual_seed(0)).byte()
    reference = fit(texture, [real], axes=None)
    clock = Clock(torch.device("cpu"))
    prompts = load_prompts("fashion-mnist")
    return Harness([Metric(extractor or texture, reference)], prompts, batch, tmp_path, clock)


def test_features_that_are_not_finite_are_refused(tmp_path):
    model = load_model("tiny")
    contender = OnSchedule("mine", load(FILE), model, model_digest(model))
    with pytest.raises(UserError, match="mine: a feature is not finite: its images are broken"):
        compare([contender], harness(tmp_path, Broken()), Seeds.of(n=4))


def test_images_that_overflow_are_a_measurement_that_is_not_finite(tmp_path):
    """A trial of the search is lost by them, not the search."""
    config = StudyConfig.model_validate({"name": "t", "space": {"num_steps": 5, "passes": 10}})
    evaluator = Evaluator(config, tmp_path)
    overflows = Schedule((Step(14.0, 1e38), Step(1.0)))
    assert not evaluator.measure(overflows, range(2)).finite
    assert not evaluator.measure(overflows, range(2)).finite  # recalled
    assert evaluator.measure(Schedule((Step(14.0), Step(1.0))), range(2)).finite


def test_a_stock_pipeline_makes_what_its_own_call_makes():
    """From the same noise, with its own scheduler and another one; the scheduler is given back."""
    from stepsampler.generate import seeded_noise
    from stepsampler.models import from_pipeline

    pipeline = pipelines.stable_diffusion()
    before = pipeline.scheduler
    model = from_pipeline(pipeline)
    prompts = load_prompts("fashion-mnist")[:3]
    seeds = range(7, 10)
    contender = OnStock(model, "d", 4, 3.0)
    images = torch.cat(list(contender.batches(seeds, prompts, 2)))
    texts = [prompt.text for prompt in prompts]
    expected = pipeline(
        texts,
        num_inference_steps=4,
        guidance_scale=3.0,
        latents=seeded_noise(seeds, model.shape),
        output_type="np",
    ).images
    expected = (torch.from_numpy(expected).permute(0, 3, 1, 2) * 255).round()
    assert (images.float() - expected).abs().max() <= 1
    assert contender.passes == 8
    other = OnStock(model, "d", 4, 3.0, "DPMSolverMultistepScheduler")
    assert other.identity != contender.identity
    assert not torch.equal(torch.cat(list(other.batches(seeds, prompts, 2))), images)
    assert pipeline.scheduler is before


@pytest.mark.parametrize(
    ("value", "se", "text"),
    [
        (12.345, 0.234, "12.3 ± 0.2"),
        (12.345, 0.134, "12.35 ± 0.13"),
        (1234.5, 25.0, "1234 ± 25"),
        (5.0, float("nan"), "5"),
    ],
)
def test_values_are_printed_to_the_digits_of_their_error(value, se, text):
    assert with_error(value, se) == text


def test_a_cell_names_its_metric():
    left_out = 12.345 + 0.0478 * np.array([-1.0, 1.0] * 10)
    assert cell(Score(12.345, left_out), "fd_lite0_5k") == "12.3 ± 0.2 (fd_lite0_5k)"
    assert cell(Score(12.345, left_out, True), "fd_lite0_5k") == "12.3 ± 0.2* (fd_lite0_5k)"


def test_the_clock_counts_networks_alone(tmp_path):
    model = load_model("tiny")
    bench = harness(tmp_path)
    bench.clock.watch(model)
    compare([OnSchedule("mine", load(FILE), model, "d")], bench, Seeds.of(n=8))
    assert {"denoiser", "VAE", "extractor", "text encoder"} <= set(bench.clock.spent)
    assert 0.5 < bench.clock.share <= 1


def test_the_second_bundled_model_draws_the_same_prompts_otherwise():
    """Another seed of the training: a class stays that class, the picture is another one."""
    prompts, judge = ["a photo of a pair of trousers", "a photo of a bag"] * 4, Judge("cpu")
    models = [load_model(name) for name in ("tiny", "tiny-second")]
    schedule = make_schedule("kl-optimal", 5, models[0].noise, guidance_scale=3.0)
    one, two = (
        torch.cat([b.images for b in generate(model, schedule, prompts, range(8))])
        for model in models
    )
    assert (one.float() - two.float()).abs().mean() > 2
    assert judge(one).tolist() == judge(two).tolist() == [1, 8] * 4
