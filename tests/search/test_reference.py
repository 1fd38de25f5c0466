import numpy as np
import pytest
import torch
from PIL import Image

from stepsampler import UserError
from stepsearch.features import load_extractor
from stepsearch.reference import Reference, fit, load_reference, read_images


class Pixels:
    """A linear extractor: a fixed projection of the pixels."""

    name, digest = "pixels", "1"

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
    with pytest.raises(UserError, match=r"5\.png: not an image that can be read"):
        load_reference(str(folder), Pixels(), 16, cache)


def test_reading_keeps_the_middle_of_a_wide_picture(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    Image.fromarray(wide).save(tmp_path / "w.png")
    (batch,) = read_images([tmp_path / "w.png"], 8)
    assert batch.unique().tolist() == [200]


def test_absent_references_are_named(tmp_path):
    with pytest.raises(UserError, match="'coco': neither a folder of images nor bundled"):
        load_reference("coco", Pixels(), 8, tmp_path)
    with pytest.raises(UserError, match="needs at least two images, got 0"):
        fit(Pixels(), [])
    with pytest.raises(UserError, match="extractor must be one of lite0, texture, got 'vgg'"):
        load_extractor("vgg")


@pytest.mark.parametrize("name", ["texture", "lite0"])
def test_the_bundled_statistics_belong_to_the_bundled_extractor(name, tmp_path):
    extractor = load_extractor(name)
    reference = load_reference("fashion-mnist", extractor, 32, tmp_path)
    assert (reference.search.n, reference.test.n) == (20000, 10000)
    features = extractor(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).numpy()
    assert reference.project(features).shape == (2, 128)
