"""Reference statistics: a projection of features and the moments of real images under it.

Features are standardised and projected to the principal axes of the reference images, so that a few
hundred images mean something. All of it is fitted to the reference alone, and stored with the
digest of the extractor: statistics of another one are refused.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from stepsampler.errors import UserError
from stepsearch.distance import Moments
from stepsearch.features import Extractor
from stepsearch.paths import bundled, write_whole

AXES = 128


@dataclass(frozen=True)
class Reference:
    """Moments for the search and, of other real images where there are any, for the test."""

    extractor: str
    digest: str
    center: NDArray[np.float64]  # (features,)
    basis: NDArray[np.float64]  # (features, axes), scaled by 1 / standard deviation
    search: Moments
    test: Moments

    @property
    def metric(self) -> str:
        """Name of the distance, without n: fd_texture128."""
        return f"fd_{self.extractor}{self.basis.shape[1]}"

    @property
    def fingerprint(self) -> str:
        """Changes with the real images as well as with the extractor."""
        key = hashlib.sha256(self.digest.encode())
        for array in (self.center, self.basis, self.search.mean, self.search.cov, self.test.cov):
            key.update(np.ascontiguousarray(array).tobytes())
        return key.hexdigest()[:16]

    def project(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """(n, features) -> (n, axes)."""
        return (np.asarray(features, np.float64) - self.center) @ self.basis

    def check(self, extractor: Extractor) -> None:
        """Refuse an extractor other than the one these statistics were made with."""
        if (self.extractor, self.digest) != (extractor.name, extractor.digest):
            raise UserError(
                f"the reference was made with {self.extractor} {self.digest}, "
                f"but the extractor is {extractor.name} {extractor.digest}"
            )

    def save(self, path: Path) -> None:
        tensors = {"center": self.center, "basis": self.basis}
        for name in ("search", "test"):
            moments: Moments = getattr(self, name)
            tensors |= {f"{name}.mean": moments.mean, f"{name}.cov": moments.cov}
        info = {
            "extractor": self.extractor,
            "digest": self.digest,
            "n": json.dumps([self.search.n, self.test.n]),
        }
        write_whole(path, lambda p: save_file(tensors, p, info))

    @classmethod
    def load(cls, path: Path) -> "Reference":
        with safe_open(path, framework="numpy") as file:
            info = file.metadata()
            t = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        n_search, n_test = json.loads(info["n"])
        return cls(
            info["extractor"],
            info["digest"],
            t["center"],
            t["basis"],
            Moments(t["search.mean"], t["search.cov"], n_search),
            Moments(t["test.mean"], t["test.cov"], n_test),
        )


def fit(
    extractor: Extractor,
    search: Iterable[Tensor],
    test: Iterable[Tensor] | None = None,
    axes: int = AXES,
) -> Reference:
    """Fit the projection on the `search` images and take both moments under it.

    Batches are uint8 (n, 3, height, width). Without `test` the search images serve for both.
    """
    features = _features(extractor, search)
    if len(features) < 2:
        raise UserError(f"a reference needs at least two images, got {len(features)}")
    center = features.mean(0)
    deviation = features.std(0)
    scale = np.where(deviation > 1e-6, 1 / deviation.clip(1e-6), 0.0)
    x = (features - center) * scale
    values, vectors = np.linalg.eigh(x.T @ x)
    axes = min(axes, len(features) - 1, int((values > 1e-9 * values[-1]).sum()))
    basis = np.ascontiguousarray(scale[:, None] * vectors[:, ::-1][:, :axes])
    moments = Moments.of(x @ vectors[:, ::-1][:, :axes])
    other = moments
    if test is not None:
        other = Moments.of((_features(extractor, test) - center) @ basis)
    return Reference(extractor.name, extractor.digest, center, basis, moments, other)


def load_reference(source: str, extractor: Extractor, size: int, cache: Path) -> Reference:
    """Bundled statistics by the name of their data, or those of a folder of images.

    A folder's images are cropped to a centred square and resized to `size`; the result is cached
    under `cache` by the content of the files.

    Raises:
        UserError: neither bundled nor a folder, or a file in it that is no image.
    """
    path = bundled(f"{source}-{extractor.name}.safetensors")
    if not path.exists():
        folder = Path(source)
        if not folder.is_dir():
            raise UserError(f"reference {source!r}: neither a folder of images nor bundled")
        images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        key = hashlib.sha256(f"{extractor.digest} {size} {AXES}".encode())
        for image in images:
            key.update(hashlib.sha256(image.read_bytes()).digest())
        path = cache / f"reference-{key.hexdigest()[:16]}.safetensors"
        if not path.exists():
            fit(extractor, read_images(images, size)).save(path)
    reference = Reference.load(path)
    reference.check(extractor)
    return reference


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def read_images(paths: list[Path], size: int, batch: int = 50) -> Iterator[Tensor]:
    """Images as uint8 batches (n, 3, size, size); centre crop to a square, bicubic resize."""
    from PIL import Image, ImageOps

    for start in range(0, len(paths), batch):
        rows = []
        for path in paths[start : start + batch]:
            try:
                with Image.open(path) as image:
                    fitted = ImageOps.fit(
                        image.convert("RGB"), (size, size), Image.Resampling.BICUBIC
                    )
            except OSError as error:
                raise UserError(f"{path}: not an image that can be read ({error})") from error
            rows.append(torch.from_numpy(np.array(fitted)).permute(2, 0, 1))
        yield torch.stack(rows)


def _features(extractor: Extractor, batches: Iterable[Tensor]) -> NDArray[np.float64]:
    rows = [extractor(batch).double().numpy() for batch in batches]
    return np.concatenate(rows) if rows else np.zeros((0, 1))
