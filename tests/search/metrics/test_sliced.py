"""The sliced Wasserstein distance of patches, against SciPy's distance on the same lines."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import wasserstein_distance

from stepsampler.errors import UserError
from stepsearch.compare.table import check
from stepsearch.metrics.distance import frechet_distance, score
from stepsearch.metrics.features import load_extractor
from stepsearch.metrics.reference import Reference, fit, load_reference
from stepsearch.metrics.sliced import BINS, DIRECTIONS, Patches, Sliced, pyramid

PATCHES = Patches(torch.device("cpu"))


def pictures(n, seed, contrast=1.0, size=32):
    """Smooth random pictures, whose patches are spread over the lines."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(n, 3, size // 4, size // 4, generator=generator)
    smooth = F.interpolate(rough, (size, size), mode="bicubic")
    return (127 + 50 * contrast * smooth).clamp(0, 255).byte()


def on_lines(images):
    """Projections of all patches, (directions, patches), band by band."""
    bands = pyramid(images.float())
    return [F.conv2d(band, PATCHES.lines).transpose(0, 1).flatten(1).numpy() for band in bands]


def test_the_bands_add_up_to_the_image_and_end_at_16_pixels():
    bands = pyramid(pictures(2, 0, size=64).float())
    assert [band.shape[-1] for band in bands] == [64, 32, 16]
    flat = pyramid(torch.full((1, 3, 48, 35), 80.0))
    assert [band.shape[-2:] for band in flat] == [(48, 35), (24, 18)]
    torch.testing.assert_close(
        flat[0][..., 3:-3, 3:-3], torch.zeros(1, 3, 42, 29), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(flat[1], torch.full((1, 3, 24, 18), 80.0))


def test_it_is_scipys_distance_in_units_of_the_real_spread():
    real, made = pictures(60, 1), pictures(40, 2, contrast=0.8)
    reference = fit(PATCHES, [real], axes=None)
    expected = []
    for a, b in zip(on_lines(real), on_lines(made), strict=True):
        spread = np.mean([np.abs(x - np.median(x)).mean() for x in a])
        apart = np.mean([wasserstein_distance(x, y) for x, y in zip(a, b, strict=True)])
        expected.append(100 * apart / spread)
    found = score(PATCHES(made).numpy(), reference.test)
    assert found.value == pytest.approx(np.mean(expected), rel=0.03)
    assert found.value <= np.mean(expected)  # within a bin what crosses counts less
    assert frechet_distance(PATCHES(made).numpy(), reference.test) == found.value


def test_the_error_is_that_of_leaving_blocks_out():
    reference = fit(PATCHES, [pictures(60, 1)], axes=None)
    x = PATCHES(pictures(40, 2)).numpy()
    found = score(x, reference.test)
    without = np.delete(x, [0, 1], axis=0)  # the first of 20 blocks
    assert found.left_out[0] == pytest.approx(score(without, reference.test).value, rel=1e-9)
    assert 0 < found.se < found.value


def test_it_sees_a_want_of_contrast_and_survives_a_file(tmp_path):
    reference = fit(PATCHES, [pictures(200, 1)], [pictures(200, 2)], axes=None)
    assert reference.metric == "swd_patches"
    reference.save(tmp_path / "patches.safetensors")
    again = Reference.load(tmp_path / "patches.safetensors")
    assert isinstance(again.search, Sliced)
    assert again.fingerprint == reference.fingerprint
    values = [
        score(PATCHES(pictures(200, 3, contrast)).numpy(), again.test).value
        for contrast in (1.0, 0.95, 0.9)
    ]
    assert values[0] < values[1] / 2 < values[2] / 3


def test_bundled_statistics_and_what_it_cannot_do(tmp_path):
    reference = load_reference("fashion-mnist", PATCHES, 32, tmp_path)
    assert len(reference.test.mean) == 2 * DIRECTIONS * BINS
    with pytest.raises(UserError, match="the extractor patches is a distance of its own"):
        check(["kid"], 100, [reference])
    with pytest.raises(UserError, match="extractor must be one of"):
        load_extractor("patches-whole")


def test_beside_a_network_it_is_one_factor_of_the_geometric_mean(tmp_path):
    both = load_extractor("squeezenet+patches")
    reference = load_reference("fashion-mnist", both, 32, tmp_path)
    features = reference.project(both(pictures(30, 0)).numpy())
    alone = [score(*part).value for part in reference.test.split(features)]
    assert score(features, reference.test).value == pytest.approx(np.sqrt(np.prod(alone)))
