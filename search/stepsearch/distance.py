"""Fréchet distance of features, with a standard error.

FD = |m - m_ref|^2 + tr(S) + tr(S_ref) - 2 tr((S S_ref)^(1/2))     (Heusel et al. 2017, eq. 6)

The last trace is the sum of the square roots of the eigenvalues of R S R with R = S_ref^(1/2): real
and symmetric, so no `sqrtm` and no epsilon. With fewer images than dimensions the same eigenvalues
come from the n x n Gram matrix. FD of n images is biased upwards by about 1 / n: values of
different n are never comparable.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stepsampler.errors import UserError

Array = NDArray[np.float64]
BLOCKS = 20


@dataclass(frozen=True)
class Moments:
    """Mean (d,), covariance (d, d) with 1 / (n - 1), and n, of a set of features."""

    mean: Array
    cov: Array
    n: int

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> "Moments":
        """Moments of features (n, d).

        Raises:
            UserError: fewer than two rows, or a value that is not finite.
        """
        x = _checked(features)
        return cls(x.mean(0), np.cov(x, rowvar=False).reshape(x.shape[1], -1), len(x))

    @cached_property
    def root(self) -> Array:
        """Symmetric square root of the covariance."""
        values, vectors = np.linalg.eigh(self.cov)
        return (vectors * np.sqrt(values.clip(0))) @ vectors.T  # type: ignore[no-any-return]


def frechet_distance(features: NDArray[np.floating], reference: Moments) -> float:
    """Distance of features (n, d) from the reference moments, n >= 2."""
    x = _checked(features)
    if x.shape[1] != len(reference.mean):
        raise UserError(
            f"features have {x.shape[1]} dimensions, the reference has {len(reference.mean)}"
        )
    mean = x.mean(0)
    y = (x - mean) / np.sqrt(len(x) - 1)
    projected = y @ reference.root
    gram = projected @ projected.T if len(x) <= x.shape[1] else projected.T @ projected
    spread = np.sqrt(np.linalg.eigvalsh(gram).clip(0)).sum()
    shift = ((mean - reference.mean) ** 2).sum()
    return float(shift + (y**2).sum() + np.trace(reference.cov) - 2 * spread)


@dataclass(frozen=True)
class Score:
    """A distance, and the same with each block of images left out."""

    value: float
    left_out: Array  # (blocks,)

    @property
    def se(self) -> float:
        """Standard error by the block jackknife: spread of FD at this n over other seeds."""
        return _jackknife_se(self.left_out)

    def minus(self, other: "Score") -> tuple[float, float]:
        """Difference and its standard error; both scores are of the same seeds, in order."""
        return self.value - other.value, _jackknife_se(self.left_out - other.left_out)


def score(features: NDArray[np.floating], reference: Moments, blocks: int = BLOCKS) -> Score:
    """Distance with its block jackknife; rows are in the order of the seeds."""
    blocks = min(blocks, len(features) // 2)
    parts = np.array_split(np.arange(len(features)), blocks)
    left_out = [frechet_distance(np.delete(features, part, axis=0), reference) for part in parts]
    return Score(frechet_distance(features, reference), np.array(left_out))


def _jackknife_se(left_out: Array) -> float:
    blocks = len(left_out)
    return float(np.sqrt((blocks - 1) / blocks * ((left_out - left_out.mean()) ** 2).sum()))


def _checked(features: NDArray[np.floating]) -> Array:
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise UserError(f"a distance needs at least two images, got features of shape {x.shape}")
    if not np.isfinite(x).all():
        raise UserError("a feature is not finite: the images are broken, or the extractor is")
    return x
