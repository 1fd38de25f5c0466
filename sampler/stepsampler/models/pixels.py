"""Images as the bytes that are saved."""

import torch
from torch import Tensor

from stepsampler.errors import NotFiniteError


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8, of three channels."""
    return quantised(_coloured(images))


def live_pixels(images: Tensor) -> Tensor:
    """The same whole numbers as floats; to a gradient the rounding is not there, the clamp is."""
    x = _coloured(images).clamp(0, 1) * 255
    return x.detach().round() + (x - x.detach())


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
