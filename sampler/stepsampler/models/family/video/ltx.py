"""LTX-Video: a flow on the tokens of a video's latents, under T5, with places in seconds.

The stock pipeline's `guidance_scale` is w. Its shift depends on the number of tokens, so on size
and frames. A VAE that is told a time is told 0, that pipeline's default.
"""

from collections.abc import Mapping
from inspect import signature
from math import lcm
from typing import Any

import torch
from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.errors import UserError
from stepsampler.models.base import LatentModel
from stepsampler.support.sizes import Size

SIDE = 32  # pixels of which the stock pipeline takes multiples


class LTX(LatentModel):
    pipelines = ("LTXPipeline",)
    family = "ltx"
    videos = True

    def __init__(self, pipeline: Any, size: Size | None = None, frames: int | None = None) -> None:
        self._default = signature(type(pipeline).__call__).parameters
        every = int(pipeline.vae_temporal_compression_ratio)
        frames = self._default["num_frames"].default if frames is None else frames
        if frames % every != 1 % every:
            below = (frames - 1) // every * every + 1
            raise UserError(
                f"frames must be 1 more than a multiple of {every}, got {frames}: the nearest "
                f"are {below} and {below + every}"
            )
        self._depth = (frames - 1) // every + 1
        super().__init__(pipeline, size)
        self.frames = frames
        channels, height, width = self.shape
        self.shape = (channels, self._depth, height, width)

    @property
    def _factor(self) -> int:
        return int(self.pipeline.vae_spatial_compression_ratio)

    @property
    def _multiple(self) -> int:
        return lcm(SIDE, self._factor)

    def _trained_shape(self) -> tuple[int, int, int]:
        """That of the stock pipeline's default."""
        sides = (self._default[name].default // self._factor for name in ("height", "width"))
        return (self.net.config.in_channels, *sides)

    @property
    def _tokens(self) -> int:
        return self._depth * self.shape[-2] * self.shape[-1]

    def _encode(self, prompt: str, negative: bool) -> Condition:
        states, mask, _, _ = self.pipeline.encode_prompt(
            [prompt], do_classifier_free_guidance=False, device=self.device
        )
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    @property
    def _rate(self) -> float:
        """Frames a second."""
        return float(self._default["frame_rate"].default)

    def as_stock(self, noise: Tensor) -> Mapping[str, Tensor]:
        return {"latents": tokens(noise)}

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        frames, height, width = x.shape[2:]
        seconds = self.pipeline.vae_temporal_compression_ratio / self._rate
        output = self.net(
            tokens(x),
            timestep=at,
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(seconds, self._factor, self._factor),
            return_dict=False,
            **condition,
        )[0]
        return output.transpose(1, 2).unflatten(2, (frames, height, width))  # type: ignore[no-any-return]

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents).movedim(1, 2)

    def _decoded(self, latents: Tensor) -> Tensor:
        from diffusers.utils.torch_utils import get_module_execution_device

        vae = self.pipeline.vae
        mean, std = (
            values.to(latents)[:, None, None, None]
            for values in (vae.latents_mean, vae.latents_std)
        )
        plain = (latents * std / vae.config.scaling_factor + mean).to(vae.dtype)
        plain = plain.to(get_module_execution_device(vae))
        told = torch.zeros_like(plain[:, 0, 0, 0, 0]) if vae.config.timestep_conditioning else None
        return vae.decode(plain, told, return_dict=False)[0]  # type: ignore[no-any-return]


def tokens(latents: Tensor) -> Tensor:
    """Latents (n, channels, frames, height, width) as (n, places, channels)."""
    return latents.flatten(2).transpose(1, 2)
