import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepsampler import UserError
from stepsearch.metrics.distance import (
    Moments,
    Score,
    frechet_distance,
    frechet_infinity,
    score,
    score_infinity,
    score_kernel,
    score_mean,
)


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


@pytest.mark.parametrize("n", [40, 1100])
def test_torchmetrics_finds_the_same_distance_in_many_dimensions(n):
    """As wide as official features are, where another product is taken."""
    from torchmetrics.image.fid import _compute_fid

    fall = 1 / np.sqrt(1 + np.arange(1000))
    draw = np.random.default_rng(0)
    x, real = 1.1 * draw.normal(size=(n, 1000)) * fall, draw.normal(size=(1500, 1000)) * fall + 0.01
    reference, moments = Moments.of(real), Moments.of(x)
    arrays = (reference.mean, reference.cov, moments.mean, moments.cov)
    expected = float(_compute_fid(*map(torch.from_numpy, arrays)))
    assert frechet_distance(x, reference) == pytest.approx(expected, rel=1e-6)


@given(st.integers(2, 30), st.integers(2, 30), st.integers(0, 1000))
def test_moments_of_parts_make_those_of_the_whole(a, b, seed):
    x = cloud(a + b, 4, seed, shift=5.0)
    parts = Moments.of(x[:a]), Moments.of(x[a:])
    whole = Moments(x.mean(0), np.cov(x.T), a + b)
    for found, expected in ((parts[0].plus(parts[1]), whole), (whole.minus(parts[0]), parts[1])):
        assert found.n == expected.n
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-9)
        np.testing.assert_allclose(found.cov, expected.cov, rtol=1e-9, atol=1e-9)


def test_moments_of_many_images_are_taken_in_parts():
    x = cloud(9001, 3, shift=100.0).astype(np.float32)
    found = Moments.of(x)
    assert found.n == 9001
    np.testing.assert_allclose(found.mean, x.astype(float).mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.cov, np.cov(x.astype(float).T), rtol=1e-9)


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


