"""Files as people have them: what is read of each, what is said, and why one is not read."""

import io
import warnings
import zipfile

import numpy as np
import pytest
from evaluating import command
from PIL import Image, ImageOps, PngImagePlugin
from pydantic import ValidationError

from stepsampler import UserError
from stepsearch.config import StudyConfig
from stepsearch.metrics.evaluator import Evaluator
from stepsearch.metrics.features import load_extractor
from stepsearch.metrics.images import ImageFiles
from stepsearch.metrics.reference import load_reference

SUFFIXES = ("png", "jpg", "webp")


def picture(k=0, size=(24, 16)):
    generator = np.random.default_rng(k)
    rows = np.linspace(0, 255, size[1])[:, None, None] * generator.uniform(0.3, 1, (1, 1, 3))
    noise = generator.normal(0, 20, (size[1], size[0], 3))
    return Image.fromarray(np.clip(rows + noise, 0, 255).astype(np.uint8))


def folder_of(folder, count=12, **options):
    folder.mkdir()
    for k in range(count):
        picture(k, (32, 32)).save(folder / f"{k:02d}.png", **options)
    return folder


def exif(orientation):
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def all_pixels(source, exif="apply", size=None, fit="none"):
    batches = ImageFiles.find(source, exif).batches(size, fit, batch=1)
    return [batch[0].permute(1, 2, 0).numpy() for batch in batches]


def test_texts_and_profiles_of_megabytes_change_no_pixel(tmp_path):
    plain = folder_of(tmp_path / "plain")
    large = folder_of(tmp_path / "large")
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 1_500_000, zip=True)
    picture(0, (32, 32)).save(large / "00.png", pnginfo=info)
    info = PngImagePlugin.PngInfo()
    info.add_itxt("prompt", "y" * 2_000_000, zip=True)
    info.add_text("parameters", "steps: 4")
    picture(1, (32, 32)).save(large / "01.png", pnginfo=info)
    picture(2, (32, 32)).save(large / "02.png", icc_profile=bytes(3_000_000))
    late = (large / "00.png").read_bytes()  # the text after the pixels, as some write it
    at, end = late.index(b"zTXt") - 4, late.index(b"IDAT") - 4
    last = late.index(b"IEND") - 4
    (large / "00.png").write_bytes(late[:at] + late[end:last] + late[at:end] + late[last:])
    for a, b in zip(all_pixels(plain), all_pixels(large), strict=True):
        np.testing.assert_array_equal(a, b)
    files = ImageFiles.find(large)
    assert len(files.heads) == 12
    assert files.note == ""


