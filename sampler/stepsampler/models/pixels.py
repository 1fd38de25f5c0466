"""Images as the bytes that are saved."""

import torch
from torch import Tensor

from stepsampler.errors import NotFiniteError


def stills(videos: Tensor, count: int = 1) -> Tensor:
    """Of videos (n, frames, …) as many frames each, (n, count, …): the middles of equal parts.

    One is number `frames // 2`; `count` is at most `frames`.
    """
    total = videos.shape[1]
    return videos[:, [(2 * k + 1) * total // (2 * count) for k in range(count)]]


def strips(made: Tensor) -> Tensor:
    """For sheets: images as they are; of videos the first, middle and last frame side by side."""
    if made.ndim == 4:
        return made
    total = made.shape[1]
    return torch.cat([made[:, k] for k in sorted({0, total // 2, total - 1})], -1)


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8, of three channels."""
    return quantised(_coloured(images))


def _coloured(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    return images.float() / 2 + 0.5


def quantised(images: Tensor) -> Tensor:
    """Images in [0, 1] -> uint8.

    Raises:
        NotFiniteError: a value is not finite; it would become black or white.
    """
    if not images.isfinite().all():
        raise NotFiniteError(
            "the images are not finite: the schedule overflows, or the number format does"
        )
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
