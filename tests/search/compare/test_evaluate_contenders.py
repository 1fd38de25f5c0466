"""`stepsearch evaluate` on files of any shape and name, on every family, and beside presets."""

import json
import time

import numpy as np
import pipelines
import pytest
import torch
from evaluating import command, pictures
from PIL import Image

from stepsampler import Schedule, Step, UserError
from stepsampler.batch import run_batch
from stepsampler.generate import seeded_noise
from stepsampler.grids import make_schedule
from stepsampler.models import from_pipeline
from stepsampler.models import load as load_model
from stepsampler.support.captions import Caption
from stepsearch.compare.contenders import OnSchedule, OnStock
from stepsearch.compare.harness import Clock, Harness
from stepsearch.compare.table import compare
from stepsearch.metrics.alignment import load_prompts
from stepsearch.metrics.evaluator import Metric
from stepsearch.metrics.features import load_extractor
from stepsearch.metrics.protocol import Seeds
from stepsearch.metrics.reference import fit

PROMPTS = load_prompts("fashion-mnist")


def wide(folder, n=12, size=(64, 32)):
    folder.mkdir()
    draw = np.random.default_rng(0)
    for k in range(n):
        pixels = draw.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{k:03d}.png")
    return folder


def harness(cache, extractor):
    real = torch.randint(0, 256, (30, 3, 32, 32), generator=torch.manual_seed(0)).byte()
    metric = Metric(extractor, fit(extractor, [real], axes=None))
    return Harness([metric], PROMPTS, 4, cache, Clock(torch.device("cpu")))


def fd(folder, tmp_path, monkeypatch, capsys, *options):
    """Of a folder against itself."""
    out = tmp_path / "out.json"
    words = ["--reference", folder, "--images", 12, "--cache", tmp_path / "cache", "-o", out]
    code, _, errors = command(monkeypatch, capsys, folder, *words, *options)
    assert code == 0, errors
    (row,) = json.loads(out.read_text())["contenders"]
    return next(iter(row["scores"].values()))["value"]


def test_a_folder_of_pictures_that_are_not_square_is_at_no_distance_from_itself(
    tmp_path, monkeypatch, capsys
):
    folder = wide(tmp_path / "wide")
    whole = ["--extractor", "lite0-whole"]
    for options in (["--size", 32], [], ["--fit", "none"], ["--fit", "squash512"]):
        found = fd(folder, tmp_path, monkeypatch, capsys, *whole, *options)
        assert found == pytest.approx(0, abs=1e-3), options


def test_folders_of_two_sizes_are_refused_without_one(tmp_path, monkeypatch, capsys):
    a, b = pictures(tmp_path / "a", 12), pictures(tmp_path / "b", 12, size=40)
    common = ["--reference", a, "--images", 12, "--cache", tmp_path / "cache"]
    code, _, errors = command(monkeypatch, capsys, a, b, *common)
    assert (code, errors.count("\n")) == (2, 1)
    assert "a are 32 x 32, those of " in errors
    assert "b 40 x 40; give --size to crop them to" in errors
    assert command(monkeypatch, capsys, a, b, *common, "--size", 32)[0] == 0


def test_schedules_of_one_name_keep_their_own_differences(tmp_path, monkeypatch, capsys):
    noise = load_model("tiny").noise
    paths = []
    for run, scale in (("one", 1.5), ("two", 2.0), ("three", 7.0)):
        path = tmp_path / run / "best.json"
        path.parent.mkdir()
        make_schedule("power", 2, noise, guidance_scale=scale).save(path)
        paths.append(path)
    options = ["--images", 8, "--batch-size", 8, "--cache", tmp_path / "cache"]
    code, out, errors = command(monkeypatch, capsys, *paths, *options, "-o", tmp_path / "r.json")
    assert code == 0, errors
    data = json.loads((tmp_path / "r.json").read_text())
    rows = {row["name"]: row["scores"] for row in data["contenders"]}
    assert list(rows) == ["one/best", "two/best", "three/best"]
    metric = "fd_texture128_8"
    for found in (d for d in data["differences"] if d["metric"] == metric):
        expected = rows[found["contender"]][metric]["value"] - rows["one/best"][metric]["value"]
        assert found["difference"] == pytest.approx(expected)
        line = next(x for x in out.splitlines() if found["contender"] in x)
        assert f"{expected:+.3g}" in line
    # The same names in the result of another folder
    code, out, errors = command(
        monkeypatch, capsys, *paths[:2], *options, "--with", tmp_path / "r.json"
    )
    assert code == 0, errors
    assert "two/best (r)" in out


