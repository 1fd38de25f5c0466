"""What a VAE makes of latents, as pixels of 8 bits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stepsampler.errors import NotFiniteError


def decode_finite(vae: Any, decode: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
    """Images of finite latents in [-1, 1]; `decode` uses the VAE.

    An image that overflows in float16 is decoded again in float32, and it alone: so that an image
    is the same whatever it is batched with.

    Raises:
        NotFiniteError: a value of the images is not finite all the same.
    """
    images = decode(latents)
    bad = ~images.isfinite().flatten(1).all(1)
    if bad.any() and vae.dtype == torch.float16:
        images = images.float()
        with torch.inference_mode(False):  # its weights stay ordinary tensors
            vae.to(torch.float32)
        images[bad] = decode(latents[bad])
        with torch.inference_mode(False):
            vae.to(torch.float16)
    if not images.isfinite().all():
        raise NotFiniteError(
            f"the images are not finite, but the latents are: the VAE ({type(vae).__name__}) "
            "overflows; give another one, or another dtype"
        )
    return images


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8, of three channels."""
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    return quantised(images.float() / 2 + 0.5)


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
