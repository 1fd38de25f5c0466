"""Moves by linear features: closed forms, and gradients against differences."""

from dataclasses import replace

import numpy as np
import pytest

from stepsearch.metrics.distance import Average, Moments, frechet_distance
from stepsearch.polish.linear import PENALTY, Linear, has_gradient, with_gradient

RNG = np.random.default_rng(5)
N, D, K = 60, 4, 3
FEATURES = RNG.normal(size=(N, D)) + 0.3
SLOPES = 0.3 * RNG.normal(size=(K, N, D)) + 0.2 * RNG.normal(size=(K, 1, D))
BEST = np.array([0.7, -1.2, 0.4])
KEPT, NOTHING = np.ones(N), np.zeros((K, N))


def linear(reference, slopes=SLOPES, features=FEATURES, aligned=KEPT, aligned_slopes=NOTHING):
    return Linear(reference, features, slopes, aligned, aligned_slopes)


def test_where_features_follow_in_a_line_one_move_reaches_the_reference():
    """The reference is of the very images at a known move: FD is 0 there alone."""
    goal = Moments.of(FEATURES + np.tensordot(BEST, SLOPES, 1))
    np.testing.assert_allclose(linear(goal).best(3.0), BEST, atol=1e-3)
    near = linear(goal).best(0.5)
    assert np.abs(near).max() <= 0.5
    assert linear(goal).value(near) < linear(goal).value(np.zeros(K))


def test_alignment_that_is_lost_counts_as_distance_does():
    goal = Moments.of(FEATURES + 1)
    slopes = np.zeros_like(NOTHING)
    slopes[0] = -0.02
    losing = linear(goal, aligned_slopes=slopes)
    move = np.array([1.0, 0, 0])
    lost = losing.value(move) - linear(goal).value(move)
    assert lost == pytest.approx(PENALTY * 0.02)


@pytest.mark.parametrize("room", [0.0, 0.02])
def test_a_move_ends_near_where_more_alignment_would_be_lost_than_may(room):
    goal = Moments.of(FEATURES + np.tensordot(BEST, SLOPES, 1))
    slopes = np.zeros_like(NOTHING)
    slopes[0] = -0.1  # of which the best move without it takes 0.7
    free = linear(goal, aligned_slopes=slopes).best(3.0)
    assert 0.1 * free[0] > 0.05
    bound = replace(linear(goal, aligned_slopes=slopes), room=room)
    move = bound.best(3.0)
    assert room - 1e-3 < 0.1 * move[0] < room + 0.015  # though FD itself is 0 at the other
    assert bound.value(move) < bound.value(np.zeros(K))
    there = 0.8 * free
    value, slope = bound._value_and_gradient(there)
    assert value == pytest.approx(bound.value(there))
    steps = 1e-5 * np.eye(K)
    ways = [(bound.value(there + step) - bound.value(there - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(slope, ways, rtol=1e-4)


def test_images_beside_others_are_as_all_of_them_at_once():
    goal = Moments.of(FEATURES + 1)
    parts = [
        Linear(goal, FEATURES[part], SLOPES[:, part], KEPT[part], NOTHING[:, part])
        for part in (slice(0, 25), slice(25, N))
    ]
    np.testing.assert_array_equal(parts[0].beside(parts[1]).best(2.0), linear(goal).best(2.0))


OTHER = Moments.of(RNG.normal(size=(90, D)) * 0.7)
BOTH = Moments.beside([OTHER, Moments.of(RNG.normal(size=(90, D)) + 1)])
VERSIONS = RNG.normal(size=(N, 2, D))


@pytest.mark.parametrize(
    ("reference", "features"),
    [
        (OTHER, FEATURES),
        (OTHER, FEATURES[:3]),  # fewer images than features
        (BOTH, np.concatenate([FEATURES, FEATURES[::-1] * 1.1], axis=1)),
        (OTHER.joined_by("mean"), VERSIONS),
        (OTHER.joined_by("worst"), VERSIONS),
        (Average(np.zeros(1), np.zeros((1, 1)), 9), FEATURES[:, :1]),
    ],
    ids=["FD", "few", "two extractors", "mean of versions", "worst version", "a metric"],
)
def test_gradients_are_those_of_differences(reference, features):
    assert has_gradient(reference)
    distance, pull = with_gradient(features, reference)
    assert distance == pytest.approx(frechet_distance(features, reference))
    direction = RNG.normal(size=features.shape)
    up, down = (frechet_distance(features + e * direction, reference) for e in (1e-4, -1e-4))
    assert (pull * direction).sum() == pytest.approx((up - down) / 2e-4, rel=1e-4)
