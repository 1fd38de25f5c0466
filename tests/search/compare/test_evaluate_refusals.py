"""Bad input to `stepsearch evaluate`: one clear sentence each, and exit code 2."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluating import command, pictures
from PIL import Image

from stepsampler import UserError, load
from stepsearch.metrics.features import load_extractor
from stepsearch.metrics.images import ImageFiles
from stepsearch.metrics.reference import fit

FILE = Path(__file__).parents[3] / "studies" / "tiny-3-steps.schedule.json"


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """A folder of everything that cannot be scored."""
    base = tmp_path_factory.mktemp("bad")
    pictures(base / "good", 12)
    pictures(base / "made", 3)
    pictures(base / "one", 1)
    pictures(base / "same", 12, constant=True)
    pictures(base / "mixed", 2)
    pictures(base / "mixed" / "more", 2, size=33)
    pictures(base / "late", 100)
    pictures(base / "late" / "more", 20, size=48)
    gaps = pictures(base / "gaps", 130)
    for name in ("060.png", "120.png"):
        (gaps / name).write_bytes((gaps / name).read_bytes()[:200])
    (base / "empty").mkdir()
    corrupt = pictures(base / "corrupt", 4)
    (corrupt / "001.png").write_bytes((corrupt / "001.png").read_bytes()[:100])
    (corrupt / "003.png").write_bytes(b"")
    deep = pictures(base / "deep", 2)
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(deep / "grey16.png")
    bomb = b"P6 70000 70000 255 "  # a header without its five billion pixels
    (pictures(base / "bomb", 2) / "x.bmp").write_bytes(bomb)
    with zipfile.ZipFile(base / "damaged.zip", "w") as archive:
        for path in sorted((base / "good").iterdir()):
            archive.write(path, path.name)
    content = bytearray((base / "damaged.zip").read_bytes())
    content[60:90] = bytes(30)  # in the first file
    (base / "damaged.zip").write_bytes(content)
    content[content.index(b"PK\1\2")] = 0  # in the list of files
    (base / "broken.zip").write_bytes(content)
    (base / "moving").mkdir()
    (base / "moving" / "a.gif").write_bytes(b"GIF89a")
    pictures(base / "five", 5)
    images = np.zeros((1, 32, 32, 3), np.uint8)
    np.savez(base / "one.npz", arr_0=images)
    np.savez(base / "nan.npz", mu=np.full(2048, np.nan), sigma=np.eye(2048))
    np.savez(base / "inception.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    texture = load_extractor("texture")
    fit(texture, ImageFiles.find(base / "good").batches()).save(base / "texture.safetensors")
    plan = load(FILE)
    steps = [replace(step, guidance_scale=1e38) for step in plan.steps]
    replace(plan, steps=tuple(steps), provenance={}).save(base / "overflows.json")
    return base


GOOD = ["good", "--reference", "good", "--images"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        # fewer than two images
        ([*GOOD, "1"], "--images must be at least 2 and at most 10,000,000, got 1"),
        (["one", "--reference", "good"], "one: 1 image, but 2 are wanted; lower --images"),
        (["good", "--reference", "one"], "a reference needs at least two images, got 1"),
        (["good", "--reference", "one.npz"], "a reference needs at least two images, got 1"),
        (["made", "--images", "1000"], "made: 3 images, but 1000 are wanted; lower --images"),
        ([*GOOD, "7", "--distance", "fd-infinity"], "needs at least 8 images, got 7"),
        ([*GOOD, "7", "--distance", "prc"], "--distance prc needs at least 8 images, got 7"),
        (
            ["good", "--reference", "five", "--distance", "prc", "--images", "12"],
            "--distance prc needs at least 8 real images, the reference has 5",
        ),
        # corrupt files
        (
            ["corrupt", "--images", "4", "--reference", "good"],
            "corrupt: 2 of 4 files cannot be read as images: 001.png (damaged or",
        ),
        (
            ["damaged.zip", "--images", "12", "--reference", "good"],
            "damaged.zip: 1 of 12 files cannot be read as images: 000.png",
        ),
        (["good", "--reference", "broken.zip"], "broken.zip: a damaged zip (Bad magic number"),
        (["broken.zip", "--reference", "good"], "broken.zip: a damaged zip (Bad magic number"),
        # mixed sizes
        (
            ["mixed", "--images", "4", "--reference", "good"],
            "images must be of one size, but 000.p",
        ),
        (["mixed", "--images", "4", "--reference", "good"], "33 x 33; give a size to crop them to"),
        # beyond the first part of 100 images
        (
            ["late", "--images", "120", "--reference", "good"],
            "late: images must be of one size, but 000.png is 32 x 32 and more/000.png is 48 x 48",
        ),
        (
            ["gaps", "--images", "130", "--reference", "good"],
            "gaps: 2 of 130 files cannot be read as images: 060.png (damaged or",
        ),
        # nothing there
        (["empty", "--reference", "good"], "empty: no images in it (.png, .jpg"),
        (["good", "--reference", "empty"], "empty: no images in it (.png, .jpg"),
        (["moving", "--reference", "good"], ".pgm); not read are a.gif"),
        (["nowhere"], "nowhere: no such schedule, folder or zip"),
        (["good", "--reference", "nowhere"], "'nowhere': no folder, zip, .npz or .safetensors"),
        ([], "nothing to score: give a schedule, a folder of images, or --stock STEPS"),
        # a constant image; among the contenders it is a note
        (["good", "--reference", "same"], "are all the same: their covariance is zero"),
        # not finite
        (["overflows.json"], "overflows: the latents are not finite: the schedule overflows, or"),
        (["good", "--reference", "nan.npz"], "nan.npz: mu or sigma is not finite"),
        # statistics of another extractor
        (
            ["good", "--reference", "texture.safetensors", "--extractor", "lite0"],
            "the reference was made with texture ",
        ),
        (
            ["good", "--reference", "texture.safetensors", "--extractor", "texture-whole"],
            "the reference is of projected features of texture, not of all features",
        ),
        (["good", "--reference", "inception.npz"], "are taken to be of official Inception, but"),
        # names that are not known
        (["good", "--distance", "fid"], "--distance must be one of fd, fd-infinity, kid, prc"),
        (["good", "--range", "all"], "--range must be one of search, selection, test"),
        (["good", "--first-seed", "5"], "held-out seeds start at 20000000, got 5"),
        (
            ["good", "--range", "search", "--first-seed", "20000000"],
            "--first-seed: the seeds of --range search are 0 to 9999999, got 20000000 to",
        ),
        (
            ["good", "--range", "search", "--first-seed", "9999999"],
            "--first-seed: the seeds of --range search are 0 to 9999999, got 9999999 to 10000000",
        ),
        (["good", "--with", "nowhere.json"], "nowhere.json: not a result of stepsearch evaluate"),
        (
            ["good", "--reference", "good", "--extractor", "lite0", "--extractor", "lite0"],
            "two of them would both be called fd_lite0",
        ),
        (
            ["good", "--reference", "good", "--extractor", "texture+lite0", "--distance", "kid"],
            "--distance kid is of one extractor: give those of texture+lite0 one by one",
        ),
        (["good", "--fit", "pad"], "--fit must be crop, squash512 or none, got 'pad'"),
        (["--stock", "2", "--scheduler", "Best"], "diffusers has no 'Best'; give a class such as"),
        (
            ["--stock", "60", "--scheduler", "LCMScheduler"],
            "--stock: LCMScheduler cannot take 60 steps of this pipeline: The combination of",
        ),
        # of a model that nothing needs
        (["good", "--lora", "x.safetensors"], "but nothing that it makes is scored: give a sched"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_sentence(
    bad, options, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(bad)
    images = [] if "--images" in options else ["--images", "2"]
    code, _, errors = command(monkeypatch, capsys, *options, *images, "--cache", tmp_path)
    assert (code, errors.count("\n")) == (2, 1), errors
    assert message in errors


def test_what_overflows_is_named_and_the_others_are_scored(bad, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(bad)
    out = tmp_path / "out.json"
    options = ["--images", "2", "--cache", tmp_path / "cache", "-o", out]
    code, said, _ = command(monkeypatch, capsys, "overflows.json", "seed-sd-4", *options)
    assert code == 1
    assert "left out: overflows: the latents are not finite: the schedule overflows" in said
    data = json.loads(out.read_text())
    assert [row["name"] for row in data["contenders"]] == ["seed-sd-4"]
    assert data["left_out"][0].startswith("overflows: the latents are not finite")


def test_grey_files_are_counted_and_equal_ones_are_said(bad, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(bad)
    for path in pictures(tmp_path / "grey", 12).iterdir():
        Image.open(path).convert("L").save(path)
    options = ["--images", "12", "--reference", "good", "--cache", tmp_path / "cache"]
    code, out, _ = command(monkeypatch, capsys, tmp_path / "grey", "same", *options)
    assert code == 0
    assert "grey: 12 of 12 images were not RGB" in out
    assert "same: all images are the same: their covariance is zero" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "0"], "--images must be at least 2 and at most 10,000,000, got 0"),
        (["--images", "10000001"], "--images must be at least 2 and at most 10,000,000, got 10000"),
        (["--size", "0"], "--size must be pixels, at least 1, such as 512 or"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--first-seed=-1"], "at least 0 and at most 4,611,686,018,427,387,904, got -1"),
        (["--first-seed", str(2**63)], "18,427,387,904, got 9223372036854775808"),
        (["--stock", "3", "--stock", "0"], "--stock must be at least 1, got 0"),
        (["--stock", "3", "--guidance-scale=-1"], "--guidance-scale must be at least 0, got -1.0"),
        (["--stock", "3", "--guidance-scale", "nan"], "must be at least 0, got nan"),
        (["--stock", "3", "--guidance-scale", "inf"], "must be at least 0, got inf"),
        (["--guidance-scale", "2"], "--timestep-spacing are of --stock, which is not given"),
        (["--timestep-spacing", "trailing"], "--timestep-spacing are of --stock, which is not"),
        (
            ["--stock", "3", "--timestep-spacing", "even"],
            "--timestep-spacing must be leading, trailing or linspace, got 'even'",
        ),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_loaded(
    options, message, monkeypatch, capsys
):
    def reach(paths):
        raise UserError("now something would be loaded")

    monkeypatch.setattr("stepsearch.compare.evaluating.sort_out", reach)
    assert "now something would be loaded" in command(monkeypatch, capsys, FILE)[2]
    code, _, errors = command(monkeypatch, capsys, FILE, *options)
    assert (code, errors.count("\n")) == (2, 1)
    assert message in errors
