"""Distances of features from those of real images, with standard errors.

FD = |m - m_ref|^2 + tr(S) + tr(S_ref) - 2 tr((S S_ref)^(1/2))     (Heusel et al. 2017, eq. 6)

The last trace is the sum of the square roots of the eigenvalues of L' S L with L L' = S_ref: real
and symmetric, so no `sqrtm` and no epsilon. With fewer images than dimensions the same eigenvalues
come from the n x n Gram matrix. FD of n images is biased upwards by about 1 / n: values of
different n are never comparable. FD-infinity extrapolates that bias away (Chong and Forsyth 2020).
KID is the unbiased squared MMD of a cubic kernel (Binkowski et al. 2018).

Under several extractors at once a distance is the geometric mean of theirs: whatever their scales,
a tenth less of one is worth a tenth less of another (of the values as they are, with their bias).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import block_diag, eigvalsh
from scipy.linalg.blas import dsyrk, dtrmm
from scipy.linalg.lapack import dsygst

from stepsampler.errors import UserError

Array = NDArray[np.float64]
BLOCKS = 20
OTHER_DIMENSIONS = "features have {} dimensions, the reference has {}"
ROWS = 4096  # whose features are in double precision at once
PARTS = (1, 2, 3, 4)  # FD-infinity: FD at n, n / 2, n / 3 and n / 4 images


@dataclass(frozen=True)
class Moments:
    """Mean (d,), covariance (d, d) with 1 / (n - 1), and n, of a set of features.

    `over` says what becomes of the distances of several versions of the same images. With `parts`
    columns belong to several extractors in turn.
    """

    mean: Array
    cov: Array
    n: int
    over: Literal["mean", "worst"] = "mean"
    parts: tuple["Moments", ...] = ()
    prefix: ClassVar[str] = "fd"  # of the distance's name

    @classmethod
    def beside(cls, parts: Sequence["Moments"]) -> "Moments":
        """Those of the same images under several extractors; each keeps to its own."""
        mean = np.concatenate([part.mean for part in parts])
        cov = block_diag(*(part.cov for part in parts))
        return cls(mean, cov, min(part.n for part in parts), parts=tuple(parts))

    def joined_by(self, over: Literal["mean", "worst"]) -> "Moments":
        """The same for versions of which that is made."""
        parts = tuple(part.joined_by(over) for part in self.parts)
        return replace(self, over=over, parts=parts)

    def split(self, features: NDArray[np.floating]) -> list[tuple[NDArray[np.floating], "Moments"]]:
        """Each extractor's columns of features (n, d), and its moments."""
        d = sum(len(part.mean) for part in self.parts)
        if features.shape[-1] != d:
            raise UserError(OTHER_DIMENSIONS.format(features.shape[-1], d))
        ends = np.cumsum([len(part.mean) for part in self.parts])[:-1]
        return list(zip(np.split(features, ends, axis=-1), self.parts, strict=True))

    def join(self, distances: Sequence[ArrayLike]) -> Array:
        """Of versions: their mean or the worst, element by element."""
        return (np.mean if self.over == "mean" else np.max)(np.array(distances), axis=0)  # type: ignore[no-any-return]

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> "Moments":
        """Moments of features (n, d).

        Raises:
            UserError: fewer than two rows, or a value that is not finite.
        """

        def of(rows: NDArray[np.floating]) -> Moments:
            x = checked(rows)
            return cls(x.mean(0), np.cov(x, rowvar=False).reshape(x.shape[1], -1), len(x))

        return reduce(cls.plus, map(of, np.array_split(features, len(features) // ROWS + 1)))

    def plus(self, other: "Moments") -> "Moments":
        """Moments of both sets of images (Chan, Golub and LeVeque 1983)."""
        n = self.n + other.n
        shift = other.mean - self.mean
        scatter = (self.n - 1) * self.cov + (other.n - 1) * other.cov
        scatter += np.outer(shift, shift) * (self.n * other.n / n)
        return Moments(self.mean + shift * (other.n / n), scatter / (n - 1), n, self.over)

    def minus(self, part: "Moments") -> "Moments":
        """Moments of this set without a part of it, of which at least two images stay."""
        n = self.n - part.n
        mean = (self.n * self.mean - part.n * part.mean) / n
        shift = part.mean - mean
        scatter = (self.n - 1) * self.cov - (part.n - 1) * part.cov
        scatter -= np.outer(shift, shift) * (n * part.n / self.n)
        return Moments(mean, scatter / (n - 1), n, self.over)

    def own(self, features: NDArray[np.floating], blocks: int = BLOCKS) -> "Score | None":
        """The score of features (n, d) where the distance is another one than FD."""
        return None

    @cached_property
    def factor(self) -> Array:
        """Lower triangular L with L L' = the covariance, which may be singular."""
        values, vectors = np.linalg.eigh(self.cov)
        _, upper = np.linalg.qr((vectors * np.sqrt(values.clip(0))).T)
        return np.asfortranarray(upper.T)


def frechet_distance(features: NDArray[np.floating], reference: Moments) -> float:
    """Distance of features (n, d), or of versions (n, versions, d), from the reference, n >= 2.

    FD, or the reference's own.
    """
    if features.ndim == 3:
        parts = [frechet_distance(version, reference) for version in features.swapaxes(0, 1)]
        return float(reference.join(parts))
    if reference.parts:
        return float(_together([frechet_distance(*part) for part in reference.split(features)]))
    if (found := reference.own(features, 0)) is not None:
        return found.value
    x = checked(features)
    if x.shape[1] != len(reference.mean):
        raise UserError(OTHER_DIMENSIONS.format(x.shape[1], len(reference.mean)))
    mean, scale = x.mean(0), 1 / (len(x) - 1)
    y = x - mean
    # Half of each product, since it is symmetric or one side a triangle; and all by SciPy: the
    # threads of NumPy's own BLAS and of SciPy's keep each other waiting.
    if len(x) <= x.shape[1]:
        projected = dtrmm(1.0, reference.factor, y.T, trans_a=1, lower=1)
        gram = dsyrk(scale, projected, trans=1, lower=1)
        trace = scale * np.einsum("ij,ij->", y, y)
    else:  # the covariance first: then no product has n rows
        cov = dsyrk(scale, y.T, lower=1)
        trace = np.trace(cov)
        gram, _ = dsygst(cov, reference.factor, itype=2, lower=1, overwrite_a=1)  # L' S L
    values = eigvalsh(gram, lower=True, overwrite_a=True, check_finite=False)
    shift = ((mean - reference.mean) ** 2).sum()
    return float(shift + trace + np.trace(reference.cov) - 2 * np.sqrt(values.clip(0)).sum())


def frechet_infinity(features: NDArray[np.floating], reference: Moments) -> float:
    """FD at infinitely many images: linear in 1 / n, fitted to FD at n, n / 2, n / 3 and n / 4.

    FD at n / k is the mean of k consecutive parts, so that each size uses all images. May be
    negative. Needs n / 4 well above the number of dimensions, where the bias is linear in 1 / n.
    Under several extractors it is 0 where one of theirs is not above 0.

    Raises:
        UserError: fewer than eight images.
    """
    if reference.parts:
        return float(_together([frechet_infinity(*part) for part in reference.split(features)]))
    x = checked(features)
    if len(x) < 2 * PARTS[-1]:
        raise UserError(f"FD-infinity needs at least {2 * PARTS[-1]} images, got {len(x)}")
    means = [
        np.mean([frechet_distance(part, reference) for part in np.array_split(x, parts)])
        for parts in PARTS
    ]
    inverse = np.array(PARTS) / len(x)
    return float(np.polynomial.Polynomial.fit(inverse, means, 1)(0.0))


@dataclass(frozen=True)
class Score:
    """A value, and the same with each block of images left out."""

    value: float
    left_out: Array  # (blocks,)
    conservative: bool = False  # the error is too large rather than too small
    n: int | None = None  # images, where known

    @property
    def se(self) -> float:
        """Standard error by the block jackknife: spread at this n over other seeds."""
        return _jackknife_se(self.left_out)

    def minus(self, other: "Score") -> tuple[float, float]:
        """Difference and its standard error; both scores are of the same seeds, in order.

        Raises:
            UserError: other numbers of images or of blocks.
        """
        if self.n is not None and other.n is not None and self.n != other.n:
            raise UserError(f"scores of different n do not compare: {self.n} and {other.n} images")
        if len(self.left_out) != len(other.left_out):
            raise UserError(
                "scores of different n do not compare: "
                f"{len(self.left_out)} and {len(other.left_out)} blocks"
            )
        return self.value - other.value, _jackknife_se(self.left_out - other.left_out)

    @property
    def quantile(self) -> float:
        """Of Student's t for a 95 % interval: value ± quantile x se."""
        from scipy.stats import t

        return float(t.ppf(0.975, max(1, len(self.left_out) - 1)))


def score(features: NDArray[np.floating], reference: Moments, blocks: int = BLOCKS) -> Score:
    """FD with its block jackknife; rows are in the order of the seeds.

    With n <= d the error is marked as conservative: the jackknife overstates it there. The error of
    versions (n, versions, d) is that of what is made of their distances.
    """
    if features.ndim == 3:
        parts = [score(version, reference, blocks) for version in features.swapaxes(0, 1)]
        return Score(
            float(reference.join([part.value for part in parts])),
            reference.join([part.left_out for part in parts]),
            parts[0].conservative,
            len(features),
        )
    if reference.parts:
        found = [score(*part, blocks) for part in reference.split(features)]
        return Score(
            float(_together([part.value for part in found])),
            _together([part.left_out for part in found]),
            any(part.conservative for part in found),
            len(features),
        )
    if (own := reference.own(features, blocks)) is not None:
        return own
    x = checked(features)
    value = frechet_distance(x, reference)
    left_out = _frechet_left_out(x, reference, count_blocks(len(x), blocks))
    return Score(value, left_out, len(x) <= x.shape[1], len(x))


def score_infinity(
    features: NDArray[np.floating], reference: Moments, blocks: int = BLOCKS
) -> Score:
    """FD-infinity with its block jackknife; without one if too few images were left.

    Raises:
        UserError: fewer than eight images.
    """
    x = checked(features)
    value = frechet_infinity(x, reference)
    parts = parts_of(len(x), count_blocks(len(x), blocks))
    if parts and len(x) - len(parts[0]) < 2 * PARTS[-1]:
        parts = []
    left_out = [frechet_infinity(np.delete(x, part, axis=0), reference) for part in parts]
    return Score(value, np.array(left_out), len(x) <= x.shape[1] * PARTS[-1], len(x))


def score_kernel(
    features: NDArray[np.floating],
    real: NDArray[np.floating],
    blocks: int = BLOCKS,
    among_real: float | None = None,
) -> Score:
    """Unbiased KID of features (n, d), given `real` (m, d), with its block jackknife.

    `among_real` is `kernel_among(real)`, for those who score many against the same images.

    The kernel is (x y / d + 1)^3. May be negative. All pairs of images count, not those within
    blocks alone: prompts come in turn, so that neighbours never show the same, and a mean over
    blocks would be biased.

    Raises:
        UserError: fewer than two features, other dimensions, or a value that is not finite.
    """
    x, y = checked(features), checked(real)
    if x.shape[1] != y.shape[1]:
        raise UserError(f"features have {x.shape[1]} dimensions, the reference has {y.shape[1]}")

    if among_real is None:
        among_real = kernel_among(y)
    parts = [
        x[part] for part in parts_of(len(x), count_blocks(len(x), blocks)) or [np.arange(len(x))]
    ]
    sizes = np.array([len(part) for part in parts])
    among = np.array([[_kernel(a, b).sum() for b in parts] for a in parts])
    own = np.array([np.trace(_kernel(a, a)) for a in parts])
    across = np.array([_kernel(a, y).sum() for a in parts])

    def of(keep: NDArray[np.int_]) -> float:
        n = sizes[keep].sum()
        within = (among[np.ix_(keep, keep)].sum() - own[keep].sum()) / (n * (n - 1))
        return float(within + among_real - 2 * across[keep].sum() / (n * len(y)))

    every = np.arange(len(parts))
    left_out = [of(np.delete(every, b)) for b in every] if len(parts) > 1 else []
    return Score(of(every), np.array(left_out), n=len(x))


def kernel_among(real: NDArray[np.floating]) -> float:
    """Mean kernel of two different ones of the images (m, d)."""
    k = _kernel(real, real)
    return float((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)))


def _kernel(a: NDArray[np.floating], b: NDArray[np.floating]) -> Array:
    """Of each row of `a` with each of `b`; not by a power, which takes several times as long."""
    k = np.asarray(a, np.float64) @ np.asarray(b, np.float64).T / a.shape[1] + 1
    return k * k * k  # type: ignore[no-any-return]


def score_mean(values: NDArray[np.floating], blocks: int = BLOCKS) -> Score:
    """A mean over images, such as an alignment, (n,)."""
    x = np.asarray(values, np.float64)
    parts = parts_of(len(x), min(blocks, len(x)) if len(x) > 1 else 0)
    left_out = [np.delete(x, part).mean() for part in parts]
    return Score(float(x.mean()), np.array(left_out), n=len(x))


@dataclass(frozen=True)
class Average(Moments):
    """No moments: the distance is the mean of the only feature, a number for each image."""

    prefix = "mean"

    def own(self, features: NDArray[np.floating], blocks: int = BLOCKS) -> Score:
        return score_mean(checked(features)[:, 0], blocks)


def count_blocks(n: int, blocks: int) -> int:
    """Blocks of at least two images; none if they would be fewer than two."""
    return min(blocks, n // 2) if n >= 4 else 0


def parts_of(n: int, blocks: int) -> list[NDArray[np.int_]]:
    """Indices of each block."""
    return np.array_split(np.arange(n), blocks) if blocks else []


def _together(distances: Sequence[ArrayLike]) -> Array:
    """Of the same images under several extractors; FD-infinity may be negative."""
    found = np.prod(np.array(distances).clip(0), axis=0) ** (1 / len(distances))
    return np.asarray(found, np.float64)


def _frechet_left_out(x: Array, reference: Moments, blocks: int) -> Array:
    """FD without each block, from sums of the blocks instead of from the images again."""
    shift = x.mean(0) - reference.mean
    centred = x - x.mean(0)
    projected = centred @ reference.factor
    few = len(x) <= x.shape[1]
    gram = projected @ projected.T if few else projected.T @ projected
    total, squares = projected.sum(0), (centred**2).sum(1)
    found = []
    for part in parts_of(len(x), blocks):
        keep = np.delete(np.arange(len(x)), part)
        n = len(keep)
        mean = centred[keep].mean(0)
        if few:
            inner = gram[np.ix_(keep, keep)]
            rows = inner.mean(0)
            spread = inner - rows - rows[:, None] + inner.mean()
        else:
            without = total - projected[part].sum(0)
            spread = gram - projected[part].T @ projected[part] - np.outer(without, without) / n
        roots = np.sqrt(np.linalg.eigvalsh(spread / (n - 1)).clip(0)).sum()
        trace = (squares[keep].sum() - n * (mean**2).sum()) / (n - 1)
        found.append(((shift + mean) ** 2).sum() + trace + np.trace(reference.cov) - 2 * roots)
    return np.array(found)


def _jackknife_se(left_out: Array) -> float:
    """Of fewer than two blocks: NaN."""
    blocks = len(left_out)
    if blocks < 2:
        return float("nan")
    return float(np.sqrt((blocks - 1) / blocks * ((left_out - left_out.mean()) ** 2).sum()))


def checked(features: NDArray[np.floating]) -> Array:
    """Features (n, d) in float64.

    Raises:
        UserError: fewer than two rows, or a value that is not finite.
    """
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise UserError(f"a distance needs at least two images, got features of shape {x.shape}")
    if not np.isfinite(x).all():
        raise UserError("a feature is not finite: the images are broken, or the extractor is")
    return x
