"""Folders and zips of images as other programs leave them."""

import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from evaluating import pictures
from PIL import Image, ImageCms

from stepsampler import UserError
from stepsearch.metrics.images import ImageFiles

HIDDEN = (".hidden.png", ".ipynb_checkpoints/000-checkpoint.png", "@eaDir/000.png")


def zipped(path, names, folder):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.write(folder / name, name)
    return path


def test_hidden_files_are_left_out_and_named(tmp_path):
    folder = pictures(tmp_path / "f", 3)
    for name in HIDDEN:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((folder / "000.png").read_bytes())
    names = [f"00{k}.png" for k in range(3)]
    for source in (folder, zipped(tmp_path / "f.zip", [*names, *HIDDEN], folder)):
        files = ImageFiles.find(source)
        assert files.names == names
        assert f"sheets, hidden, or that a system added: {HIDDEN[0]}" in (files.note)


def test_a_sheet_beside_the_images_of_stepsample_is_none_of_them(tmp_path):
    folder = pictures(tmp_path / "f", 1)
    for name in ("p0000-s00000.png", "grid.png", "grid-2.png", "else/grid.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((folder / "000.png").read_bytes())
    files = ImageFiles.find(folder)
    assert files.names == ["000.png", "else/grid.png", "p0000-s00000.png"]
    assert "without 2 files of other kinds, sheets, hidden, " in files.note
    assert files.note.endswith(": grid-2.png, grid.png")


def test_linked_folders_are_walked_once(tmp_path):
    pictures(tmp_path / "cats", 2)
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "cats").symlink_to(tmp_path / "cats")
    (folder / "again").symlink_to(folder)
    assert ImageFiles.find(folder).names == ["cats/000.png", "cats/001.png"]


@pytest.mark.parametrize("suffix", ["avif", "jfif", "jpe", "JPEG"])
def test_other_names_of_kinds_that_pillow_reads(tmp_path, suffix):
    kind = "AVIF" if suffix == "avif" else "JPEG"
    Image.new("RGB", (16, 16), "red").save(tmp_path / f"x.{suffix}", kind)
    (batch,) = ImageFiles.find(tmp_path).batches()
    assert batch.shape == (1, 3, 16, 16)
    assert batch[0, 0].min() > 200


def deep_png(path):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    pixels = np.random.default_rng(0).integers(0, 65536, (8, 8, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    content = head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return pixels


def test_sixteen_bits_of_colour_are_cut_to_eight_and_that_is_said(tmp_path):
    pixels = deep_png(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    files = ImageFiles.find(tmp_path)
    (batch,) = files.batches()
    assert (batch[0].permute(1, 2, 0).numpy() == pixels >> 8).all()
    assert "1 of 2 images have more than 8 bits a channel, of which the upper 8" in files.note


def test_a_profile_other_than_srgb_is_said(tmp_path):
    for name, space in (("a", "sRGB"), ("b", "XYZ")):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()
        for suffix in ("png", "jpg"):
            Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.{suffix}", icc_profile=profile)
    note = ImageFiles.find(tmp_path).note
    assert "2 of 4 images have a profile of colours other than sRGB, which is not" in note
    assert note.endswith("applied: b.jpg, b.png")


def test_a_name_twice_in_a_zip_is_one_image_and_said(tmp_path):
    folder = pictures(tmp_path / "f", 2)
    with warnings.catch_warnings(action="ignore"):
        path = zipped(tmp_path / "f.zip", ["000.png", "001.png", "000.png"], folder)
    files = ImageFiles.find(path)
    assert files.names == ["000.png", "001.png"]
    assert "1 name again in the zip, of which the last is read" in files.note


def test_a_zip_that_was_cut_off_is_named_as_one(tmp_path):
    path = zipped(tmp_path / "f.zip", ["000.png"], pictures(tmp_path / "f", 1))
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(UserError, match=r"f\.zip: not a whole zip: cut off, or of another kind"):
        ImageFiles.find(path)


def test_no_warning_of_pillow_comes_through(tmp_path, monkeypatch):
    for k, suffix in enumerate(("png", "jpg")):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{k}.{suffix}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # of more it warns, of twice it refuses
    with warnings.catch_warnings(action="error"):
        (batch,) = ImageFiles.find(tmp_path).batches()
    assert len(batch) == 2
