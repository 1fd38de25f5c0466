"""The .npz in which ADM's and DiT's scripts keep their samples, as a contender."""

import json

import numpy as np
import pytest
from evaluating import command, pictures
from PIL import Image


@pytest.fixture
def scored(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "real", 30, seed=9)

    def evaluate(*options):
        common = ["--reference", "real", "--images", 20, "--cache", "c", "-o", "r.json"]
        return command(monkeypatch, capsys, *options, *common)

    return evaluate


def test_an_array_is_scored_as_the_folder_of_its_images(tmp_path, scored):
    folder = pictures(tmp_path / "made", 24)
    rows = [np.array(Image.open(path)) for path in sorted(folder.iterdir())]
    np.savez(tmp_path / "samples_24x32x32x3.npz", np.stack(rows))
    code, out, errors = scored("made", "samples_24x32x32x3.npz")
    assert code == 0, errors + out
    one, other = json.loads((tmp_path / "r.json").read_text())["contenders"]
    assert one["scores"] == other["scores"]
    assert one["identity"] != other["identity"]


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"mu": np.zeros(4), "sigma": np.eye(4)}, (), "statistics without images can be a refer"),
        ({"arr_0": np.zeros((3, 32, 32, 3), np.uint8)}, (), "x.npz: 3 images, but 20 are wanted"),
        (
            {"arr_0": np.zeros((20, 32, 48, 3), np.uint8)},
            ("--size", 32),
            "x.npz: its images are 48 x 32 and are taken as they are, wanted is 32 x 32",
        ),
        ({"arr_0": np.zeros((20, 8, 8, 3), np.uint8)}, ("--size", 32), "8 x 8 and are taken as"),
        (
            {"arr_0": np.zeros((20, 32, 32, 3), np.uint8)},
            ("--fit", "squash512"),
            "taken as they are: give --fit crop or none",
        ),
        ({"arr_0": np.zeros((20, 32, 32), np.uint8)}, (), "arr_0 must be uint8 (n, height, width"),
    ],
)
def test_other_arrays_are_refused(tmp_path, scored, arrays, options, message):
    np.savez(tmp_path / "x.npz", **arrays)
    code, _, errors = scored("x.npz", *options)
    assert (code, errors.count("\n")) == (2, 1)
    assert message in errors
