"""Krea 2: a flow on packed latents under several layers of Qwen3-VL, with the VAE of Qwen-Image.

The stock pipeline's `guidance_scale` is w - 1 of ours, as that of Z-Image. It pads all texts to one
length and hides the padding, which here is not made at all. Where `is_distilled` is set, the shift
is the same for all sizes.
"""

from dataclasses import replace
from math import exp
from typing import Any

import torch
from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.errors import UserError
from stepsampler.models.family.flow.qwen_image import decoded_frame
from stepsampler.models.packing import PackedModel, pack, places, unpack
from stepsampler.models.texts import Limit
from stepsampler.noise import FlowSchedule
from stepsampler.support.sizes import Size


class Krea2(PackedModel):
    pipelines = ("Krea2Pipeline",)
    family = "krea2"
    mask = "encoder_attention_mask"

    def __init__(self, pipeline: Any, size: Size | None = None) -> None:
        if pipeline.config.patch_size != 2:
            raise UserError(
                f"patch_size of the pipeline must be 2, got {pipeline.config.patch_size}"
            )
        super().__init__(pipeline, size)

    def _trained_shape(self) -> tuple[int, int, int]:
        side = 1024 // self._factor  # the pipeline's default
        return self.net.config.in_channels // 4, side, side

    def _read_scheduler(self, config: Any) -> None:
        super()._read_scheduler(config)
        if config.get("use_dynamic_shifting") and self.pipeline.config.is_distilled:
            self.noise = FlowSchedule(exp(1.15))

    def _read(self, prompt: str) -> str:
        return str(self.pipeline.prompt_template_encode_prefix + prompt)

    def _limits(self, negative: bool) -> list[Limit]:
        """The template's beginning has room of its own; its end takes some of the prompt's."""
        room = self.pipeline.prompt_template_encode_start_idx
        room -= self.pipeline.prompt_template_encode_num_suffix_tokens
        return [replace(limit, tokens=limit.tokens + room) for limit in super()._limits(negative)]

    def _encode(self, prompt: str, negative: bool) -> Condition:
        states, mask = self.pipeline.encode_prompt([prompt], device=self.device)
        states = states[:, mask[0]]
        every = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return {"encoder_hidden_states": states, "encoder_attention_mask": every}

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        images = places(x).float()
        texts = images.new_zeros(condition["encoder_hidden_states"].shape[1], 3)
        output = self.net(
            pack(x),
            timestep=at / 1000,
            position_ids=torch.cat([texts, images]),
            return_dict=False,
            **condition,
        )[0]
        return unpack(output, x)

    def _decoded(self, latents: Tensor) -> Tensor:
        return decoded_frame(self.pipeline.vae, latents)
