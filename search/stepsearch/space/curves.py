"""Curves along the trajectory: values at the knots of a box, and back from those of steps."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def middles(n: int) -> NDArray[np.float64]:
    """Where n steps lie in the trajectory, from 0 (noise) to 1 (image)."""
    return (np.arange(n) + 0.5) / n


def names_of(stem: str, knots: int) -> list[str]:
    """Of the numbers of a curve in the box."""
    return [f"{stem}_{i}" for i in range(knots)]


def curve(
    stem: str,
    params: Mapping[str, float],
    at: NDArray[np.float64],
    knots: int,
    missing: float = 1.0,
) -> NDArray[np.float64]:
    """Values at positions of the trajectory: of the knots, of the one number, or `missing`."""
    known = names_of(stem, knots)
    if known[0] not in params:
        return np.full(len(at), params.get(stem, missing))
    return np.asarray(np.interp(at, middles(knots), [params[name] for name in known]))


def knots_of(
    stem: str, values: Sequence[float] | NDArray[np.float64], knots: int
) -> dict[str, float]:
    """The knots of the curve that is nearest to the values of the steps."""
    places, at = middles(knots), middles(len(values))
    if len(at) > knots:  # least squares: between the values it would blur an interval
        hats = np.array([np.interp(at, places, hat) for hat in np.eye(knots)])
        found = np.linalg.lstsq(hats.T, np.asarray(values, float), rcond=None)[0]
    else:
        found = np.interp(places, at, values)
    return dict(zip(names_of(stem, knots), found.tolist(), strict=True))
