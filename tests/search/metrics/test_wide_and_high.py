"""Images that are not square in studies and in `evaluate`: model, reference, judge and sheet."""

import json
import sys

import numpy as np
import pipelines
import pytest
import torch
from PIL import Image, ImageOps

from stepsampler import Schedule, Step, UserError
from stepsampler.support.pictures import save_png
from stepsearch.cli import main
from stepsearch.config import StudyConfig
from stepsearch.metrics.evaluator import Evaluator
from stepsearch.metrics.features import load_extractor
from stepsearch.metrics.images import ImageFiles
from stepsearch.metrics.pretrained import ClipScore
from stepsearch.metrics.reference import load_reference
from stepsearch.rehearsal.dryrun import dry_run, shrunk
from stepsearch.rehearsal.miniatures.texts import save_clip

PLAN = Schedule((Step(8.0, 2.0), Step(1.0, 1.0)), 0.0, "ddim")
SIZE = "32x48"  # width x height


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, real images of several shapes, and a schedule."""
    path = tmp_path_factory.mktemp("shapes")
    pipelines.stable_diffusion().save_pretrained(path / "model")
    draw = np.random.default_rng(0)
    for k in range(9):
        height, width = 60 + 7 * k, 100 - 6 * k
        pixels = torch.from_numpy(draw.integers(0, 256, (3, height, width), np.uint8))
        save_png(pixels, path / "real" / f"{k}.png")
    PLAN.save(path / "s.json")
    return path


def study(place, **model):
    return StudyConfig.model_validate(
        {
            "name": "t",
            "model": {"id": str(place / "model"), "size": SIZE, **model},
            "space": {"num_steps": 2, "passes": 4},
            "evaluation": {
                "reference": str(place / "real"),
                "extractor": "lite0",
                "batch_size": 4,
            },
        }
    )


def test_the_reference_is_cropped_to_the_shape_of_the_images(place, tmp_path):
    extractor = load_extractor("lite0")
    batches = list(ImageFiles.find(place / "real").batches(SIZE))
    (first, *_) = torch.cat(batches)
    with Image.open(place / "real" / "0.png") as image:
        expected = ImageOps.fit(image, (32, 48), Image.Resampling.BICUBIC)
    assert np.array_equal(first.permute(1, 2, 0).numpy(), np.array(expected))
    found = load_reference(str(place / "real"), extractor, SIZE, tmp_path)
    assert found.size == SIZE
    (kept,) = tmp_path.glob("reference-*")
    assert load_reference(str(kept), extractor, SIZE, tmp_path).size == SIZE
    with pytest.raises(UserError, match="as crop to 32x48 pixels, these are as crop to 48x32"):
        load_reference(str(kept), extractor, "48x32", tmp_path)
    with pytest.raises(UserError, match="prepared as crop to 32 pixels, these are .* to 32x48"):
        load_reference("fashion-mnist", extractor, SIZE, tmp_path)


def test_a_study_makes_and_measures_images_of_its_shape(place, tmp_path):
    evaluator = Evaluator(study(place), tmp_path)
    assert evaluator.model.size == evaluator.reference.size == SIZE
    assert evaluator.images(PLAN, range(2)).shape == (2, 3, 48, 32)
    found = evaluator.measure(PLAN, range(4))
    assert found.finite
    assert Image.open(found.sheet).height == 50


def test_the_shape_belongs_to_a_study_and_a_number_is_a_square(place, tmp_path):
    square, same = (study(place, size=size) for size in (32, "32x32"))
    assert square == same
    assert square.model.size == 32
    wide = study(place, size="48 X 32")
    assert wide.model.size == "48x32"
    assert StudyConfig.model_validate_json(wide.model_dump_json()) == wide


def test_a_dry_run_has_the_shape_of_the_study(place, tmp_path):
    config = study(place, size="768x1024")
    assert shrunk(config, "stable-diffusion", tmp_path).model.size == "32x64"
    dry_run(config, "stable-diffusion", tmp_path / "x")
    assert Image.open(tmp_path / "x" / "run" / "grid.png").height > 64


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["stepsearch", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr()
    return caught.value.code, said.out, said.err


def test_evaluate_scores_images_of_any_shape(place, tmp_path, monkeypatch, capsys):
    """A schedule, the stock pipeline and a folder, against real images of their shape."""
    save_clip(tmp_path / "clip")
    for k in range(4):
        save_png(torch.full((3, 48, 32), k, dtype=torch.uint8), tmp_path / "made" / f"{k}.png")
    common = ["--reference", place / "real", "--images", 4, "--extractor", "lite0-whole"]
    common += ["--cache", tmp_path / "cache", "--prompts", tmp_path / "p.txt"]
    (tmp_path / "p.txt").write_text("a fox\n")
    model = ["--model", place / "model", "--size", SIZE]
    code, out, err = run(
        *(monkeypatch, capsys, "evaluate", place / "s.json", "--stock", 2, *model, *common),
        *("--clip-score", tmp_path / "clip", "-o", tmp_path / "r.json"),
    )
    assert code == 0, err
    assert "the CLIP of the score sees the middle 32 x 32 pixels of images of 32 x 48" in out
    assert json.loads((tmp_path / "r.json").read_text())["size"] == SIZE
    code, out, err = run(
        *(monkeypatch, capsys, "evaluate", tmp_path / "made", *common, "-o", tmp_path / "f.json")
    )
    assert code == 0, err
    assert json.loads((tmp_path / "f.json").read_text())["size"] == SIZE
    code, out, err = run(monkeypatch, capsys, "evaluate", place / "s.json", *common, "--size", "3x")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "--size must be pixels, at least 1, such as 512 or 768x1024 (width x height)" in err


def test_a_clip_that_crops_nothing_says_nothing(tmp_path):
    save_clip(tmp_path)
    clip = ClipScore(str(tmp_path))
    assert clip.crops(None) == clip.crops(32) == []
    clip.images.processor.do_center_crop = False
    assert clip.crops("32x48") == []
