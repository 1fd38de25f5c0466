"""LTX-2: the pictures and the sound of a video on one flow, under Gemma.

The state is the latents of both, flat and one behind the other: they share their levels, and a step
combines numbers of one place. Each attends to the other, so one call of the network is for both. Of
the result the pictures are decoded, and the sound is dropped.

Guidance is classifier-free, one w for both: the stock pipeline's where `audio_guidance_scale` is
None. By default that adds a perturbed pass, one with pictures and sound apart, and a rescaling of
x0 (`support.scales.ALONE` takes them out of a call); a schedule has no words for these, and a
guided step no passes.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.errors import UserError
from stepsampler.models.family.video.ltx import LTX, tokens
from stepsampler.support.sizes import Size

FRAMES = 121  # of the stock pipeline where nothing predicts them


class LTX2(LTX):
    pipelines = ("LTX2Pipeline",)
    family = "ltx2"

    def __init__(self, pipeline: Any, size: Size | None = None, frames: int | None = None) -> None:
        super().__init__(pipeline, size, FRAMES if frames is None else frames)
        vae, config = pipeline.audio_vae, pipeline.audio_vae.config
        for key in ("sample_rate", "mel_hop_length"):
            if not config[key] > 0:
                raise UserError(f"audio_vae: {key} must be above 0, got {config[key]}")
        a_second = config.sample_rate / config.mel_hop_length / vae.temporal_compression_ratio
        self._pictures = self.shape
        self._sound = (
            config.latent_channels,
            round(self.frames / self._rate * a_second),  # type: ignore[operator]
            config.mel_bins // vae.mel_compression_ratio,
        )
        self.shape = (prod(self._pictures) + prod(self._sound),)

    @property
    def height(self) -> int:
        return self._pictures[-2] * self._factor

    @property
    def width(self) -> int:
        return self._pictures[-1] * self._factor

    @property
    def way(self) -> str:
        """The sizes: of a flat state they are not in its shape."""
        return f" {self.size} {self.frames}"

    def _read(self, prompt: str) -> str:
        return prompt.strip()

    def _encode(self, prompt: str, negative: bool) -> Condition:
        states, mask, _, _ = self.pipeline.encode_prompt(
            [prompt], do_classifier_free_guidance=False, device=self.device
        )
        side = self.pipeline.tokenizer.padding_side
        # the mask that it gives has no zeros: learned numbers stand in the place of padding
        pictures, sound, _ = self.pipeline.connectors(states, mask, padding_side=side)
        return {"encoder_hidden_states": pictures, "audio_encoder_hidden_states": sound}

    def _parted(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (n, channels, frames, height, width), sound (n, channels, length, bins)."""
        first = prod(self._pictures)
        return x[:, :first].reshape(-1, *self._pictures), x[:, first:].reshape(-1, *self._sound)

    def as_stock(self, noise: Tensor) -> Mapping[str, Tensor]:
        """That normalises the sound that it is given, be it noise."""
        (pictures, sound), vae = self._parted(noise), self.pipeline.audio_vae
        mean, std = vae.latents_mean.to(noise), vae.latents_std.to(noise)
        return {"latents": tokens(pictures), "audio_latents": _heard(sound) * std + mean}

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        pictures, sound = self._parted(x)
        frames, height, width = pictures.shape[2:]
        seen, heard = self.net(
            tokens(pictures),
            _heard(sound),
            timestep=at,
            sigma=at,
            num_frames=frames,
            height=height,
            width=width,
            fps=self._rate,
            audio_num_frames=sound.shape[2],
            return_dict=False,
            **condition,
        )
        heard = heard.unflatten(2, sound.shape[1::2]).transpose(1, 2)
        return torch.cat([seen.transpose(1, 2).flatten(1), heard.flatten(1)], 1)

    def _decoded(self, latents: Tensor) -> Tensor:
        return super()._decoded(self._parted(latents)[0])


def _heard(sound: Tensor) -> Tensor:
    """A token for each moment."""
    return sound.transpose(1, 2).flatten(2)
