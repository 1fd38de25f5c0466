"""Qwen-Image: a flow on packed latents under Qwen2.5-VL, where guidance is a direction.

The stock pipeline's `true_cfg_scale` is w, and needs a negative prompt, be it an empty one. What
comes of guidance is rescaled, token by token, to the length of the prediction under the prompt.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stepsampler.denoiser import Condition, direction
from stepsampler.models.packing import PackedModel, pack, unpack
from stepsampler.models.texts import Limit, up_to


class QwenImage(PackedModel):
    pipelines = ("QwenImagePipeline",)
    family = "qwen-image"
    mask = "encoder_hidden_states_mask"

    def _read(self, prompt: str) -> str:
        return up_to(prompt, self.pipeline.prompt_template_encode.format(prompt))

    def _limits(self, negative: bool) -> list[Limit]:
        """The template's beginning has room of its own, and is dropped."""
        room = self.pipeline.prompt_template_encode_start_idx
        return [replace(limit, tokens=limit.tokens + room) for limit in super()._limits(negative)]

    def _encode(self, prompt: str, negative: bool) -> Condition:
        states, _ = self.pipeline.encode_prompt([prompt], device=self.device)
        every = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return {"encoder_hidden_states": states, "encoder_hidden_states_mask": every}

    @staticmethod
    def rule(uncond: Tensor, cond: Tensor, w: float) -> Tensor:
        return direction(uncond, cond, w)

    def combine(self, uncond: Tensor, cond: Tensor, w: float) -> Tensor:
        """The lengths are of tokens."""
        return unpack(super().combine(pack(uncond), pack(cond), w), cond)

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        height, width = (side // 2 for side in x.shape[2:])
        output = self.net(
            pack(x),
            timestep=at / 1000,
            img_shapes=[[(1, height, width)]] * len(x),
            return_dict=False,
            **condition,
        )[0]
        return unpack(output, x)

    def _decoded(self, latents: Tensor) -> Tensor:
        return decoded_frame(self.pipeline.vae, latents)


def decoded_frame(vae: Any, latents: Tensor) -> Tensor:
    """What a VAE of videos makes of an image's latents (n, channels, height, width), in [-1, 1]."""
    return decoded_frames(vae, latents.unsqueeze(2))[:, :, 0]


def decoded_frames(vae: Any, latents: Tensor) -> Tensor:
    """The same of latents (n, channels, frames, height, width): a mean and deviation a channel."""
    from diffusers.utils.torch_utils import get_module_execution_device

    mean, std = (
        torch.tensor(values, device=latents.device)[:, None, None, None]
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    plain = (latents * std + mean).to(vae.dtype).to(get_module_execution_device(vae))
    return vae.decode(plain, return_dict=False)[0]  # type: ignore[no-any-return]
