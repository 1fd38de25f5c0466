import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from stepsampler import UserError
from stepsampler.support.images import pixels
from stepsearch.metrics.images import ImageFiles


def draw(folder, name, size=(8, 8), mode="RGB", seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(folder / name)


def test_a_zip_reads_like_its_folder(tmp_path):
    for k in range(5):
        draw(tmp_path / "real", f"{k}.png", (12, 9), seed=k)
    (tmp_path / "real" / "notes.txt").write_text("no image")
    with zipfile.ZipFile(tmp_path / "real.zip", "w") as archive:
        for path in (tmp_path / "real").iterdir():
            archive.write(path, f"val2014/{path.name}")
    folder, packed = (ImageFiles.find(tmp_path / n) for n in ("real", "real.zip"))
    assert folder.digest() == packed.digest()
    for a, b in zip(folder.batches(8, batch=2), packed.batches(8, batch=2), strict=True):
        assert a.shape[1:] == (3, 8, 8)
        assert (a == b).all()


def test_the_crop_keeps_the_middle_of_a_wide_picture(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    Image.fromarray(wide).save(tmp_path / "w.png")
    (batch,) = ImageFiles.find(tmp_path).batches(8)
    assert batch.unique().tolist() == [200]


def test_the_squash_keeps_all_of_it(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 12:] = 200
    Image.fromarray(wide).save(tmp_path / "w.png")
    (batch,) = ImageFiles.find(tmp_path).batches(8, "squash512")
    assert batch.shape == (1, 3, 512, 512)
    expected = Image.fromarray(wide).resize((512, 512), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(batch[0].permute(1, 2, 0).numpy(), np.array(expected))


def test_pictures_that_are_not_rgb_are_converted_and_named(tmp_path):
    draw(tmp_path, "a.png")
    draw(tmp_path, "b.png", mode="L")
    draw(tmp_path, "c.png", mode="RGBA")
    files = ImageFiles.find(tmp_path)
    (batch,) = files.batches(8)
    assert (batch[1, 0] == batch[1, 2]).all()  # grey
    assert files.note == f"{tmp_path}: 2 of 3 images were not RGB: b.png, c.png"
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in "abc":
            archive.write(tmp_path / f"{name}.png", f"{name}.png")
    assert ImageFiles.find(tmp_path / "x.zip").note.endswith(
        "2 of 3 images were not RGB: b.png, c.png"
    )


def test_broken_files_are_counted_and_named(tmp_path):
    for k in range(9):
        draw(tmp_path, f"{k}.png", (40, 40))
    for k in (1, 2, 3, 5, 6, 7):
        (tmp_path / f"{k}.png").write_bytes((tmp_path / f"{k}.png").read_bytes()[:200])
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")  # 16 bits
    cut = ", ".join(rf"{k}\.png \(damaged or cut off\)" for k in (1, 2, 3, 5, 6, 7))
    deep = r"deep\.png \(mode I;16, more than 8 bits a channel or no colours\)"
    with pytest.raises(UserError, match=f"7 of 10 files cannot be read as images: {cut}, {deep}$"):
        list(ImageFiles.find(tmp_path).batches(8, batch=2))


def test_mixed_sizes_need_a_size(tmp_path):
    draw(tmp_path, "a.png", (8, 8))
    draw(tmp_path, "b.png", (9, 8))
    files = ImageFiles.find(tmp_path)
    with pytest.raises(UserError, match=r"one size, but a\.png is 8 x 8 and b\.png is 9 x 8"):
        list(files.batches())
    assert [tuple(b.shape) for b in files.batches(fit="none")] == [(1, 3, 8, 8), (1, 3, 8, 9)]
    assert [len(b) for b in files.batches(6)] == [2]


def test_sizes_are_compared_and_broken_files_counted_beyond_the_range_that_is_read(tmp_path):
    """The files are measured in parts, and a part cannot see the others."""
    for k in range(6):
        draw(tmp_path / "mixed", f"{k}.png", (8, 8) if k < 3 else (9, 8))
        draw(tmp_path / "broken", f"{k}.png", (40, 40))
    with pytest.raises(UserError, match=r"one size, but 0\.png is 8 x 8 and 3\.png is 9 x 8"):
        next(ImageFiles.find(tmp_path / "mixed").batches(names=range(3)))
    for k in (1, 5):  # heads are whole
        path = tmp_path / "broken" / f"{k}.png"
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"2 of 6 files cannot .*: 1\.png \(.*\), 5\.png \(.*\)$"):
        list(ImageFiles.find(tmp_path / "broken").batches(names=range(3)))
    assert [len(b) for b in ImageFiles.find(tmp_path / "broken").chosen(1).batches()] == [1]


def test_images_are_drawn_unless_they_are_a_batch_of_ours(tmp_path):
    for folder in ("one", "two", "batch"):
        for k in range(8):
            draw(tmp_path / folder, f"{folder}-{k}.png", (8, 8))
    (tmp_path / "batch" / "manifest.jsonl").touch()
    one, two, batch = (ImageFiles.find(tmp_path / name) for name in ("one", "two", "batch"))
    drawn = one.chosen(5)
    assert drawn.names != sorted(drawn.names)
    assert [n[-5] for n in two.chosen(5).names] == [n[-5] for n in drawn.names]  # they pair
    assert drawn.names == one.chosen(8).names[:5]
    assert drawn.note.endswith("one: 5 of 8 images, drawn")
    assert batch.chosen(5).names == batch.names[:5]
    assert batch.chosen(5).note.endswith("batch: 5 of 8 images, the first")
    assert one.chosen(8).note == ""


@pytest.mark.parametrize("said", [None, 2_000])  # what the zip says of the size; the truth
def test_a_small_zip_does_not_fill_the_memory(tmp_path, monkeypatch, said):
    monkeypatch.setattr(pixels, "LARGEST", 2**20)
    place, size = tmp_path / "x.zip", 2**26
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    small = (tmp_path / "small.png").read_bytes()
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "acd":
            archive.writestr(f"{name}.png", small)
        archive.writestr("b.png", small + bytes(size - len(small)))
    if said:
        told = place.read_bytes().replace(struct.pack("<I", size), struct.pack("<I", said))
        place.write_bytes(told)
    tracemalloc.start()
    try:
        files = ImageFiles.readable(place, 3, "apply")
        (batch,) = files.batches(8) if not said else [torch.zeros(3)]
        list(files._bytes([*files.names, "b.png"]))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**23
    assert len(batch) == 3
    if not said:
        assert "b.png (67,108,864 bytes, more than 1,048,576)" in files.note
        (tmp_path / "b.png").write_bytes(small + bytes(2**20))
        with pytest.raises(UserError, match="b.png .1,048,6.* bytes, more than 1,048,576"):
            ImageFiles.readable(tmp_path, 2, "apply")


def test_a_link_to_nowhere_is_named(tmp_path):
    draw(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "absent.png")
    with pytest.raises(UserError, match=r"1 of 2 files cannot .*: b\.png \(No such file"):
        list(ImageFiles.find(tmp_path).batches())


def test_every_kind_of_picture_is_read_or_named(tmp_path):
    for name in ("a.png", "b.tif", "c.TIFF", "d.ppm", "e.gif"):
        draw(tmp_path, name)
    draw(tmp_path, "f.pgm", mode="L")
    (tmp_path / "g.npy").write_bytes(b"")
    files = ImageFiles.find(tmp_path)
    assert files.names == ["a.png", "b.tif", "c.TIFF", "d.ppm", "f.pgm"]
    (batch,) = files.batches()
    assert (batch[:4] == batch[0]).all()
    assert files.note == (
        f"{tmp_path}: 1 of 5 images were not RGB: f.pgm; "
        "without 2 files of other kinds, sheets, hidden, or that a system added: e.gif, g.npy"
    )


def test_nothing_to_read_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no images in it \(\.png, "):
        ImageFiles.find(tmp_path / "empty")
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"x\.bin: neither a folder of images nor a zip"):
        ImageFiles.find(tmp_path / "x.bin")
