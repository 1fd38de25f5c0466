from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from stepsampler import UserError
from stepsampler.support.pictures import save_png
from stepsearch.metrics.distance import Moments
from stepsearch.metrics.features import load_extractor
from stepsearch.metrics.reference import Reference, fit, load_reference


class Pixels:
    """A linear extractor: a fixed projection of the pixels."""

    name, digest, axes = "pixels", "1", 128

    def __call__(self, images):
        weights = torch.randn(images[0].numel(), 6, generator=torch.manual_seed(0))
        return images.flatten(1).float() @ weights / 1000


def pictures(n, seed=0):
    return torch.randint(0, 256, (n, 3, 8, 8), generator=torch.manual_seed(seed)).byte()


def test_the_projected_features_are_centred_and_uncorrelated():
    reference = fit(Pixels(), pictures(300).split(50), axes=4)
    features = Pixels()(pictures(300)).numpy()
    projected = reference.project(features)
    assert projected.shape == (300, 4)
    np.testing.assert_allclose(projected.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(np.cov(projected.T), reference.search.cov, atol=1e-6)
    off_diagonal = reference.search.cov - np.diag(np.diag(reference.search.cov))
    assert np.abs(off_diagonal).max() < 1e-6
    assert (np.diff(np.diag(reference.search.cov)) <= 1e-9).all()  # strongest axis first


def test_the_test_part_has_moments_of_its_own(tmp_path):
    reference = fit(Pixels(), [pictures(100)], [pictures(40, seed=1)])
    assert (reference.search.n, reference.test.n) == (100, 40)
    reference.save(tmp_path / "r.safetensors")
    again = Reference.load(tmp_path / "r.safetensors")
    np.testing.assert_array_equal(again.test.cov, reference.test.cov)
    assert again.metric == "fd_pixels6"


def test_another_extractor_is_refused():
    reference = fit(Pixels(), [pictures(20)])
    other = Pixels()
    other.digest = "2"
    with pytest.raises(UserError, match="made with pixels 1, but the extractor is pixels 2"):
        reference.check(other)


def test_a_folder_is_read_cropped_and_cached(tmp_path):
    folder = tmp_path / "real"
    folder.mkdir()
    for k in range(4):
        pixels = np.random.default_rng(k).integers(0, 256, (20, 30 + k, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    cache = tmp_path / "cache"
    first = load_reference(str(folder), Pixels(), 16, cache)
    assert first.search.n == 4
    assert len(list(cache.iterdir())) == 1
    load_reference(str(folder), Pixels(), 16, cache)
    assert len(list(cache.iterdir())) == 1
    Image.fromarray(pixels).rotate(180).save(folder / "3.png")  # other content, another cache
    load_reference(str(folder), Pixels(), 16, cache)
    assert len(list(cache.iterdir())) == 2
    (folder / "5.png").write_bytes(b"not a picture")
    left = load_reference(str(folder), Pixels(), 16, cache)
    assert (left.search.n, left.unreadable) == (4, 1)
    assert "1 file: 5.png (no image, begins with b'not a picture')" in left.note


def test_absent_references_are_named(tmp_path):
    with pytest.raises(UserError, match="'coco': no folder, zip, .npz or .safetensors file, and"):
        load_reference("coco", Pixels(), 8, tmp_path)
    with pytest.raises(UserError, match="needs at least two images, got 0"):
        fit(Pixels(), [])
    known = "extractor must be one of lite0, texture, squeezenet, untrained, patches, .*'vgg'"
    with pytest.raises(UserError, match=known):
        load_extractor("vgg")


@pytest.mark.parametrize("name", ["texture", "lite0", "squeezenet", "untrained"])
def test_the_bundled_statistics_belong_to_the_bundled_extractor(name, tmp_path):
    extractor = load_extractor(name)
    reference = load_reference("fashion-mnist", extractor, 32, tmp_path)
    assert (reference.search.n, reference.test.n) == (20000, 10000)
    features = extractor(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).numpy()
    assert reference.project(features).shape == (2, 128)


def test_the_bundled_sample_belongs_to_the_test_images():
    reference = load_reference("fashion-mnist", load_extractor("texture"), 32, None)
    assert reference.sample.shape == (2000, 128)
    deviation = np.sqrt(np.diag(reference.test.cov))
    z = (reference.sample.mean(0) - reference.test.mean) / (deviation / np.sqrt(2000))
    assert np.abs(z).max() < 4.5  # 128 axes
    np.testing.assert_allclose(reference.sample.std(0), deviation, rtol=0.15)


class Whole(Pixels):
    axes = None


def test_whole_features_are_taken_as_they_are(tmp_path):
    reference = fit(Whole(), [pictures(40)], axes=None)
    features = Whole()(pictures(40)).numpy()
    np.testing.assert_array_equal(reference.project(features), features)
    np.testing.assert_allclose(reference.search.cov, np.cov(features.T), rtol=1e-6)
    assert reference.metric == "fd_pixels"
    reference.save(tmp_path / "r.safetensors")
    again = load_reference(str(tmp_path / "r.safetensors"), Whole(), 8, tmp_path)
    assert again.fingerprint == reference.fingerprint
    np.testing.assert_array_equal(again.sample, features)
    with pytest.raises(UserError, match="is of all features of pixels, not of projected features"):
        load_reference(str(tmp_path / "r.safetensors"), Pixels(), 8, tmp_path)


def test_the_sample_is_drawn_from_all_images():
    """A folder may be sorted by class."""
    dark = torch.randint(0, 50, (2500, 3, 8, 8), generator=torch.manual_seed(0)).byte()
    bright = 200 + dark
    reference = fit(Whole(), [dark, bright], axes=None)
    assert reference.sample.shape == (2000, 6)
    gap = np.abs(Whole()(bright).numpy().mean(0) - Whole()(dark).numpy().mean(0))
    off = np.abs(reference.sample.mean(0) - reference.search.mean)
    assert (off < 0.05 * gap).all()
    again = fit(Whole(), [dark, bright], axes=None)
    np.testing.assert_array_equal(again.sample, reference.sample)


def test_statistics_of_images_of_another_size_are_refused(tmp_path):
    folder = tmp_path / "real"
    folder.mkdir()
    for k in range(12):
        save_png(pictures(1, seed=k)[0], folder / f"{k}.png")
    load_reference(str(folder), Whole(), 8, tmp_path)
    (made,) = tmp_path.glob("reference-*.safetensors")
    assert load_reference(str(made), Whole(), 8, tmp_path).size == 8
    with pytest.raises(UserError, match="prepared as crop to 8 pixels, these are as crop to 16"):
        load_reference(str(made), Whole(), 16, tmp_path)
    with pytest.raises(UserError, match="crop to 8 pixels, these are as squash512 to 8"):
        load_reference(str(made), Whole(), 8, tmp_path, "squash512")


def test_bundled_statistics_are_of_images_of_their_size(tmp_path):
    """Photographs of another size are at no distance from them that means anything."""
    lite0 = load_extractor("lite0")
    with pytest.raises(UserError, match="fashion-mnist: .*to 32 pixels, these are as crop to 64"):
        load_reference("fashion-mnist", lite0, 64, tmp_path)
    assert load_reference("fashion-mnist", lite0, None, tmp_path, "none").size is None


def test_bundled_statistics_are_of_projected_features(tmp_path):
    with pytest.raises(UserError, match="is of projected features of texture, not of all features"):
        load_reference("fashion-mnist", load_extractor("texture-whole"), 32, tmp_path)


def test_real_images_that_are_useless_are_refused(tmp_path):
    same = torch.full((5, 3, 8, 8), 7, dtype=torch.uint8)
    for kind in (Pixels(), Whole()):
        with pytest.raises(UserError, match="images are all the same: their covariance is zero"):
            fit(kind, [same], axes=kind.axes)

    class Broken(Pixels):
        def __call__(self, images):
            return torch.full((len(images), 6), torch.nan)

    for axes in (4, None):
        with pytest.raises(UserError, match="a feature is not finite"):
            fit(Broken(), [pictures(5)], axes=axes)
    whole = fit(Whole(), [pictures(20)], axes=None)
    moments = whole.search
    for cov, said in (
        (moments.cov * np.nan, "search.cov is not finite"),
        (np.eye(3), "means and covariances of different sizes"),
    ):
        bad = Moments(moments.mean, cov, moments.n)
        replace(whole, search=bad).save(tmp_path / "r.safetensors")
        with pytest.raises(UserError, match=said):
            load_reference(str(tmp_path / "r.safetensors"), Whole(), 8, tmp_path)
    (tmp_path / "r.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"r\.safetensors: not reference statistics"):
        load_reference(str(tmp_path / "r.safetensors"), Pixels(), 8, tmp_path)


class Official(Whole):
    """As wide as official Inception, and of its name."""

    name = "inception"


def test_statistics_of_others_are_of_official_inception_alone(tmp_path):
    x = np.random.default_rng(0).normal(size=(3000, 4))
    mu, sigma = np.zeros(2048), np.eye(2048)
    np.savez(tmp_path / "edm.npz", mu=mu, sigma=sigma)
    reference = load_reference(str(tmp_path / "edm.npz"), Official(), None, tmp_path)
    assert reference.metric == "fid_foreign"  # who knows how its images were resized
    assert reference.note.endswith("taken to be of official Inception; the file does not say")
    assert reference.sample is None
    with pytest.raises(UserError, match="taken to be of official Inception, but .* is pixels"):
        load_reference(str(tmp_path / "edm.npz"), Whole(), None, tmp_path)
    np.savez(tmp_path / "other.npz", mu=x.mean(0), sigma=np.cov(x.T))
    with pytest.raises(UserError, match="Inception have 2048 dimensions, these have 4"):
        load_reference(str(tmp_path / "other.npz"), Official(), None, tmp_path)


def test_images_in_an_adm_file_serve_any_extractor(tmp_path):
    images = pictures(30)
    batch = images.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "adm.npz", arr_0=batch, arr_1=np.arange(30))
    reference = load_reference(str(tmp_path / "adm.npz"), Whole(), 8, tmp_path)
    expected = Moments.of(Whole()(images).numpy())
    np.testing.assert_allclose(reference.test.cov, expected.cov)
    assert len(list(tmp_path.glob("reference-*.safetensors"))) == 1
    again = load_reference(str(tmp_path / "adm.npz"), Whole(), 8, tmp_path)
    assert again.fingerprint == reference.fingerprint
    assert len(list(tmp_path.glob("reference-*.safetensors"))) == 1
    with pytest.raises(UserError, match="its images are taken as they are: give --fit crop or"):
        load_reference(str(tmp_path / "adm.npz"), Whole(), 8, tmp_path, "squash512")
    with pytest.raises(UserError, match="its images are 8 x 8, wanted is 16 x 16"):
        load_reference(str(tmp_path / "adm.npz"), Whole(), 16, tmp_path)
