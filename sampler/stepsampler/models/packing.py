"""Latents as the tokens of a transformer: each is a square of 2 x 2 entries."""

import torch
from torch import Tensor

from stepsampler.models.base import LatentModel


class PackedModel(LatentModel):
    """A transformer on packed latents; `_call` packs and unpacks, so that `shape` is an image's."""

    def _trained_shape(self) -> tuple[int, int, int]:
        side = self.pipeline.default_sample_size
        return self.net.config.in_channels // 4, side, side

    @property
    def _tokens(self) -> int:
        return (self.shape[1] // 2) * (self.shape[2] // 2)

    def combine(self, uncond: Tensor, cond: Tensor, w: float) -> Tensor:
        return unpack(super().combine(pack(uncond), pack(cond), w), cond)

    def as_stock(self, noise: Tensor) -> Tensor:
        return pack(noise)


def pack(latents: Tensor) -> Tensor:
    """(n, channels, 2 h, 2 w) -> (n, h w, 4 channels)."""
    n, channels, height, width = latents.shape
    squares = latents.reshape(n, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, like: Tensor) -> Tensor:
    """The inverse of `pack`, to latents of the height and width of `like`."""
    n, _, channels = tokens.shape
    height, width = like.shape[2:]
    squares = tokens.reshape(n, height // 2, width // 2, channels // 4, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(n, channels // 4, height, width)


def places(latents: Tensor) -> Tensor:
    """Of each token: 0, its row, its column; whole numbers (h w, 3)."""
    rows, columns = (torch.arange(side // 2, device=latents.device) for side in latents.shape[2:])
    grid = torch.cartesian_prod(rows, columns)
    return torch.cat([torch.zeros_like(grid[:, :1]), grid], dim=1)
