"""FLUX.1: a flow on packed latents. In dev the guidance scale is an input of the network.

schnell has no such input: there guidance is classifier-free, with a second pass under the negative
prompt (`true_cfg_scale` of the stock pipeline).
"""

from typing import Any

import torch
from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.models.base import LatentModel


class Flux(LatentModel):
    pipelines = ("FluxPipeline",)
    family = "flux"

    def __init__(self, pipeline: Any, size: int | None = None) -> None:
        super().__init__(pipeline, size)
        if self.net.config.guidance_embeds:
            self.guidance = "distilled"

    def _trained_shape(self) -> tuple[int, int]:
        return self.net.config.in_channels // 4, self.pipeline.default_sample_size

    @property
    def _tokens(self) -> int:
        return (self.shape[1] // 2) * (self.shape[2] // 2)

    def _encode(self, prompt: str, negative: bool) -> Condition:
        states, pooled, _ = self.pipeline.encode_prompt([prompt], device=self.device)
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        height, width = (side // 2 for side in x.shape[2:])
        rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
        places = torch.cartesian_prod(rows, columns)
        places = torch.cat([torch.zeros_like(places[:, :1]), places], dim=1)
        texts = places.new_zeros(condition["encoder_hidden_states"].shape[1], 3)
        output = self.net(
            pack(x),
            timestep=at / 1000,
            img_ids=places.to(x.dtype),
            txt_ids=texts.to(x.dtype),
            return_dict=False,
            **condition,
        )[0]
        return unpack(output, height, width)


def pack(latents: Tensor) -> Tensor:
    """(n, channels, 2 h, 2 w) -> (n, h w, 4 channels): each token is a square of four entries."""
    n, channels, height, width = latents.shape
    squares = latents.reshape(n, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`, with h and w."""
    n, _, channels = tokens.shape
    squares = tokens.reshape(n, height, width, channels // 4, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(n, channels // 4, 2 * height, 2 * width)