@pytest.mark.parametrize("n", [12, 200])  # n <= d by the Gram matrix of images, n > d by sums
def test_the_jackknife_by_sums_is_the_one_by_deletion(n):
    reference = Moments.of(cloud(300, 30, seed=1, shift=3.0))
    x = cloud(n, 30, seed=2)
    parts = np.array_split(np.arange(n), min(20, n // 2))
    deleted = [frechet_distance(np.delete(x, part, axis=0), reference) for part in parts]
    np.testing.assert_allclose(score(x, reference).left_out, deleted, rtol=1e-8)


@pytest.mark.parametrize(("n", "d"), [(400, 6), (60, 40), (30, 60)])
def test_the_interval_covers_the_mean_of_fd_at_this_n(n, d):
    """And it is conservative, as marked, where images are no more than dimensions."""
    reference = Moments.of(cloud(5000, d, seed=1, scale=1.2))
    draws = [score(cloud(n, d, seed=s), reference) for s in range(200, 300)]
    mean = np.mean([draw.value for draw in draws])
    inside = [abs(draw.value - mean) <= draw.quantile * draw.se for draw in draws]
    assert np.mean(inside) >= 0.88
    assert {draw.conservative for draw in draws} == {n <= d}
    spread = np.std([draw.value for draw in draws], ddof=1)
    assert np.mean([draw.se for draw in draws]) > 0.85 * spread


def test_fd_infinity_has_hardly_any_bias():
    """The same distribution: FD is 0 at infinity, and far from it at this n."""
    reference = Moments.of(cloud(100_000, 8, seed=1))
    draws = np.array([frechet_infinity(cloud(200, 8, seed=s), reference) for s in range(40)])
    plain = np.mean([frechet_distance(cloud(200, 8, seed=s), reference) for s in range(40)])
    assert abs(draws.mean()) < 0.1 * plain


def test_the_error_of_fd_infinity_is_the_spread_over_fresh_draws():
    reference = Moments.of(cloud(20_000, 4, seed=1))
    draws = [score_infinity(cloud(400, 4, seed=s, scale=1.3), reference) for s in range(60)]
    spread = np.std([draw.value for draw in draws], ddof=1)
    assert np.mean([draw.se for draw in draws]) == pytest.approx(spread, rel=0.35)


def test_fd_infinity_is_the_line_through_the_subsets():
    reference = Moments.of(cloud(1000, 3, seed=1))
    x = cloud(240, 3, scale=1.1)
    means = [np.mean([frechet_distance(p, reference) for p in np.split(x, k)]) for k in range(1, 5)]
    start = np.polyfit([k / 240 for k in range(1, 5)], means, 1)[1]
    assert frechet_infinity(x, reference) == pytest.approx(start, rel=1e-9)
    with pytest.raises(UserError, match="FD-infinity needs at least 8 images, got 5"):
        frechet_infinity(x[:5], reference)


def test_torchmetrics_finds_the_same_kid():
    from torchmetrics.image.kid import KernelInceptionDistance

    images = torch.randint(0, 256, (90, 3, 4, 4), generator=torch.manual_seed(0)).byte()
    images[:40] = images[:40] // 2 + 20
    extract = lambda x: Identity()(x) / 100  # noqa: E731  # keeps their float32 exact enough
    net = Identity()
    net.forward = extract
    metric = KernelInceptionDistance(net, subsets=1, subset_size=40)
    metric.update(images[:40], real=False)
    metric.update(images[40:80], real=True)
    x, y = extract(images[:40]).numpy(), extract(images[40:80]).numpy()
    ours = score_kernel(x, y).value
    assert ours == pytest.approx(float(metric.compute()[0]), rel=1e-4)


def test_kid_is_unbiased_and_its_error_is_the_spread_over_fresh_draws():
    real = cloud(400, 6, seed=1)
    draws = [score_kernel(cloud(200, 6, seed=s), real) for s in range(10, 90)]
    values = np.array([draw.value for draw in draws])
    many = score_kernel(cloud(4000, 6, seed=5), real)
    se = values.std(ddof=1) / np.sqrt(len(values))
    assert values.mean() == pytest.approx(many.value, abs=4 * np.hypot(se, many.se))
    assert np.mean([draw.se for draw in draws]) == pytest.approx(values.std(ddof=1), rel=0.35)


def test_kid_without_a_block_is_kid_of_the_rest():
    real, x = cloud(50, 6, seed=1), cloud(43, 6, seed=2)
    parts = np.array_split(np.arange(43), 20)
    expected = [score_kernel(np.delete(x, part, axis=0), real).value for part in parts]
    np.testing.assert_allclose(score_kernel(x, real).left_out, expected, rtol=1e-9)


def test_the_error_of_a_mean_is_the_usual_one():
    x = np.random.default_rng(0).normal(size=20)
    assert score_mean(x).se == pytest.approx(x.std(ddof=1) / np.sqrt(20))


def test_two_images_have_a_distance_but_no_error():
    result = score(cloud(2, 3), Moments.of(cloud(20, 3)))
    assert np.isfinite(result.value)
    assert np.isnan(result.se)


def test_scores_of_different_n_are_not_compared():
    reference = Moments.of(cloud(50, 3))
    with pytest.raises(UserError, match="different n do not compare: 100 and 200 images"):
        score(cloud(100, 3), reference).minus(score(cloud(200, 3), reference))
    one, other = Score(1.0, np.ones(20)), Score(1.0, np.ones(5))  # read from files
    with pytest.raises(UserError, match="different n do not compare: 20 and 5 blocks"):
        one.minus(other)
    with pytest.raises(UserError, match="features have 2 dimensions, the reference has 3"):
        score_kernel(cloud(10, 2), cloud(10, 3))


def test_fd_infinity_of_few_images_has_no_error_rather_than_a_wrong_sentence():
    reference = Moments.of(cloud(100, 4, seed=1))
    found = score_infinity(cloud(8, 4, seed=2), reference)  # without a block: six images
    assert np.isfinite(found.value)
    assert np.isnan(found.se)
    with pytest.raises(UserError, match="FD-infinity needs at least 8 images, got 7"):
        score_infinity(cloud(7, 4, seed=2), reference)


@pytest.mark.parametrize("n", [10, 200])
def test_several_extractors_have_the_geometric_mean_of_their_distances(n):
    """Its error is the jackknife's; another scale of one of them changes no ratio."""
    real, x = [cloud(400, 6), cloud(400, 4, 3)], [cloud(n, 6, 1, shift=2), cloud(n, 4, 4, shift=3)]
    own = list(map(Moments.of, real))
    both, made = Moments.beside(own), np.hstack(x)
    parts = [score(*part) for part in zip(x, own, strict=True)]
    found = score(made, both)
    assert frechet_distance(made, both) == pytest.approx(found.value, rel=1e-12)
    assert found.value == pytest.approx(np.sqrt(parts[0].value * parts[1].value))
    assert found.left_out == pytest.approx(np.sqrt(parts[0].left_out * parts[1].left_out))
    assert found.conservative == any(part.conservative for part in parts)
    infinities = [frechet_infinity(*part) for part in zip(x, own, strict=True)]
    assert frechet_infinity(made, both) == pytest.approx(np.sqrt(np.prod(infinities)))
    versions = np.stack([made, made + 0.1], axis=1)
    mean = (found.value + frechet_distance(made + 0.1, both)) / 2
    assert frechet_distance(versions, both) == pytest.approx(mean)
    larger = Moments.beside([own[0], Moments.of(100 * real[1])])
    ratio = score(np.hstack([x[0], 100 * x[1]]), larger).value / found.value
    assert ratio == pytest.approx(100)
    with pytest.raises(UserError, match="features have 9 dimensions, the reference has 10"):
        frechet_distance(made[:, :9], both)


def test_a_negative_fd_infinity_counts_as_none():
    """The root of a product of two would be a number that says nothing."""
    moments = Moments.of(cloud(4000, 3))
    same = cloud(4000, 3)
    assert frechet_infinity(same, moments) < 0
    assert frechet_infinity(np.hstack([same, same]), Moments.beside([moments, moments])) == 0
