"""Convolutions with random weights: what they compute, and that they see a want of contrast."""

import numpy as np
import pytest
import torch

from stepsearch.metrics.distance import frechet_distance
from stepsearch.metrics.features import Drawn, load_extractor
from stepsearch.metrics.reference import load_reference


def plain(filters, x):
    """The same in sums over unfolded windows."""
    pooled = []
    for weights in filters:
        k = weights.shape[-1]
        wide = np.pad(x, [(0, 0), (0, 0), (k // 2,) * 2, (k // 2,) * 2], mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(wide, (k, k), axis=(2, 3))
        x = np.abs(np.einsum("nchwij,ocij->nohw", windows, weights))
        pooled += [x.mean((2, 3)), np.sqrt(x.var((2, 3)) + 1e-6)]
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))
    return np.concatenate(pooled, 1)


def test_features_are_those_of_plain_sums():
    extractor = load_extractor("untrained")
    assert isinstance(extractor, Drawn)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    filters = [weights.numpy().astype(np.float64) for weights in extractor.net.filters]
    found = extractor(images)
    assert found.shape == (2, 448)
    np.testing.assert_allclose(found, plain(filters, images.numpy() / 127.5 - 1), atol=1e-4)


def test_half_of_the_first_filters_see_no_brightness():
    (first, *_) = load_extractor("untrained").net.filters
    flat = first.sum((2, 3)).abs().amax(1)
    assert flat[::2].max() < 1e-5
    assert flat[1::2].min() > 1e-2


@pytest.mark.parametrize("size", [32, 64, 96])
def test_only_larger_images_are_made_smaller(size):
    images = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    assert load_extractor("untrained").prepare(images).shape[-1] == min(size, 64)


def test_contrast_that_is_off_counts_in_both_directions(tmp_path):
    """Of smooth random pictures with less and more of it, in the axes of the bundled statistics."""
    extractor = load_extractor("untrained")
    reference = load_reference("fashion-mnist", extractor, 32, tmp_path)
    assert reference.metric == "fd_untrained128"
    generator = torch.Generator().manual_seed(0)
    shapes = torch.randn(200, 3, 32, 32, generator=generator).cumsum(2).cumsum(3)
    shapes = shapes / shapes.abs().amax((1, 2, 3), keepdim=True)

    def seen(contrast):
        images = (127.5 + 90 * contrast * shapes).round().clamp(0, 255).to(torch.uint8)
        return reference.project(extractor(images).numpy())

    own = type(reference.search).of(seen(1.0))
    distances = [frechet_distance(seen(contrast), own) for contrast in (0.8, 0.9, 1.0, 1.1, 1.2)]
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < distances[3] < distances[4]
