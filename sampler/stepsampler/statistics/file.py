"""Statistics of a model: three numbers for each entry of a latent at each level of a grid.

They are the l, s and b of DPM-Solver-v3 (Zheng et al. 2023, arXiv 2310.13268, section 3), on levels
that are even in lambda = log(alpha / sigma), from the model's noisiest level to its clearest. Files
are safetensors; the authors' folders of `l.npz` and `sb.npz` are read too.
"""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import exp, inf, log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from stepsampler.errors import UserError
from stepsampler.noise import Noise, NoiseSchedule
from stepsampler.schedule import MOST_INTERVALS, Schedule, StatisticsSpec
from stepsampler.solvers import Row, tableau
from stepsampler.statistics.arrays import BROKEN
from stepsampler.support.files import meant, replacing
from stepsampler.support.weights import read_header

FORMAT = "stepsampler.statistics/1"
NAMES = ("l", "s", "b")
DTYPES = ("F16", "F32", "F64")  # as safetensors calls them, of those that numpy has
LEVELS = 5  # of a model, that `noise` tells
AUTHORS = ("l.npz", "sb.npz")
AUTHORS_NAME = re.compile(r"(\d+(?:\.\d+)?)_(\d+)_(\d+)")  # of a folder: scale, intervals, samples
MOST_BYTES = 2**32  # of an array in the authors' files
CLOSE = 1e-3  # of the ends in lambda

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Statistics:
    """l, s and b, each of shape (intervals + 1, channels, height, width), noisiest level first.

    `ends` are lambda at the first and the last level.
    """

    l: NDArray[Any]  # noqa: E741
    s: NDArray[Any]
    b: NDArray[Any]
    ends: tuple[float, float]
    guidance_scale: float
    samples: int
    place: str  # for sentences
    noise: tuple[float, ...] | None = None  # of the model, as in a schedule; None: not said
    errors: str = ""  # as measured, of the differences that they come of
    _rows: list[tuple[Schedule, torch.device, list[Row]]] = field(default_factory=list, repr=False)

    @property
    def intervals(self) -> int:
        return len(self.l) - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """That of a latent."""
        return tuple(self.l.shape[1:])

    @cached_property
    def lambdas(self) -> Array:
        return np.linspace(*self.ends, self.intervals + 1)

    @cached_property
    def digest(self) -> str:
        """Of the numbers, whatever file they are in."""
        found = hashlib.sha256(f"{self.guidance_scale:g} {self.l.shape}".encode())
        for name in NAMES:
            found.update(np.ascontiguousarray(getattr(self, name), np.float32).tobytes())
        return found.hexdigest()[:16]

    @property
    def spec(self) -> StatisticsSpec:
        """What a schedule says of them."""
        return StatisticsSpec(self.guidance_scale, self.intervals, self.digest)

    def suits(self, spec: StatisticsSpec) -> bool:
        """Whether a schedule means these."""
        if spec.digest is not None:
            return spec.digest == self.digest
        return spec.is_like(StatisticsSpec(self.guidance_scale, self.intervals))

    def check_model(self, noise: Noise, shape: Sequence[int]) -> None:
        """Refuse a model of which they cannot be.

        Raises:
            UserError: names what differs.
        """
        ends = ends_of(noise)
        if self.shape != tuple(shape):
            raise UserError(
                f"{self.place}: statistics of latents of shape {_by(self.shape)}, "
                f"but the model's are {_by(shape)}"
            )
        if any(abs(ours - theirs) > CLOSE for ours, theirs in zip(self.ends, ends, strict=True)):
            ours, theirs = (f"{exp(-a):.4g} to {exp(-b):.4g}" for a, b in (self.ends, ends))
            raise UserError(
                f"{self.place}: statistics of noise levels from sigma {ours}, but the model has "
                f"{theirs}"
            )
        known = noise.spec("", "epsilon").noise
        if self.noise and any(
            abs(log(a / b)) > CLOSE for a, b in zip(self.noise, known, strict=True)
        ):
            raise UserError(f"{self.place}: statistics of a model with other noise levels")

    def check_levels(self, schedule: Schedule) -> None:
        """Refuse a schedule with a level at which there are none.

        Raises:
            UserError: names the step.
        """
        low, high = np.exp(-self.lambdas[[-1, 0]])
        for i, sigma in enumerate(schedule.sigmas):
            if sigma and not low * (1 - CLOSE) <= sigma <= high * (1 + CLOSE):
                raise UserError(
                    f"step {i}: there are statistics for sigma {low:.4g} to {high:.4g} and for 0, "
                    f"got {sigma:g}"
                )

    def rows(self, schedule: Schedule, device: torch.device) -> list[Row]:
        """The tableau of a schedule, kept until the next one is asked for."""
        from stepsampler.statistics.solver import ByStatistics, on

        if not (self._rows and self._rows[0][:2] == (schedule, device)):
            rows = [on(row, device) for row in tableau(schedule, ByStatistics(self, schedule))]
            self._rows[:] = [(schedule, device, rows)]
        return self._rows[0][2]

    def save(self, path: Path, more: dict[str, str]) -> None:
        """Write a file of half precision numbers, whole or not at all; `more` is told in it."""
        said = {
            "format": FORMAT,
            "guidance_scale": repr(self.guidance_scale),
            "samples": str(self.samples),
            "log_snr": json.dumps(self.ends),
            "noise": json.dumps(self.noise),
            **more,
        }
        content = save({n: getattr(self, n).astype(np.float16) for n in NAMES}, said)
        with replacing(path) as temporary:
            temporary.write_bytes(content)


