"""Commands on a model of videos: what they write, and what they refuse."""

import pipelines
import pytest
from PIL import Image
from typer.testing import CliRunner

from stepsampler.cli.app import app

PRESET = "wan22-lightning-4"  # of two networks


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos")
    pipelines.wan(0.875).save_pretrained(path / "two")
    pipelines.wan().save_pretrained(path / "one")
    (path / "p.txt").write_text("a fox\na hat\n")
    return path


def run(place, out, *command, model="two", frames=9):
    words = [*command, PRESET, "--model", place / model, "--prompts", place / "p.txt"]
    words += ["-o", out, "--size", 32, "--frames", frames]
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.mark.parametrize(
    ("command", "file", "columns"), [((), "p0001-s00001.png", 2), (("batch",), "000001.png", None)]
)
def test_a_video_is_an_animated_file_and_three_frames_of_the_sheet(
    place, tmp_path, command, file, columns
):
    done = run(place, tmp_path, *command)
    assert done.exit_code == 0, done.output
    assert "2 images of 4" in done.output
    assert Image.open(tmp_path / file).n_frames == 1 + 9  # the still before them
    if columns:
        assert Image.open(tmp_path / "grid.png").width == columns * (3 * 32 + 2)


def test_a_grid_has_three_frames_of_each(place, tmp_path):
    done = run(place, tmp_path / "g.png", "grid")
    assert done.exit_code == 0, done.output
    assert Image.open(tmp_path / "g.png").width > 2 * 3 * 32


def test_what_does_not_fit_is_one_sentence(place, tmp_path):
    for options, message in (
        ({"frames": 8}, "frames must be 1 more than a multiple of 4, got 8"),
        ({"model": "one"}, "changes the network at sigma 0.9 (boundary), but the model has one"),
    ):
        done = run(place, tmp_path, **options)
        assert message in str(done.exception)
