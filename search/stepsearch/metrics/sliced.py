"""Sliced Wasserstein distance of patches, a ruler without a network (Karras et al. 2018, sec. 5).

A Laplacian pyramid (Burt and Adelson 1983) has an image in bands, each of half the resolution of
the one before, down to 16 pixels. In each band all patches of 7 x 7 pixels are projected to the
same random directions; on each of these lines the patches of real and of generated images are two
distributions, and their Wasserstein-1 distance is the area between their cumulated ones.

Other than there: all patches of an image instead of 128 random ones; 32 directions instead of 512;
the areas are taken bin by bin, which is the distance itself where neither distribution overtakes
the other within a bin, and less elsewhere; and a band is measured in units of the real images' own
spread, not either set in its own, which would hide a want of contrast.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stepsampler.errors import UserError
from stepsearch.metrics.distance import (
    BLOCKS,
    OTHER_DIMENSIONS,
    Array,
    Moments,
    Score,
    checked,
    count_blocks,
    parts_of,
)

PATCH, DIRECTIONS = 7, 32
LEAST = 16  # pixels of the last band's shorter side, at least
FARTHEST, BENDING = 1024.0, 6.0  # last edge of the bins, in grey levels; how much denser at 0
EDGES = FARTHEST * np.sinh(BENDING * np.linspace(-1, 1, 49)) / np.sinh(BENDING)
BINS = len(EDGES) - 1


class Patches:
    """Where the patches of an image lie on the lines: (bands x 32 x 48) features.

    Each is the mean, over one bin of one line, of the share of patches that are not beyond: in
    [0, 1], and additive over images. Images have at least 16 pixels a side.
    """

    name = "patches"
    resizing = "none"
    axes: int | None = None

    def __init__(self, device: torch.device) -> None:
        lines = torch.randn(DIRECTIONS, 3, PATCH, PATCH, generator=torch.Generator().manual_seed(0))
        self.lines = (lines / lines.flatten(1).norm(dim=1)[:, None, None, None]).to(device)
        self.device = device
        self.digest = f"{PATCH}px-{DIRECTIONS}-{BINS}-{FARTHEST:g}-{BENDING:g}"

    def prepare(self, images: Tensor) -> list[Tensor]:
        return pyramid(images.to(self.device).float())

    @torch.inference_mode()
    def features(self, prepared: list[Tensor]) -> Tensor:
        return torch.cat([self._shares(F.conv2d(band, self.lines)) for band in prepared], 1)

    def __call__(self, images: Tensor) -> Tensor:
        return self.features(self.prepare(images))

    @staticmethod
    def _shares(values: Tensor) -> Tensor:
        """Of projections (n, directions, h, w), in grey levels."""
        x = values.flatten(2).double().cpu().clamp(-FARTHEST, FARTHEST).contiguous()
        edges = torch.from_numpy(EDGES)
        place = torch.bucketize(x, edges[1:-1])
        below = torch.zeros(*x.shape[:2], BINS, dtype=x.dtype)
        inside = torch.zeros_like(below)
        below.scatter_add_(2, place, torch.ones_like(x))
        inside.scatter_add_(2, place, (edges[place + 1] - x) / (edges[place + 1] - edges[place]))
        shares = (below.cumsum(2) - below + inside) / x.shape[2]
        return shares.flatten(1).float()


def pyramid(images: Tensor) -> list[Tensor]:
    """Bands of float images (n, 3, height, width), the finest first; they add up to the image."""
    bands, x = [], images
    while min(x.shape[-2:]) >= 2 * LEAST:
        smaller = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), _blur(x), stride=2, groups=3)
        bands.append(x - enlarged(smaller, x.shape[-2:]))
        x = smaller
    return [*bands, x]


def enlarged(x: Tensor, size: torch.Size) -> Tensor:
    """To (height, width), at most twice its own: zeros in between, then the same blur."""
    wide = x.new_zeros(*x.shape[:2], *size)
    wide[..., ::2, ::2] = x
    return F.conv2d(F.pad(wide, (2, 2, 2, 2), mode="reflect"), 4 * _blur(x), groups=3)


def _blur(x: Tensor) -> Tensor:
    row = x.new_tensor([1, 4, 6, 4, 1]) / 16
    return torch.outer(row, row).expand(3, 1, 5, 5)


@dataclass(frozen=True)
class Sliced(Moments):
    """The mean of the features of `Patches` (d,); without a covariance."""

    prefix = "swd"

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> "Sliced":
        x = checked(features)
        return cls(x.mean(0), np.zeros((0, 0)), len(x))

    @property
    def weights(self) -> Array:
        """Of each feature's difference: bins' widths, in percent of their band's spread.

        That is the mean distance of a band's patches from their median, over its lines.
        """
        shares = self.mean.reshape(-1, DIRECTIONS, BINS)
        spread = (np.diff(EDGES) * np.minimum(shares, 1 - shares)).sum(2).mean(1)
        each = 100 / (spread.clip(1e-6) * DIRECTIONS * len(spread))
        return np.broadcast_to(each[:, None, None] * np.diff(EDGES), shares.shape).reshape(-1)

    def own(self, features: NDArray[np.floating], blocks: int = BLOCKS) -> Score:
        """The distance, of 100 where the patches are off by as much as they are spread."""
        x = checked(features)
        if x.shape[1] != len(self.mean):
            raise UserError(OTHER_DIMENSIONS.format(x.shape[1], len(self.mean)))
        parts = parts_of(len(x), count_blocks(len(x), blocks) if blocks else 0)
        total, sums = x.sum(0), [x[part].sum(0) for part in parts]
        left = [
            (total - gone) / (len(x) - len(part)) for gone, part in zip(sums, parts, strict=True)
        ]
        value, *left_out = [
            float(np.abs(mean - self.mean) @ self.weights) for mean in (total / len(x), *left)
        ]
        return Score(value, np.array(left_out), n=len(x))


def moments_of(extractor: str) -> type[Moments]:
    """What is kept of real images' features under the extractor of this name."""
    return Sliced if extractor == Patches.name else Moments
