"""Reference statistics of others: `.npz` files in four layouts, never unpickled.

pytorch-fid, EDM    mu (d,), sigma (d, d)
clean-fid           mu, sigma; for its KID: feats (n, d)
ADM                 arr_0, uint8 images (n, height, width, 3); mu, sigma; mu_s, sigma_s (unused)
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stepsampler.errors import UserError
from stepsampler.statistics.arrays import BROKEN

SHOWN = 24  # bytes of a file that is no .npz
ROUNDING = 1e-3  # of single precision, over the largest entry


@dataclass(frozen=True)
class Foreign:
    """What a file holds; the parts that it lacks are None."""

    mean: NDArray[np.float64] | None
    cov: NDArray[np.float64] | None
    features: NDArray[np.float32] | None
    images: NDArray[np.uint8] | None  # (n, 3, height, width)


def read_npz(path: Path) -> Foreign:
    """Read a file of statistics.

    Raises:
        UserError: none of the layouts, pickled objects, or values that cannot be statistics.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            t = {k: file[k] for k in ("mu", "sigma", "feats", "arr_0") if k in file.files}
            keys = ", ".join(file.files)
            if not all(isinstance(array, np.ndarray) for array in t.values()):
                raise ValueError("a part of another kind, whose bytes numpy gives as they are")
    except BROKEN as error:
        raise UserError(f"{path}: not an .npz of plain arrays: {_why(path, error)}") from error
    mean, cov, features, images = (t.get(k) for k in ("mu", "sigma", "feats", "arr_0"))
    if (mean is None or cov is None) and features is None and images is None:
        raise UserError(
            f"{path}: expected mu and sigma, feats, or arr_0, found {keys or 'nothing'}"
        )
    for name, array in (("mu", mean), ("sigma", cov), ("feats", features)):
        if array is not None and array.dtype.kind not in "fiu":
            raise UserError(f"{path}: {name} must be real numbers, got {array.dtype}")
    if mean is not None and cov is not None:
        if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
            raise UserError(
                f"{path}: mu must be (d,) and sigma (d, d), got {mean.shape} and {cov.shape}"
            )
        mean, cov = mean.astype(np.float64), cov.astype(np.float64)
        if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
            raise UserError(f"{path}: mu or sigma is not finite")
        _check_covariance(path, cov)
    else:
        mean = cov = None
    if features is not None:
        if features.ndim != 2:
            raise UserError(f"{path}: feats must be (n, d), got {features.shape}")
        features = features.astype(np.float32)
        if not np.isfinite(features).all():
            raise UserError(f"{path}: feats is not finite")
    if images is not None:
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise UserError(
                f"{path}: arr_0 must be uint8 (n, height, width, 3), "
                f"got {images.dtype} {images.shape}"
            )
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return Foreign(mean, cov, features, images)


def _why(path: Path, error: Exception) -> str:
    """What a file is instead, by how it begins."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return error.strerror
    with path.open("rb") as file:
        head = file.read(SHOWN)
    if head.startswith(b"\x93NUMPY"):
        return "one bare array (.npy), of which numpy.savez makes one"
    if not head.startswith(b"PK"):
        return f"it begins with {head!r}" if head else "it is empty"
    if "allow_pickle" in str(error):
        return "it has pickled objects, which are never read"
    return "damaged or cut off"


def _check_covariance(path: Path, cov: NDArray[np.float64]) -> None:
    scale = ROUNDING * np.abs(cov).max(initial=0.0)
    if np.abs(cov - cov.T).max(initial=0.0) > scale:
        raise UserError(f"{path}: sigma is not symmetric, so it is no covariance")
    least = np.linalg.eigvalsh(cov)[0] if len(cov) else 0.0
    if least < -scale:
        raise UserError(f"{path}: sigma has an eigenvalue of {least:.3g}, so it is no covariance")