@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_every_family_is_scored(family, tmp_path):
    """Pixel U-Nets have no VAE, and some pipelines no scale of it."""
    size = None if family in ("ddpm", "ddim") else pipelines.SIZE
    frames = 5 if family in pipelines.MOVING else None
    model = from_pipeline(pipelines.FAMILIES[family](), size, frames=frames)
    scale = 1.0 if not model.conditional else 3.0
    if model.spec.prediction_type == "flow_prediction":
        plan = Schedule((Step(1.0, scale), Step(0.5, scale)), model=model.spec)
    else:
        plan = Schedule((Step(14.0, scale), Step(1.0, scale)))
    if model.guidance != plan.guidance:
        plan = Schedule(plan.steps, model=plan.model, guidance=model.guidance)
    bench = harness(tmp_path, load_extractor("lite0-whole"))
    if family == "dit":
        bench.prompts = [type(PROMPTS[0])(str(k)) for k in range(5)]
    bench.clock.watch(model)
    contenders = [OnSchedule("mine", plan, model, "d")]
    if family in ("dit", "ddpm", "ddim"):
        with pytest.raises(UserError, match=r"--stock: a D.*Pipeline takes no latents"):
            OnStock(model, "d", 2)
    else:
        contenders.append(OnStock(model, "d", 2))
    result = compare(contenders, bench, Seeds.of(n=4))
    assert len(result.entries) == len(contenders)
    assert "denoiser" in bench.clock.spent
    assert ("VAE" in bench.clock.spent) == (family not in ("ddpm", "ddim"))
    for contender in contenders:
        images = next(iter(contender.batches(range(3), list(bench.prompts[:3]), 3)))
        assert images.shape == (3, 3, model.size, model.size)


@pytest.mark.parametrize("family", ["dit", "ddpm"])
def test_the_command_takes_models_without_latents(family, tmp_path, monkeypatch, capsys):
    pipelines.FAMILIES[family]().save_pretrained(tmp_path / "model")
    scale = 2.0 if family == "dit" else 1.0
    Schedule((Step(14.0, scale), Step(1.0, scale))).save(tmp_path / "plan.json")
    (tmp_path / "classes.txt").write_text("1\n2\n")
    options = ["--model", tmp_path / "model", "--prompts", tmp_path / "classes.txt", "--images", 8]
    options += ["--reference", pictures(tmp_path / "real", 20), "--extractor", "lite0-whole"]
    options += ["--cache", tmp_path / "cache", "--profile"]
    code, out, errors = command(monkeypatch, capsys, tmp_path / "plan.json", *options)
    assert code == 0, errors
    assert "(fd_lite0_8)" in out
    assert "denoiser" in out
    code, _, errors = command(monkeypatch, capsys, "--stock", 2, *options)
    assert (code, errors.count("\n")) == (2, 1)
    assert "takes no latents, so it cannot start from the noise of the schedules" in errors


@pytest.mark.parametrize(
    "family", ["sd3", "flux-dev", "sana", "pixart-sigma", "z-image", "qwen-image", "flux2-dev"]
)
def test_a_stock_pipeline_starts_from_the_noise_of_the_seeds(family):
    """What the network is first called with is what a schedule would start from."""
    model = from_pipeline(pipelines.FAMILIES[family](), pipelines.SIZE)
    called = []
    model.net.register_forward_pre_hook(
        lambda _, inputs, named: called.append(inputs[0] if inputs else named["hidden_states"]),
        with_kwargs=True,
    )
    list(OnStock(model, "d", 2).batches(range(5, 7), PROMPTS[:2], 2))
    first = called[0][-2:]
    expected = model.as_stock(seeded_noise(range(5, 7), model.shape))["latents"]
    if family == "z-image":
        first = torch.stack(first).squeeze(2)
    if family == "flux2-dev":
        expected = expected.flatten(2).transpose(1, 2)
    torch.testing.assert_close(first, expected)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("LCMScheduler", "cannot take 60 steps of this pipeline: The combination of"),
        ("RePaintScheduler", "cannot take 60 .* missing 2 required positional arguments: 'orig"),
        ("KarrasVeScheduler", "cannot take 60 .* missing 1 required positional argument: 'sample"),
        ("ScoreSdeVeScheduler", "cannot take 60 .* has no attribute 'step'"),
        ("AmusedScheduler", "cannot be made: .* missing 1 required positional argument: 'mask"),
        ("UnCLIPScheduler", "cannot be made: UnCLIPScheduler only supports `beta_schedule`"),
    ],
)
def test_a_scheduler_that_does_not_fit_is_refused_before_any_image(scheduler, message):
    with pytest.raises(UserError, match=f"{scheduler} {message}"):
        OnStock(load_model("tiny"), "d", 60, scheduler=scheduler)