def test_what_macos_adds_is_left_out_of_folders_and_zips(tmp_path):
    folder = folder_of(tmp_path / "f", 3)
    plain = ImageFiles.find(folder).digest()
    (folder / "._00.png").write_bytes(b"\0\5\26\7")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "00.png").write_bytes(b"\0\5\26\7")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (folder / name).write_bytes(b"x")
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, f"deep/{path.relative_to(folder)}")
    for source in (folder, tmp_path / "f.zip"):
        files = ImageFiles.find(source)
        assert len(files.names) == 3
        assert files.digest() == plain
        assert "without 2 files of other kinds, sheets, hidden, or that a" in files.note


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("orientation", range(1, 10))
def test_exif_turns_an_image_as_pillow_does(tmp_path, orientation, suffix):
    path = tmp_path / f"a.{suffix}"
    picture().save(path, exif=exif(orientation))
    with Image.open(path) as image:
        stored, expected = np.array(image), np.array(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(all_pixels(tmp_path)[0], expected)
    np.testing.assert_array_equal(all_pixels(tmp_path, "ignore")[0], stored)
    for choice, pixels in (("apply", expected), ("ignore", stored)):
        files = ImageFiles.find(tmp_path, choice)
        assert files.heads[0].size == pixels.shape[1::-1]
        turned = orientation in range(2, 9)
        assert (files.preparation == "exif") == (turned and choice == "apply")
        assert ("as their EXIF says" in files.note) == turned


def test_exif_behind_the_pixels_or_in_xmp_counts_too(tmp_path):
    picture().save(tmp_path / "late.png", exif=exif(6))
    data = (tmp_path / "late.png").read_bytes()
    at, end, last = (data.index(kind) - 4 for kind in (b"eXIf", b"IDAT", b"IEND"))
    (tmp_path / "late.png").write_bytes(data[:at] + data[end:last] + data[at:end] + data[last:])
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    picture().save(tmp_path / "xmp.png", pnginfo=info)
    expected = np.array(picture().transpose(Image.Transpose.ROTATE_270))
    files = ImageFiles.find(tmp_path)
    assert [head.turned for head in files.heads] == [True, True]
    for pixels in all_pixels(tmp_path):
        np.testing.assert_array_equal(pixels, expected)


def test_damaged_exif_leaves_an_image_as_it_is(tmp_path):
    picture().save(tmp_path / "a.png")
    plain = all_pixels(tmp_path)[0]
    warnings.simplefilter("error")
    for broken in (b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0" + b"\xff" * 40):
        picture().save(tmp_path / "a.png", exif=broken)
        np.testing.assert_array_equal(all_pixels(tmp_path)[0], plain)


def test_a_turned_copy_measures_as_the_plain_one_and_has_another_identity(tmp_path):
    plain, turned = folder_of(tmp_path / "plain"), tmp_path / "turned"
    turned.mkdir()
    for path in plain.iterdir():
        with Image.open(path) as image:
            image.transpose(Image.Transpose.ROTATE_90).save(turned / path.name, exif=exif(6))
    extractor, cache = load_extractor("texture"), tmp_path / "c"
    first = load_reference(str(plain), extractor, 32, cache)
    before = set(cache.iterdir())
    assert load_reference(str(plain), extractor, 32, cache, exif="ignore").exif == ""
    assert set(cache.iterdir()) == before  # nothing to turn: the same statistics
    applied, ignored = (
        load_reference(str(turned), extractor, 32, cache, exif=e) for e in ("apply", "ignore")
    )
    np.testing.assert_array_equal(applied.search.mean, first.search.mean)
    np.testing.assert_array_equal(applied.search.cov, first.search.cov)
    assert applied.fingerprint == first.fingerprint
    assert ignored.fingerprint != first.fingerprint
    assert "12 of 12 images were turned as their EXIF says" in applied.note
    assert "were not turned as their EXIF says (--exif ignore)" in ignored.note
    (kept,) = [p for p in cache.iterdir() if p not in before and _fingerprint(p) == applied.exif]
    with pytest.raises(UserError, match="prepared with --exif apply, these are with ignore"):
        load_reference(str(kept), extractor, 32, cache, exif="ignore")


def test_a_study_says_whether_its_reference_is_turned(tmp_path):
    folder = tmp_path / "turned"
    folder.mkdir()
    for path in folder_of(tmp_path / "plain").iterdir():
        with Image.open(path) as image:
            image.transpose(Image.Transpose.ROTATE_90).save(folder / path.name, exif=exif(6))
    (folder / "bad.png").write_bytes(b"")
    space, found = {"num_steps": 3, "passes": 6}, {}
    for choice in ("apply", "ignore"):
        evaluation = {"reference": str(folder), "exif": choice}
        study = {"name": "x", "space": space, "evaluation": evaluation}
        evaluator = Evaluator(StudyConfig.model_validate(study), tmp_path / "c")
        found[choice] = evaluator.reference.fingerprint
        (said,) = evaluator.notes
        assert "left out, as unreadable: 1 file: bad.png (empty)" in said
    plain = load_reference(str(tmp_path / "plain"), load_extractor("texture"), 32, tmp_path / "c")
    assert found["apply"] == plain.fingerprint != found["ignore"]
    with pytest.raises(ValidationError, match="apply"):
        StudyConfig.model_validate({"name": "x", "space": space, "evaluation": {"exif": "on"}})


def _fingerprint(path):
    from stepsearch.metrics.reference import Reference

    return Reference.load(path).exif


def test_evaluate_turns_or_not_and_says_so(monkeypatch, capsys, tmp_path):
    plain, turned = folder_of(tmp_path / "plain"), tmp_path / "turned"
    turned.mkdir()
    for path in plain.iterdir():
        with Image.open(path) as image:
            image.transpose(Image.Transpose.ROTATE_90).save(turned / path.name, exif=exif(6))
    options = [turned, "--reference", plain, "--images", 12, "--cache", tmp_path / "c"]
    result = tmp_path / "r.json"
    code, out, err = command(monkeypatch, capsys, *options, "-o", result)
    assert (code, err) == (0, "")
    assert " 0 ± " in out
    assert "12 of 12 images were turned as their EXIF says" in " ".join(out.split())
    code, out, _ = command(monkeypatch, capsys, *options, "--exif", "ignore")
    assert " 0 ± " not in out
    code, _, err = command(monkeypatch, capsys, *options, "--exif", "ignore", "--with", result)
    assert code == 2
    assert "exif" in err
    assert "must be apply or ignore" in command(monkeypatch, capsys, plain, "--exif", "x")[2]


def test_only_the_first_frame_counts_and_that_is_said(tmp_path):
    frames = [picture(k) for k in range(3)]
    for name in ("a.webp", "b.png", "c.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save(tmp_path / "d.jpg", "MPO", save_all=True, append_images=frames[1:])  # a camera's
    frames[0].save(tmp_path / "e.gif", save_all=True, append_images=frames[1:])
    files = ImageFiles.find(tmp_path)
    for pixels in all_pixels(tmp_path)[:3]:
        np.testing.assert_array_equal(pixels, np.array(frames[0]))
    assert files.note.endswith(
        "3 of 4 images have more frames or pages than the first, which is read: a.webp, b.png, "
        "c.tif; without 1 file of other kinds, sheets, hidden, or that a system added: e.gif"
    )


def test_other_colours_are_converted_and_named(tmp_path):
    palette = picture().quantize(16)
    palette.save(tmp_path / "p.png", transparency=0)
    picture().convert("CMYK").save(tmp_path / "c.jpg")
    expected = [np.array(Image.open(tmp_path / n).convert("RGB")) for n in ("c.jpg", "p.png")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for pixels, known in zip(all_pixels(tmp_path), expected, strict=True):
            np.testing.assert_array_equal(pixels, known)
    assert "2 of 2 images were not RGB: c.jpg, p.png" in ImageFiles.find(tmp_path).note


def test_every_file_that_is_no_image_is_named_with_its_reason(tmp_path, monkeypatch):
    for k in range(3):
        picture(k, (64, 64)).save(tmp_path / f"good{k}.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    buffer = io.BytesIO()
    picture(0, (64, 64)).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:900])
    data = bytearray((tmp_path / "good0.png").read_bytes())
    data[data.index(b"IDAT") + 30] ^= 255
    (tmp_path / "flip.png").write_bytes(data)
    (tmp_path / "float.tif").write_bytes(b"")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "float.tif")
    picture(0, (300, 300)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    expected = (
        "6 of 9 files cannot be read as images: cut.jpg (damaged or cut off), empty.png (empty), "
        "flip.png (damaged or cut off), float.tif (mode F, more than 8 bits a channel or no "
        "colours), huge.png (more than 80,000 pixels, too large to be safe), page.jpg (no image, "
        "begins with b'<html>not found</html>')"
    )
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in tmp_path.iterdir():
            if path.suffix != ".zip":
                archive.write(path, path.name)
    for source in (tmp_path, tmp_path / "x.zip"):
        with pytest.raises(UserError) as caught:
            list(ImageFiles.find(source).batches(8))
        assert str(caught.value) == f"{source}: {expected}"
