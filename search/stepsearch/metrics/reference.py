"""Reference statistics: the moments of real images' features, and a projection of these features.

Features are standardised and projected to the principal axes of the reference images, so that a few
hundred images mean something; "whole" extractors do without. All of it is fitted to the reference
alone, and stored with the digest of the extractor: statistics of another one are refused.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from stepsampler.errors import UserError
from stepsampler.support.images.pixels import Exif, Fit
from stepsampler.support.sizes import Size, sides
from stepsearch.metrics.distance import Average, Moments
from stepsearch.metrics.features import (
    AXES,
    Extractor,
    Own,
    Together,
    refuse_for_several,
)
from stepsearch.metrics.images import BrokenFilesError, ImageFiles
from stepsearch.metrics.interchange import read_npz
from stepsearch.metrics.sliced import Sliced, moments_of
from stepsearch.paths import bundled, recall, write_whole

SAMPLE = 2000  # features that are kept for distances that moments are not enough for
INCEPTION_FEATURES = 2048
BUNDLED_SIZE = 32  # pixels
FOREIGN = "unknown"  # digest of statistics that do not say how they were made


@dataclass(frozen=True)
class Reference:
    """Moments for the search and, of other real images where there are any, for the test."""

    extractor: str
    digest: str
    center: NDArray[np.float64] | None  # (features,)
    basis: NDArray[np.float64] | None  # (features, axes), scaled by 1 / standard deviation
    search: Moments
    test: Moments
    sample: NDArray[np.float32] | None = None  # (m, axes) of the images behind `test`
    note: str = ""  # what was unusual about the images or the file
    size: Size | None = None  # to which the images were brought; None: as they were, or not known
    fit: str = ""  # and how (`pixels.Fit`), where they were files
    exif: str = ""  # what was done about the EXIF orientation (`pixels.Exif`), where any has one
    unreadable: int = 0  # files of the images that are left out
    parts: tuple["Reference", ...] = ()  # those of several extractors at once

    def joined_by(self, over: Literal["mean", "worst"]) -> "Reference":
        """The same for versions of images, whose distances are joined so."""
        search, test = (moments.joined_by(over) for moments in (self.search, self.test))
        return replace(self, search=search, test=test)

    @classmethod
    def beside(cls, parts: Sequence["Reference"]) -> "Reference":
        """Statistics for `features.Together`, of the same real images."""
        return cls(
            "+".join(part.extractor for part in parts),
            "+".join(part.digest for part in parts),
            None,
            None,
            Moments.beside([part.search for part in parts]),
            Moments.beside([part.test for part in parts]),
            note="; ".join(dict.fromkeys(part.note for part in parts if part.note)),
            size=parts[0].size,
            fit=parts[0].fit,
            exif=parts[0].exif,
            unreadable=parts[0].unreadable,
            parts=tuple(parts),
        )

    @property
    def name(self) -> str:
        """Of the features: texture128, lite0 for all of them, clean for official Inception.

        foreign are statistics whose file does not say how images were resized.
        """
        if self.parts:
            return "_".join(part.name for part in self.parts)
        if self.basis is not None:
            return f"{self.extractor}{self.basis.shape[1]}"
        if self.extractor != "inception":
            return self.extractor
        return "foreign" if self.digest == FOREIGN else "clean"

    @property
    def metric(self) -> str:
        """Name of the distance, without n: fd_texture128; FID of official Inception alone.

        swd_patches is no FD (`sliced`), fdgm_texture128_lite0128 the geometric mean of two.
        """
        if self.parts:
            return f"fdgm_{self.name}"
        prefix = "fid" if self.extractor == "inception" else self.search.prefix
        return f"{prefix}_{self.name}"

    @property
    def fingerprint(self) -> str:
        """Changes with the real images as well as with the extractor."""
        known = [self.digest, *(part.fingerprint for part in self.parts)]
        key = hashlib.sha256(" ".join(known).encode())
        for array in (self.center, self.basis, self.search.mean, self.search.cov, self.test.cov):
            if array is not None:
                key.update(np.ascontiguousarray(array).tobytes())
        return key.hexdigest()[:16]

    def project(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """(…, features) -> (…, axes)."""
        if self.parts:
            ends = np.cumsum([part.width for part in self.parts])[:-1]
            columns = np.split(features, ends, axis=-1)
            found = [p.project(x) for p, x in zip(self.parts, columns, strict=True)]
            return np.concatenate(found, axis=-1)
        x = np.asarray(features, np.float64)
        if self.center is None or self.basis is None:
            return x
        return (x - self.center) @ self.basis

    @property
    def width(self) -> int:
        """Number of features before any projection."""
        return len(self.search.mean if self.center is None else self.center)

    def check(self, extractor: Extractor) -> None:
        """Refuse an extractor other than the one these statistics were made with."""
        known = extractor.digest if self.digest != FOREIGN else FOREIGN
        if (self.extractor, self.digest) != (extractor.name, known):
            raise UserError(
                f"the reference was made with {self.extractor} {self.digest}, "
                f"but the extractor is {extractor.name} {extractor.digest}"
            )
        if (self.basis is None) != (extractor.axes is None):
            kinds = ("projected features", "all features")
            made, wanted = kinds[self.basis is None], kinds[extractor.axes is None]
            raise UserError(f"the reference is of {made} of {self.extractor}, not of {wanted}")

    def save(self, path: Path) -> None:
        arrays = {"center": self.center, "basis": self.basis, "sample": self.sample}
        tensors = {name: array for name, array in arrays.items() if array is not None}
        for name in ("search", "test"):
            moments: Moments = getattr(self, name)
            tensors |= {f"{name}.mean": moments.mean, f"{name}.cov": moments.cov}
        info = {
            "extractor": self.extractor,
            "digest": self.digest,
            "n": json.dumps([self.search.n, self.test.n]),
            "note": self.note,
            "prepared": json.dumps([self.size, self.fit]),
            "exif": self.exif,
            "unreadable": str(self.unreadable),
        }
        write_whole(path, lambda p: save_file(tensors, p, info))

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Read what `save` wrote.

        Raises:
            UserError: another file.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                info = file.metadata()
                t = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            n_search, n_test = json.loads(info["n"])
            size, fit = json.loads(info.get("prepared", '[null, ""]'))
            for name, array in t.items():
                if not np.isfinite(array).all():
                    raise ValueError(f"{name} is not finite")
            kind = moments_of(info["extractor"])
            search = kind(t["search.mean"], t["search.cov"], n_search)
            test = kind(t["test.mean"], t["test.cov"], n_test)
            d = len(search.mean)
            square = (0, 0) if kind is Sliced else (d, d)
            if any(m.mean.shape != (d,) or m.cov.shape != square for m in (search, test)):
                raise ValueError("means and covariances of different sizes")
            return cls(
                info["extractor"],
                info["digest"],
                t.get("center"),
                t.get("basis"),
                search,
                test,
                t.get("sample"),
                info.get("note", ""),
                size,
                fit,
                info.get("exif", ""),
                int(info.get("unreadable", "0")),
            )
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            why = "damaged or of another kind" if isinstance(error, SafetensorError) else error
            why = f"{error.args[0]} is missing" if isinstance(error, KeyError) else why
            raise UserError(f"{path}: not reference statistics ({why})") from error


def fit(
    extractor: Extractor,
    search: Iterable[Tensor],
    test: Iterable[Tensor] | None = None,
    axes: int | None = AXES,
) -> Reference:
    """Fit the projection on the `search` images and take both moments under it.

    Batches are uint8 (n, 3, height, width). Without `test` the search images serve for both;
    without `axes` features are taken as they are.

    Raises:
        UserError: fewer than two images, features that are not finite, or images that are all
            the same, whose features have no axes.
    """
    features = _features(extractor, search)
    if len(features) < 2:
        raise UserError(f"a reference needs at least two images, got {len(features)}")
    if not np.isfinite(features).all():
        raise UserError("a feature is not finite: the images are broken, or the extractor is")
    if (deviation := features.std(0)).max() <= 1e-6:
        raise UserError("the reference images are all the same: their covariance is zero")
    if axes is None:
        kind = moments_of(extractor.name)
        moments = kind.of(features)
        others = features if test is None else _features(extractor, test)
        other = moments if test is None else kind.of(others)
        sample = some(others) if kind is Moments else None
        return Reference(extractor.name, extractor.digest, None, None, moments, other, sample)
    center = features.mean(0)
    unit = deviation if getattr(extractor, "standardised", True) else deviation.mean()
    scale = np.where(deviation > 1e-6, 1 / unit.clip(1e-6), 0.0)
    x = (features - center) * scale
    values, vectors = np.linalg.eigh(x.T @ x)
    axes = min(axes, len(features) - 1, int((values > 1e-9 * values[-1]).sum()))
    basis = np.ascontiguousarray(scale[:, None] * vectors[:, ::-1][:, :axes])
    projected = x @ vectors[:, ::-1][:, :axes]
    moments = other = Moments.of(projected)
    if test is not None:
        other = Moments.of(projected := (_features(extractor, test) - center) @ basis)
    sample = some(projected)
    return Reference(extractor.name, extractor.digest, center, basis, moments, other, sample)


def some(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """At most SAMPLE rows, the same every time; not the first: folders may be sorted by class."""
    if len(features) > SAMPLE:
        rows = np.random.default_rng(0).choice(len(features), SAMPLE, replace=False)
        features = features[np.sort(rows)]
    return np.ascontiguousarray(features.astype(np.float32))


def load_reference(
    source: str,
    extractor: Extractor,
    size: Size | None,
    cache: Path,
    fit_to: Fit = "crop",
    exif: Exif = "apply",
) -> Reference:
    """Statistics of real images, for `extractor`.

    source is one of
        the name of bundled data, such as fashion-mnist
        a folder or a zip of images, prepared to `size` as `fit_to` and `exif` say (`pixels`); the
            validation images of COCO are such a folder. Cached under `cache` by the content
        an `.npz` of others (`interchange`); statistics in it are taken for official Inception
            only, as it does not say how they were made; images in it (ADM) for any extractor
        a `.safetensors` file of such a cache

    Raises:
        UserError: none of these, files that are no images, or statistics of another extractor.
    """
    if isinstance(extractor, Own):
        none = Average(np.zeros(1), np.zeros((0, 0)), 0)
        return Reference(extractor.name, extractor.digest, None, None, none, none)
    if isinstance(extractor, Together):
        refuse_for_several(source, extractor.name)
        own = [load_reference(source, part, size, cache, fit_to, exif) for part in extractor.parts]
        return Reference.beside(own)
    path = ours = bundled(f"{source}-{extractor.name}.safetensors")
    if not path.exists():
        path = Path(source)
        if not path.exists():
            raise UserError(
                f"reference {source!r}: no folder, zip, .npz or .safetensors file, and not bundled "
                f"for {extractor.name}"
            )
        if path.suffix == ".npz" and not path.is_dir():
            return _from_npz(path, extractor, size, cache, fit_to)
        if path.suffix != ".safetensors":
            path = _cached(path, extractor, size, cache, fit_to, exif)
    reference = Reference.load(path)
    reference.check(extractor)
    if path == ours and size:  # files that are scored as they are may have any size
        reference = replace(reference, size=BUNDLED_SIZE, fit="crop")
    if reference.fit and (reference.size, reference.fit) != (size, fit_to):
        raise UserError(
            f"reference {source}: its images were prepared as {reference.fit} to {reference.size} "
            f"pixels, these are as {fit_to} to {size}"
        )
    if reference.exif and reference.exif != exif:
        raise UserError(
            f"reference {source}: its images were prepared with --exif {reference.exif}, these are "
            f"with {exif}"
        )
    return reference


def _cached(
    source: Path, extractor: Extractor, size: Size | None, cache: Path, fit_to: Fit, exif: Exif
) -> Path:
    files = ImageFiles.find(source, exif)
    what = f"{extractor.name} {extractor.digest} {extractor.axes} {size} {fit_to} {SAMPLE} drawn"
    what = f"{what} {files.preparation}".strip()  # nothing where no image is turned
    key = hashlib.sha256(f"{what} {files.digest()}".encode()).hexdigest()[:16]
    path = cache / f"reference-{key}.safetensors"
    if recall(path, Reference.load) is None:
        reference, files = _fitted(extractor, files, size, fit_to)
        turned = exif if any(head.turned for head in files.heads) else ""
        left = len(files.broken)
        told = replace(reference, note=files.note, unreadable=left)
        replace(told, size=size, fit=fit_to, exif=turned).save(path)
    return path


def _fitted(
    extractor: Extractor, files: ImageFiles, size: Size | None, fit_to: Fit
) -> tuple[Reference, ImageFiles]:
    """Of the files that can be read, which are said; at least two."""
    files = files.without(files.broken_heads)
    while True:
        if files.broken and len(files.names) < 2:
            raise files.find(files.source, files.exif).unreadable()
        try:
            return fit(extractor, files.batches(size, fit_to), axes=extractor.axes), files
        except BrokenFilesError as error:
            files = files.without(error.broken)


def _from_npz(
    path: Path, extractor: Extractor, size: Size | None, cache: Path, fit_to: Fit
) -> Reference:
    data = read_npz(path)
    if extractor.name == "inception" and (data.mean is not None or data.features is not None):
        if data.mean is not None and data.cov is not None:
            moments = Moments(data.mean, data.cov, 0)
        else:
            assert data.features is not None
            moments = Moments.of(data.features)
        if len(moments.mean) != INCEPTION_FEATURES:
            raise UserError(
                f"{path}: statistics of official Inception have {INCEPTION_FEATURES} dimensions, "
                f"these have {len(moments.mean)}"
            )
        note = f"{path}: taken to be of official Inception; the file does not say"
        sample = None if data.features is None else some(data.features)
        return Reference(extractor.name, FOREIGN, None, None, moments, moments, sample, note)
    if data.images is None:
        raise UserError(
            f"{path}: statistics without images are taken to be of official Inception, "
            f"but the extractor is {extractor.name}"
        )
    images = torch.from_numpy(data.images)
    if len(images) < 2:
        raise UserError(f"{path}: a reference needs at least two images, got {len(images)}")
    if fit_to == "squash512":
        raise UserError(f"{path}: its images are taken as they are: give --fit crop or none")
    height, width = images.shape[-2:]
    if size is not None and (width, height) != sides(size):
        wanted = " x ".join(map(str, sides(size)))
        raise UserError(f"{path}: its images are {width} x {height}, wanted is {wanted}")
    key = hashlib.sha256(f"{extractor.name} {extractor.digest} {extractor.axes} npz".encode())
    key.update(data.images.tobytes())
    kept = cache / f"reference-{key.hexdigest()[:16]}.safetensors"
    if recall(kept, Reference.load) is None:
        fit(extractor, torch.split(images, 50), axes=extractor.axes).save(kept)
    return Reference.load(kept)


def _features(extractor: Extractor, batches: Iterable[Tensor]) -> NDArray[np.float64]:
    rows = [extractor(batch).double().numpy() for batch in batches]
    return np.concatenate(rows) if rows else np.zeros((0, 1))