def test_a_stock_pipeline_that_runs_out_of_memory_is_refused_like_a_schedule(monkeypatch):
    model = load_model("tiny")

    def full(*inputs, **named):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    contender = OnStock(model, "d", 2)
    monkeypatch.setattr(model.net, "forward", full)
    with pytest.raises(UserError, match=r"a batch of 3 does not fit .*; try a smaller batch size"):
        list(contender.batches(range(3), PROMPTS[:3], 3))


def test_a_distilled_model_is_a_contender(tmp_path, monkeypatch, capsys):
    """A LoRA of a weight, another scheduler, and the trailing timesteps that it was trained on."""
    pytest.importorskip("peft")
    pipeline = pipelines.stable_diffusion()
    pipeline.register_modules(
        scheduler=type(pipeline.scheduler).from_config(
            pipeline.scheduler.config, timestep_spacing="leading"
        )
    )
    pipeline.save_pretrained(tmp_path / "model")
    pipelines.autoencoder().save_pretrained(tmp_path / "vae")
    pipelines.save_lora(tmp_path / "x.safetensors")
    called = []
    original = OnStock.batches

    def watched(self, *inputs):
        with self.model.net.register_forward_pre_hook(lambda _, x: called.append(int(x[1]))):
            yield from original(self, *inputs)

    monkeypatch.setattr(OnStock, "batches", watched)
    common = ["--model", tmp_path / "model", "--stock", 2, "--guidance-scale", 1, "--images", 8]
    common += ["--scheduler", "EulerDiscreteScheduler", "--reference", pictures(tmp_path / "r", 20)]
    common += ["--cache", tmp_path / "cache", "-o", tmp_path / "o.json"]

    def scored(*options):
        code, _, errors = command(monkeypatch, capsys, *common, *options)
        assert code == 0, errors
        (row,) = json.loads((tmp_path / "o.json").read_text())["contenders"]
        return row["name"], next(iter(row["scores"].values()))["value"]

    lora = tmp_path / "x.safetensors"
    plain = scored()
    assert plain[0] == "EulerDiscrete, 2 steps, w 1"
    assert called == [501, 1]
    name, trailing = scored("--timestep-spacing", "trailing")
    assert name == "EulerDiscrete, 2 steps, trailing, w 1"
    assert called[2:] == [999, 499]
    words = ["--timestep-spacing", "trailing", "--lora"]
    half, whole = (scored(*words, f"{lora}:{weight}")[1] for weight in ("0.5", "1"))
    other = scored(*words, lora, "--vae", tmp_path / "vae")[1]
    assert len({plain[1], trailing, half, whole, other}) == 5
    assert len(called) == 10  # nothing of these is recalled for another
    with pytest.raises(UserError, match="--timestep-spacing: IPNDMScheduler has none, got 'trail"):
        OnStock(load_model("tiny"), "d", 2, scheduler="IPNDMScheduler", spacing="trailing")


def test_distilled_models_get_the_timesteps_of_the_docs():
    pipeline = pipelines.stable_diffusion()
    lcm = OnStock(from_pipeline(pipeline), "d", 4, scheduler="LCMScheduler").scheduler
    pipeline.scheduler = type(lcm).from_config(lcm.config, original_inference_steps=100)
    own = OnStock(from_pipeline(pipeline), "d", 4).scheduler
    for scheduler, expected in ((lcm, [999, 759, 499, 259]), (own, [999, 749, 499, 249])):
        scheduler.set_timesteps(4)
        assert scheduler.timesteps.tolist() == expected


def test_a_preset_is_a_schedule(tmp_path, monkeypatch, capsys):
    options = ["--images", 8, "--batch-size", 8, "--cache", tmp_path]
    code, out, errors = command(monkeypatch, capsys, "seed-sd-5", *options)
    assert code == 0, errors
    assert "seed-sd-5" in out
    code, _, errors = command(monkeypatch, capsys, "seed-sd-55", *options)
    assert code == 2
    assert "seed-sd-55: no such schedule, folder or zip, and no preset of that name" in errors
    assert "; the nearest are seed-sd-5, " in errors


def test_a_folder_can_be_compared_with_the_schedules_of_before(tmp_path, monkeypatch, capsys):
    """Prompts count where they are used, and by their content."""
    made, real = pictures(tmp_path / "made", 12), pictures(tmp_path / "real", 30, seed=1)
    common = ["--images", 12, "--batch-size", 12, "--cache", tmp_path / "cache"]
    common += ["--reference", real, "--extractor", "texture-whole"]
    before = tmp_path / "before.json"
    words = ["seed-sd-5", *common, "--prompts"]
    for name, text in (("a", "a bag\na coat\n"), ("b", "a bag\na coat\n"), ("c", "a shirt\n")):
        (tmp_path / f"{name}.txt").write_text(text)
    assert command(monkeypatch, capsys, *words, tmp_path / "a.txt", "-o", before)[0] == 0
    code, out, errors = command(monkeypatch, capsys, made, *common, "--with", before)
    assert code == 0, errors
    assert "seed-sd-5" in out
    common += ["--with", before]
    words = ["seed-sd-5", *common, "--prompts"]
    assert command(monkeypatch, capsys, *words, tmp_path / "b.txt")[0] == 0
    code, _, errors = command(monkeypatch, capsys, *words, tmp_path / "c.txt")
    assert code == 2
    assert "its prompts differ, so its scores do not compare" in errors


