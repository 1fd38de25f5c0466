"""Hunyuan-DiT: v under Bert and T5, with a learned variance that sampling drops."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.models.base import LatentModel
from stepsampler.models.texts import Limit

TOKENS = 77, 256  # of Bert and of T5


class HunyuanDiT(LatentModel):
    pipelines = ("HunyuanDiTPipeline",)
    family = "hunyuan-dit"

    def _limits(self, negative: bool) -> list[Limit]:
        return [
            replace(limit, tokens=tokens)
            for limit, tokens in zip(super()._limits(negative), TOKENS, strict=True)
        ]

    def _encode(self, prompt: str, negative: bool) -> Condition:
        condition: dict[str, Tensor] = {}
        for index, name in enumerate(("", "_t5")):
            states, _, mask, _ = self.pipeline.encode_prompt(
                prompt,
                self.device,
                do_classifier_free_guidance=False,
                max_sequence_length=TOKENS[index],
                text_encoder_index=index,
            )
            condition |= {
                f"encoder_hidden_states{name}": states,
                f"text_embedding_mask{name}": mask,
            }
        # an original of 1024 x 1024 pixels, as by default; the size; no crop
        told = torch.tensor([[1024, 1024, self.height, self.width, 0, 0]], dtype=self.dtype)
        return {**condition, "image_meta_size": told.to(self.device)}

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        output = self.net(
            x,
            at.to(x.dtype),
            style=torch.zeros(len(x), dtype=torch.long, device=x.device),
            image_rotary_emb=self._places(x),
            return_dict=False,
            **condition,
        )
        return output[0]  # type: ignore[no-any-return]

    def _places(self, x: Tensor) -> Any:
        """Of the patches, as on a square of 512 pixels that the image's longer side fills."""
        from diffusers.models.embeddings import get_2d_rotary_pos_embed
        from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import (
            get_resize_crop_region_for_grid,
        )

        patch = self.net.config.patch_size
        grid = x.shape[2] // patch, x.shape[3] // patch
        return get_2d_rotary_pos_embed(
            self.net.inner_dim // self.net.num_heads,
            get_resize_crop_region_for_grid(grid, 512 // 8 // patch),
            grid,
            device=x.device,
            output_type="pt",
        )
