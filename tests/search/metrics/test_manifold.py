"""Precision and recall; torch-fidelity is the oracle in tests/fid."""

import numpy as np
import pytest

from stepsampler import UserError
from stepsearch.metrics.manifold import NEIGHBOUR, score_precision_recall


def cloud(n, d=3, seed=0, centre=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) + centre


def on_manifold(x, y):
    """Of each x, whether it lies in a ball around a y; pair by pair."""
    radii = [sorted(np.linalg.norm(y - a, axis=1))[NEIGHBOUR] for a in y]
    return [any(np.linalg.norm(a - b) <= r for b, r in zip(y, radii, strict=True)) for a in x]


def test_each_is_the_share_on_the_manifold_of_the_other():
    x, y = cloud(30, seed=1), cloud(24, seed=2, centre=0.8)
    precision, recall = score_precision_recall(x, y)
    assert precision.value == pytest.approx(np.mean(on_manifold(x, y)))
    assert recall.value == pytest.approx(np.mean(on_manifold(y, x)))
    kept = np.delete(x, np.arange(2), axis=0)  # blocks of two: the first one left out
    assert precision.left_out[0] == pytest.approx(np.mean(on_manifold(kept, y)))
    assert recall.left_out[0] == pytest.approx(np.mean(on_manifold(y, kept)))


def test_what_is_the_same_has_both_and_what_is_far_away_has_neither():
    same = score_precision_recall(cloud(40), cloud(40))
    assert [s.value for s in same] == [1.0, 1.0]
    far = score_precision_recall(cloud(40), cloud(40, centre=100.0))
    assert [s.value for s in far] == [0.0, 0.0]
    narrow = score_precision_recall(0.01 * cloud(200, seed=1), cloud(200, seed=2))
    assert narrow[0].value > 0.9
    assert narrow[1].value < 0.1


def test_too_few_images_are_refused():
    message = "precision and recall need at least 8 images and as many real ones, got "
    with pytest.raises(UserError, match=f"{message}7 and 40"):
        score_precision_recall(cloud(7), cloud(40))
    with pytest.raises(UserError, match=f"{message}40 and 7"):
        score_precision_recall(cloud(40), cloud(7))
    _, recall = score_precision_recall(cloud(8), cloud(8))
    assert len(recall.left_out) == 4