def ends_of(noise: Noise) -> tuple[float, float]:
    """lambda at the noisiest and the clearest level of a model.

    Raises:
        UserError: no variance-preserving model, or one whose noise has no end.
    """
    if not isinstance(noise, NoiseSchedule):
        raise UserError("statistics are for variance-preserving models, this is none")
    if noise.ends_in_noise:
        raise UserError("statistics need a noisiest level, a model with zero terminal SNR has none")
    return -log(noise.sigma_max), -log(noise.sigma_min)


def read_statistics(place: str, noise: Noise, shape: Sequence[int]) -> Statistics:
    """Read a file, or a folder of the authors' layout, for a model.

    Raises:
        UserError: nothing there, another kind of file, or statistics of another model.
    """
    path = Path(place)
    found = _checked(_from_authors(path, noise)) if path.is_dir() else _from_file(path)
    found.check_model(noise, shape)
    return found


def _checked(found: Statistics) -> Statistics:
    """Statistics whose numbers can be used.

    Raises:
        UserError: names what is wrong.
    """
    shape = found.l.shape
    if len(shape) != 4 or not 1 < shape[0] <= MOST_INTERVALS + 1:
        raise UserError(
            f"{found.place}: l must be of shape (intervals + 1, channels, height, width), with 1 "
            f"to {MOST_INTERVALS:,} intervals, got {_by(shape) or 'a single number'}"
        )
    for name in NAMES:
        array = getattr(found, name)
        if array.shape != shape:
            raise UserError(
                f"{found.place}: {name} must be of shape {_by(shape)}, as l, got {_by(array.shape)}"
            )
        if array.dtype.kind != "f":
            raise UserError(f"{found.place}: {name} must be real numbers, got {array.dtype}")
        if not np.isfinite(array).all():
            raise UserError(f"{found.place}: {name} must be finite, but has NaN or infinities")
    return found


def read_spec(place: str) -> StatisticsSpec:
    """What a schedule says of a file; of a folder of the authors' what its name says.

    Raises:
        UserError: nothing there, or another kind of file.
    """
    path = Path(place)
    if not path.is_dir():
        return _from_file(path).spec
    scale, intervals, _ = _told(path)
    return StatisticsSpec(scale, intervals)


