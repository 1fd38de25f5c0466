"""Files that cannot be read: the others are scored, each is named, the exit code says so."""

import json
import zipfile

import numpy as np
import pytest
from evaluating import command, pictures
from PIL import Image

from stepsearch.metrics.images import ImageFiles


def broken(folder, n, names, seed=0):
    """n pictures, of which those at the end cannot be read, each for another reason."""
    pictures(folder, n, seed)
    for i, name in enumerate(names):
        path = folder / name
        if i % 4 == 0:
            path.write_bytes(path.read_bytes()[:200])  # behind a whole head
        elif i % 4 == 1:
            path.write_bytes(b"")
        elif i % 4 == 2:
            path.write_bytes(b"<html>")
        else:
            Image.fromarray(np.zeros((32, 32), np.uint16)).save(path)
    return folder


BAD = ["003.png", "010.png", "011.png", "020.png"]
REASONS = (
    "003.png (damaged or cut off)",
    "010.png (empty)",
    "011.png (no image, begins",
    "020.png",
)


@pytest.fixture
def scored(tmp_path, monkeypatch, capsys):
    """The exit code of `evaluate`, what it prints, and its result."""
    real = pictures(tmp_path / "real", 30, seed=9)

    def evaluate(*options):
        out = tmp_path / "r.json"
        out.unlink(missing_ok=True)
        cache = ["--cache", tmp_path / "cache", "-o", out]
        reference = [] if "--reference" in options else ["--reference", real]
        code, said, errors = command(monkeypatch, capsys, *options, *reference, *cache)
        return code, said + errors, json.loads(out.read_text()) if out.exists() else None

    return evaluate


def test_the_others_of_a_folder_are_scored(tmp_path, scored):
    hurt = broken(tmp_path / "hurt", 40, BAD)
    whole = tmp_path / "whole"
    whole.mkdir()
    for path in hurt.iterdir():
        if path.name not in BAD:
            (whole / path.name).write_bytes(path.read_bytes())
    code, said, data = scored(hurt, "--images", 36)
    assert code == 1
    assert all(reason in said for reason in REASONS)
    assert "4 files: " in said
    again, recalled, _ = scored(hurt, "--images", 36)
    assert (again, "4 files: " in recalled) == (1, True)
    code, _, clean = scored(whole, "--images", 36)
    assert code == 0
    value, expected = (
        next(iter(result["contenders"][0]["scores"].values()))["value"] for result in (data, clean)
    )
    assert value == pytest.approx(expected, rel=1e-6)  # the same images, in another order


def test_n_stays_what_it_says(tmp_path, scored):
    hurt = broken(tmp_path / "hurt", 40, BAD)
    code, said, _ = scored(hurt, "--images", 37)
    assert code == 2
    assert "hurt: 4 of 40 files cannot be read as images: 003.png" in said
    assert "36 can, but 37 are wanted: lower --images" in said
    assert all(reason in said for reason in REASONS)


def test_another_image_takes_the_place_and_all_others_keep_theirs(tmp_path):
    whole = ImageFiles.find(pictures(tmp_path / "whole", 20))
    drawn = whole.chosen(10).names
    (tmp_path / "whole" / drawn[3]).write_bytes(b"")
    files = ImageFiles.readable(tmp_path / "whole", 10, "apply")
    assert files.names == [*drawn[:3], whole.chosen(11).names[10], *drawn[4:]]
    assert list(files.broken) == [drawn[3]]


def test_the_others_of_a_reference_are_its_images(tmp_path, scored):
    hurt = broken(tmp_path / "hurt", 40, BAD)
    made = pictures(tmp_path / "made", 20, seed=5)
    for _ in range(2):  # measured, and from the cache
        code, said, data = scored(made, "--images", 20, "--reference", hurt)
        assert code == 1
        assert all(reason in said for reason in REASONS)
        assert data["metrics"][0]["reference_images"] == 36
    few = broken(tmp_path / "few", 3, ["001.png", "002.png"])
    code, said, _ = scored(made, "--images", 20, "--reference", few)
    assert code == 2
    assert "few: 2 of 3 files cannot be read as images: 001.png" in said


def test_a_zip_with_a_damaged_member(tmp_path, scored):
    pictures(tmp_path / "good", 12)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for path in sorted((tmp_path / "good").iterdir()):
            archive.write(path, path.name)
    content = bytearray((tmp_path / "z.zip").read_bytes())
    content[60:90] = bytes(30)  # in the first file
    (tmp_path / "z.zip").write_bytes(content)
    code, said, _ = scored(tmp_path / "z.zip", "--images", 11)
    assert (code, "000.png (damaged in the zip, or encrypted)" in said) == (1, True)