def test_what_is_odd_about_files_is_said_again_when_they_are_recalled(
    tmp_path, monkeypatch, capsys
):
    made = pictures(tmp_path / "made", 12)
    for name in ("003.png", "007.png"):
        Image.open(made / name).convert("L").save(made / name)
    options = ["--images", 12, "--reference", pictures(tmp_path / "real", 20), "--cache", tmp_path]
    for _ in range(2):
        out = command(monkeypatch, capsys, made, *options)[1]
        assert "2 of 12 images were not RGB: 003.png, 007.png" in out.replace("\n", " ")


class Words:
    """Stands for a CLIP model: the score of an image is the number of letters of its text."""

    def __init__(self, source="", device="cpu", long_prompts="cut"):
        pass

    def digest_for(self, texts):
        return "words"

    def cuts(self, texts):
        return []

    def crops(self, size):
        return []

    def prepare(self, images, texts):
        return (texts,)

    def score(self, texts):
        return np.array([len(text) for text in texts], np.float32)


def test_the_clip_score_of_a_folder_is_that_of_its_own_captions(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("stepsearch.compare.evaluating.ClipScore", Words)
    model = load_model("tiny")
    plan = make_schedule("power", 1, model.noise)
    texts = ["a bag", "a coat", "a t-shirt", "a pair of trousers"] * 2
    list(run_batch(model, plan, [Caption(t) for t in texts], tmp_path / "made", batch_size=8))
    options = ["--images", 6, "--batch-size", 3, "--clip-score", "x"]
    options += ["--reference", "fashion-mnist"]
    options += ["--cache", tmp_path / "cache"]
    code, _, errors = command(
        monkeypatch, capsys, tmp_path / "made", *options, "-o", tmp_path / "r.json"
    )
    assert code == 0, errors
    (row,) = json.loads((tmp_path / "r.json").read_text())["contenders"]
    mean = np.mean([len(text) for text in texts[:6]])
    assert row["scores"]["clip_score_words"]["value"] == pytest.approx(mean)
    bare = pictures(tmp_path / "bare", 6)
    code, _, errors = command(monkeypatch, capsys, bare, *options)
    assert (code, errors.count("\n")) == (2, 1)
    assert "bare: it is not known what its images show: no manifest.jsonl of" in errors


class Slow:
    """An extractor whose preparation takes long."""

    name, digest, axes = "slow", "1", None

    def prepare(self, images):
        time.sleep(0.05)
        return images.float().mean((2, 3))

    def features(self, prepared):
        return prepared

    def __call__(self, images):
        return self.features(self.prepare(images))


def test_preparing_images_is_no_time_inside_networks(tmp_path):
    model = load_model("tiny")
    bench = harness(tmp_path, Slow())
    compare(
        [OnSchedule("mine", make_schedule("power", 1, model.noise), model, "d")],
        bench,
        Seeds.of(n=4),
    )
    assert bench.clock.spent["extractor"] < 0.05 < bench.clock.total


def test_a_folder_that_is_sorted_by_class_has_the_error_of_a_mixed_one(
    tmp_path, monkeypatch, capsys
):
    """Blocks of consecutive files would each show one class alone."""
    generator = np.random.default_rng(0)
    for k in range(80):
        bright = k >= 40
        pixels = generator.integers(0, 90, (32, 32, 3)) + (160 if bright else 0)
        image = Image.fromarray(pixels.astype(np.uint8))
        for folder, name in (("sorted", k), ("mixed", k % 40 * 2 + bright)):
            (tmp_path / folder).mkdir(exist_ok=True)
            image.save(tmp_path / folder / f"{name:03d}.png")
    options = ["--images", 80, "--reference", tmp_path / "mixed", "--extractor", "texture-whole"]
    options += ["--distance", "kid", "--cache", tmp_path / "cache", "-o", tmp_path / "r.json"]
    code, _, errors = command(
        monkeypatch, capsys, tmp_path / "mixed", tmp_path / "sorted", *options
    )
    assert code == 0, errors
    rows = json.loads((tmp_path / "r.json").read_text())["contenders"]
    mixed, by_class = (row["scores"]["kid_texture_80"] for row in rows)
    assert by_class["value"] == pytest.approx(mixed["value"], abs=1e-4)
    assert by_class["standard_error"] < 3 * mixed["standard_error"]
