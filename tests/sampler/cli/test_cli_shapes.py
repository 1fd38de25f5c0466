"""--size 32x48 in each command that makes images."""

import json

import pipelines
import pytest
from PIL import Image
from typer.testing import CliRunner

from stepsampler.cli.app import app
from stepsampler.grids import make_schedule
from stepsampler.models import load
from stepsampler.noise import NoiseSchedule


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("shapes")
    pipelines.stable_diffusion().save_pretrained(path / "model")
    make_schedule("power", 2, NoiseSchedule.scaled_linear(), guidance_scale=2.0).save(
        path / "s.json"
    )
    (path / "p.txt").write_text("a fox\na hat\n")
    return path


def run(place, command, out, size):
    words = [command, place / "s.json", "--model", place / "model", "--prompts", place / "p.txt"]
    return CliRunner().invoke(app, list(map(str, [*words, "-o", out, "--size", size])))


def test_images_batches_and_grids_have_the_shape(place, tmp_path):
    for command, out in (("generate", "a"), ("batch", "b"), ("grid", "c.png")):
        result = run(place, command, tmp_path / out, "32x48")
        assert result.exit_code == 0, result.exception
    assert Image.open(tmp_path / "a" / "p0001-s00001.png").size == (32, 48)
    assert Image.open(tmp_path / "a" / "grid.png").size == (68, 50)
    assert Image.open(tmp_path / "b" / "000001.png").size == (32, 48)
    width, height = Image.open(tmp_path / "c.png").size
    assert width > 68
    assert height > 50
    head = json.loads((tmp_path / "b" / "manifest.jsonl").read_text().splitlines()[0])
    assert head["shape"] == [4, 24, 16]
    again = run(place, "batch", tmp_path / "b", "48x32")
    assert "was begun with another shape" in str(again.exception)


def test_a_sheet_of_wide_and_low_images_is_enlarged_by_its_longer_side(place, tmp_path):
    assert run(place, "generate", tmp_path / "a", "64x16").exit_code == 0
    assert Image.open(tmp_path / "a" / "grid.png").size == (132, 18)


@pytest.mark.parametrize("command", ["generate", "batch", "grid"])
def test_a_size_that_is_none_is_one_sentence_before_a_model_loads(place, tmp_path, command):
    for size in ("0", "-64", "32x", "axb"):
        said = str(run(place, command, tmp_path / "x.png", size).exception)
        assert said.startswith("--size must be pixels, at least 1, such as 512 or 768x1024")
        assert said.endswith(f"got {size!r}")
    said = str(run(place, command, tmp_path / "x.png", "33x32").exception)
    assert said.startswith("model '")
    told = "': size must be a multiple of 2 pixels, got 33x32: the nearest are 32 and 34x32"
    assert said.endswith(told)
    assert not (tmp_path / "x.png").exists()


def test_the_anime_example_of_the_seed_runs_at_its_width_and_height(tmp_path):
    """768 x 1024 there; a tiny SDXL has pixels in the same ratio, and is told them."""
    pipelines.sdxl().save_pretrained(tmp_path / "model")
    words = ["seed-dunipc-anime-8", "--model", tmp_path / "model", "--size", "48x64"]
    words += ["--prompt", "a castle", "-o", tmp_path / "o"]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.exception
    assert Image.open(tmp_path / "o" / "p0000-s00000.png").size == (48, 64)
    condition = load(str(tmp_path / "model"), size="48x64").encode(["a"])
    assert condition["time_ids"].tolist() == [[64, 48, 0, 0, 64, 48]]  # heights come first there
