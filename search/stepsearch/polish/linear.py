"""How the features of some images change with a schedule's numbers, to first order.

A distance is anything but linear in these numbers: a gain of two hundredths more may halve it or
double it. The features of each image nearly are. So each number is moved by itself, with the same
seeds, and what that does to each feature, times any move of all numbers, says what the features
would be there, and with them the distance: as in Gauss and Newton's method, which linearises what
is squared. No gradient flows through a network, so whatever can be measured can be polished.
"""

from dataclasses import dataclass
from math import inf, log

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from stepsearch.metrics.distance import Average, Moments, frechet_distance

PENALTY = 1.0  # a hundredth of the start's alignment is worth a hundredth of FD
# and one that may not be lost a fifth; squared, so that the move ends where the first tenths are
STEEP = 2000.0
TINY = float(np.finfo(float).tiny)
DIFFERENCE = 1e-4  # of a number, for distances without a gradient here

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Linear:
    """Features and alignment of n images, and their slopes for k numbers.

    features (n, d), or of versions (n, versions, d); slopes (k, n, d) or (k, n, versions, d), for
    numbers in units of their own; aligned (n,), in shares of the start's mean, and (k, n). `room`
    is how much of the mean of `aligned` may be lost, in such shares.
    """

    reference: Moments
    features: Array
    slopes: Array
    aligned: Array
    aligned_slopes: Array
    room: float = inf

    def beside(self, other: "Linear") -> "Linear":
        """Of these images and others, about the same schedule."""
        return Linear(
            self.reference,
            np.concatenate([self.features, other.features]),
            np.concatenate([self.slopes, other.slopes], axis=1),
            np.concatenate([self.aligned, other.aligned]),
            np.concatenate([self.aligned_slopes, other.aligned_slopes], axis=1),
            self.room,
        )

    def value(self, move: Array) -> float:
        """log distance and the alignment that is lost, after a move (k,).

        Of the mean of a metric of the user's, whose scale nobody knows, it is the metric alone.
        """
        features = self.features + np.tensordot(move, self.slopes, 1)
        distance = frechet_distance(features, self.reference)
        return self._objective(distance, move)

    def best(self, radius: float) -> Array:
        """The move of at most `radius` in each number after which the value is least."""
        k = len(self.slopes)
        smooth = has_gradient(self.reference)
        found = minimize(
            self._value_and_gradient if smooth else self.value,
            np.zeros(k),
            jac=smooth or None,
            bounds=[(-radius, radius)] * k,
            method="L-BFGS-B",
            options={"maxiter": 60} | ({} if smooth else {"eps": DIFFERENCE}),
        )
        return np.asarray(found.x, np.float64)

    def _objective(self, distance: float, move: Array) -> float:
        if isinstance(self.reference, Average):
            return distance
        kept = float((self.aligned + move @ self.aligned_slopes).mean())
        return objective(distance, kept) + STEEP * self._beyond(move) ** 2

    def _beyond(self, move: Array) -> float:
        """By how much more alignment is lost after a move than may be; 0 where nobody knows."""
        lost = -float(np.nan_to_num(move @ self.aligned_slopes.mean(1)))
        return max(0.0, lost - self.room)

    def _value_and_gradient(self, move: Array) -> tuple[float, Array]:
        features = self.features + np.tensordot(move, self.slopes, 1)
        distance, pull = with_gradient(features, self.reference)
        axes = tuple(range(1, self.slopes.ndim))
        slope = (self.slopes * pull).sum(axes)
        if not isinstance(self.reference, Average):
            lost = PENALTY + 2 * STEEP * self._beyond(move)
            slope = slope / max(distance, TINY) - lost * np.nan_to_num(self.aligned_slopes.mean(1))
        return self._objective(distance, move), slope


def objective(distance: float, kept: float) -> float:
    """log FD, plus the share of the start's alignment that is lost; NaN if nothing judges it."""
    lost = 0.0 if np.isnan(kept) else 1 - kept
    return log(max(distance, TINY)) + PENALTY * lost


def has_gradient(reference: Moments) -> bool:
    """Whether the distance is FD, or a mean."""
    if reference.parts:
        return all(map(has_gradient, reference.parts))
    return isinstance(reference, Average) or type(reference) is Moments


def with_gradient(features: NDArray[np.floating], reference: Moments) -> tuple[float, Array]:
    """`frechet_distance`, and its gradient with respect to each feature, of their shape."""
    if features.ndim == 3:
        found = [with_gradient(version, reference) for version in features.swapaxes(0, 1)]
        distances = np.array([distance for distance, _ in found])
        share = np.full(len(found), 1 / len(found))
        if reference.over == "worst":
            share = np.eye(len(found))[distances.argmax()]
        pulls = [part * pull for part, (_, pull) in zip(share, found, strict=True)]
        return float(share @ distances), np.stack(pulls, axis=1)
    if reference.parts:
        found = [with_gradient(*part) for part in reference.split(features)]
        mean = float(np.exp(np.mean([log(max(distance, TINY)) for distance, _ in found])))
        pulls = [pull * (mean / len(found) / max(distance, TINY)) for distance, pull in found]
        return mean, np.concatenate(pulls, axis=1)
    x = np.asarray(features, np.float64)
    if isinstance(reference, Average):
        return float(x.mean()), np.full(x.shape, 1 / len(x))
    return _frechet(x, reference)


def _frechet(x: Array, reference: Moments) -> tuple[float, Array]:
    """FD of features (n, d), n >= 2, and its gradient with respect to each of them.

    With the centred features Y / sqrt(n - 1) = Z and L L' the reference's covariance, the trace of
    the root is the nuclear norm of Z L; the gradient of that is the orthogonal factor of the polar
    decomposition.
    """
    n = len(x)
    mean, root = x.mean(0), np.sqrt(n - 1)
    centred, shift = (x - mean) / root, mean - reference.mean
    left, values, right = np.linalg.svd(centred @ reference.factor, full_matrices=False)
    kept = values > 1e-10 * values[:1]
    polar = (left * kept) @ right
    distance = shift @ shift + (centred**2).sum() + np.trace(reference.cov) - 2 * values.sum()
    spread = 2 * (centred - polar @ reference.factor.T) / root
    return float(distance), spread - spread.mean(0) + 2 * shift / n
