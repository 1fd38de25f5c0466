"""Latents as the tokens of a transformer: each is a square of 2 x 2 entries."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from stepsampler.models.base import LatentModel


class PackedModel(LatentModel):
    """A transformer on packed latents; `_call` packs and unpacks, so that `shape` is an image's."""

    def _trained_shape(self) -> tuple[int, int, int]:
        side = self.pipeline.default_sample_size
        return self.net.config.in_channels // 4, side, side

    @property
    def _tokens(self) -> int:
        return (self.shape[1] // 2) * (self.shape[2] // 2)

    def as_stock(self, noise: Tensor) -> Mapping[str, Tensor]:
        return {"latents": pack(noise)}


def pack(latents: Tensor) -> Tensor:
    """(n, channels, 2 h, 2 w) -> (n, h w, 4 channels)."""
    return pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, like: Tensor) -> Tensor:
    """The inverse of `pack`, to latents of the height and width of `like`."""
    height, width = (side // 2 for side in like.shape[2:])
    return pixel_shuffle(tokens.transpose(1, 2).reshape(len(tokens), -1, height, width), 2)


def places(latents: Tensor) -> Tensor:
    """Of each token: 0, its row, its column; whole numbers (h w, 3)."""
    rows, columns = (torch.arange(side // 2, device=latents.device) for side in latents.shape[2:])
    grid = torch.cartesian_prod(rows, columns)
    return torch.cat([torch.zeros_like(grid[:, :1]), grid], dim=1)
