import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepsampler import UserError
from stepsearch.distance import Moments, frechet_distance, score


def cloud(n, d, seed=0, scale=1.0, shift=0.0):
    generator = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(d, d)) / np.sqrt(d)
    return scale * generator.normal(size=(n, d)) @ mix + shift


class Identity(torch.nn.Module):
    """Features that are the first values of the picture."""

    num_features = 12

    def forward(self, x):
        return x.flatten(1)[:, :12].float()


@pytest.mark.parametrize("n", [8, 12, 200])  # fewer images than dimensions, as many, more
def test_torchmetrics_finds_the_same_distance(n):
    from torchmetrics.image.fid import FrechetInceptionDistance

    images = torch.randint(0, 256, (n + 300, 3, 4, 4), generator=torch.manual_seed(0)).byte()
    images[:n] = images[:n] // 2 + 20
    metric = FrechetInceptionDistance(Identity(), input_img_size=(3, 4, 4))
    metric.set_dtype(torch.float64)
    metric.update(images[:n], real=False)
    metric.update(images[n:], real=True)
    features = Identity()(images).double().numpy()
    ours = frechet_distance(features[:n], Moments.of(features[n:]))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-6)


def test_gaussians_with_known_distance():
    """Diagonal covariances commute: FD is the sum of (m1 - m2)^2 + (s1 - s2)^2."""
    x = cloud(4000, 3)
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T  # exactly white
    reference = Moments(np.zeros(3), np.diag([4.0, 1.0, 0.25]), 100)
    expected = 2.0**2 + (1 - 2) ** 2 + 0 + (1 - 0.5) ** 2
    assert frechet_distance(x + np.array([2.0, 0, 0]), reference) == pytest.approx(
        expected, rel=1e-9
    )


def test_the_two_forms_agree_around_n_equals_d():
    reference = Moments.of(cloud(500, 20, seed=1))
    x = cloud(21, 20)
    by_covariance = frechet_distance(x, reference)
    padded = Moments(
        np.append(reference.mean, 0), np.pad(reference.cov, (0, 1)), reference.n
    )  # one more dimension in which nothing happens: now n <= d
    by_gram = frechet_distance(np.pad(x, ((0, 0), (0, 1))), padded)
    assert by_gram == pytest.approx(by_covariance, rel=1e-9)


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(1, 10), st.floats(0.1, 3), st.floats(-2, 2))
def test_never_negative_and_zero_of_itself(n, d, scale, shift):
    x = cloud(n, d, scale=scale, shift=shift)
    assert frechet_distance(x, Moments.of(cloud(50, d, seed=1))) > -1e-9
    assert frechet_distance(x, Moments.of(x)) == pytest.approx(0, abs=1e-5)  # roots of zeros


def test_the_jackknife_error_is_the_spread_over_fresh_draws():
    reference = Moments.of(cloud(20000, 4, seed=1))
    draws = [score(cloud(1000, 4, seed=s, scale=1.3), reference) for s in range(100, 150)]
    spread = np.std([d.value for d in draws], ddof=1)
    assert np.mean([d.se for d in draws]) == pytest.approx(spread, rel=0.35)


def test_common_images_make_the_difference_precise():
    reference = Moments.of(cloud(20000, 4, seed=1))
    a = score(cloud(1000, 4, scale=1.3), reference)
    b = score(cloud(1000, 4, scale=1.32), reference)
    difference, se = b.minus(a)
    assert difference == pytest.approx(b.value - a.value)
    assert se < 0.3 * a.se


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((1, 3)), r"at least two images, got features of shape \(1, 3\)"),
        (np.full((4, 3), np.nan), "a feature is not finite"),
        (np.zeros((4, 2)), "features have 2 dimensions, the reference has 3"),
    ],
)
def test_broken_features_are_refused(features, message):
    with pytest.raises(UserError, match=message):
        frechet_distance(features, Moments.of(cloud(20, 3)))


def test_constant_images_have_a_distance():
    reference = Moments.of(cloud(50, 3))
    constant = np.ones((10, 3))
    expected = ((1 - reference.mean) ** 2).sum() + np.trace(reference.cov)
    assert frechet_distance(constant, reference) == pytest.approx(expected)
