"""Precision and recall of features (Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2).

The manifold of a set is the union of balls around its members, each as wide as the distance to the
third nearest other member. Precision is the share of generated images on the manifold of real ones,
recall the share of real images on the manifold of generated ones. torch-fidelity has the same, but
needs torchvision; it is the oracle in tests/fid.
"""

import numpy as np
from numpy.typing import NDArray

from stepsampler.errors import UserError
from stepsearch.metrics.distance import (
    BLOCKS,
    Array,
    Score,
    checked,
    count_blocks,
    parts_of,
    score_mean,
)

NEIGHBOUR = 3
LEAST = 8  # images, so that each has its neighbours without a block too


def score_precision_recall(
    features: NDArray[np.floating], real: NDArray[np.floating], blocks: int = BLOCKS
) -> tuple[Score, Score]:
    """Precision and recall of features (n, d), given `real` (m, d), with block jackknifes.

    Both depend on n and m: recall grows with n.

    Raises:
        UserError: fewer than eight images, or a value that is not finite.
    """
    x, y = checked(features), checked(real)
    if min(len(x), len(y)) < LEAST:
        raise UserError(
            f"precision and recall need at least {LEAST} images and as many real ones, "
            f"got {len(x)} and {len(y)}"
        )
    parts = parts_of(len(x), count_blocks(len(x), blocks))
    among, across = _squared(x, x), _squared(x, y)
    on_real = np.any(across <= _radii(_squared(y, y)), axis=1).astype(np.float64)

    def recall(keep: NDArray[np.int_]) -> float:
        radii = _radii(among[np.ix_(keep, keep)])
        return float((across[keep] <= radii[:, None]).any(0).mean())

    every = np.arange(len(x))
    left_out = [recall(np.delete(every, part)) for part in parts]
    return score_mean(on_real, blocks), Score(recall(every), np.array(left_out))


def _squared(a: Array, b: Array) -> Array:
    """Squared distances (len(a), len(b)); 0 between equal rows."""
    found: Array = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    if a is b:
        np.fill_diagonal(found, 0)
    return found.clip(0)


def _radii(among: Array) -> Array:
    """Squared distance of each to its third nearest other one."""
    return np.partition(among, NEIGHBOUR, axis=1)[:, NEIGHBOUR]