def _from_file(path: Path) -> Statistics:
    place = str(path)
    if path.name in AUTHORS:
        raise UserError(f"{place}: give the folder in which {' and '.join(AUTHORS)} lie")
    header = read_header("statistics", place)
    said = header.metadata
    if said.get("format") != FORMAT:
        raise UserError(
            f"{place} holds no statistics: the format must be {FORMAT!r}, "
            f"got {said.get('format')!r}"
        )
    if set(header.tensors) != set(NAMES):
        names = ", ".join(sorted(header.tensors)) or "none"
        raise UserError(f"{place}: its tensors must be {', '.join(NAMES)}, got {names}")
    for name, (dtype, _) in header.tensors.items():
        if dtype not in DTYPES:
            raise UserError(f"{place}: {name} must be of {', '.join(DTYPES)}, got {dtype}")
    try:
        arrays = load_file(path)
        first, last = json.loads(said["log_snr"])
        noise = tuple(map(float, json.loads(said["noise"])))
        scale, samples = float(said["guidance_scale"]), int(said["samples"])
        ends = float(first), float(last)
        told = [
            (said.get("derivative_error"), "the derivatives"),
            (said.get("diagonal_error"), "the diagonals, of their own size"),
        ]
    except KeyError as error:
        raise UserError(f"{place}: its metadata has no {error}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{place}: its metadata cannot be read: {error}") from error
    for key, fine in {
        "guidance_scale": 0 <= scale < inf,
        "samples": samples > 0,
        "log_snr": -inf < ends[0] < ends[1] < inf,
        "noise": len(noise) == LEVELS and all(0 < sigma < inf for sigma in noise),
    }.items():
        if not fine:
            raise UserError(f"{place}: its metadata cannot be true: {key} is {said[key]}")
    errors = ", ".join(f"{e} of {what}" for e, what in told if e is not None)
    l, s, b = (arrays[n] for n in NAMES)  # noqa: E741
    told_errors = errors and f"errors: {errors}"
    return _checked(Statistics(l, s, b, ends, scale, samples, place, noise, told_errors))


def _told(folder: Path) -> tuple[float, int, int]:
    """Guidance scale, intervals and samples."""
    name = AUTHORS_NAME.fullmatch(folder.resolve().name)
    if not name:
        raise UserError(
            f"{folder}: a folder of statistics is named SCALE_INTERVALS_SAMPLES, "
            f"such as 7.5_250_1024, got {folder.resolve().name!r}"
        )
    return float(name[1]), int(name[2]), int(name[3])


def _from_authors(folder: Path, noise: Noise) -> Statistics:
    """Of the authors' layout; what they are of is told by the folder's name."""
    scale, intervals, samples = _told(folder)
    found = {
        key: _read_npz(folder / file, key)
        for file, keys in zip(AUTHORS, (("l",), ("s", "b")), strict=True)
        for key in keys
    }
    if not found["l"].ndim:
        raise UserError(f"{folder}: l must have an entry for each level, but is a single number")
    if len(found["l"]) != intervals + 1:
        raise UserError(
            f"{folder}: the folder's name says {intervals:,} intervals, but l has "
            f"{len(found['l']):,} levels"
        )
    return Statistics(
        found["l"], found["s"], found["b"], ends_of(noise), scale, samples, str(folder)
    )


def _read_npz(path: Path, key: str) -> NDArray[Any]:
    """An array of numbers in an npz; objects, which are pickles, are not read.

    Raises:
        UserError: no such file, no npz, or no numbers of this name in it.
    """
    try:
        with zipfile.ZipFile(path) as file:
            if file.getinfo(f"{key}.npy").file_size > MOST_BYTES:
                raise UserError(f"{path}: {key} is larger than {MOST_BYTES:,} bytes")
            content = io.BytesIO(file.read(f"{key}.npy"))
        array: NDArray[Any] = np.load(content, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file{meant(path)}") from error
    except KeyError as error:
        raise UserError(f"{path}: there is no {key} in it") from error
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is no npz of numbers") from error
    except BROKEN as error:
        pickled = "allow_pickle" in str(error)
        what = "holds objects, which are pickles and can run code" if pickled else "is damaged"
        raise UserError(f"{path}: {key} {what}; only arrays of numbers are read") from error
    return array


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def choose(every: Sequence[Statistics], spec: StatisticsSpec) -> Statistics:
    """Those that a schedule means.

    Raises:
        UserError: says which it needs, and which there are.
    """
    for found in every:
        if found.suits(spec):
            return found
    there = "; ".join(f"{s.place} is {s.spec}" for s in every)
    raise UserError(
        f"the schedule needs statistics {spec}: give --statistics FILE, which `stepsample "
        f"statistics` makes{there and f'; {there}'}"
    )
