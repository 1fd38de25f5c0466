"""Chroma: FLUX.1 without its pooled text and without distilled guidance, under T5 alone.

Of the texts' padding only the first token is meant to be seen. In diffusers 0.42 the mask is of
floats, which attention adds: all of the padding is seen, and the rest a little more.
"""

import torch
from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.models.packing import PackedModel, pack, places, unpack


class Chroma(PackedModel):
    pipelines = ("ChromaPipeline",)
    family = "chroma"

    def _encode(self, prompt: str, negative: bool) -> Condition:
        states, _, mask, *_ = self.pipeline.encode_prompt(
            [prompt], device=self.device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": states, "attention_mask": mask}

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        tokens, images = pack(x), places(x).to(x.dtype)
        texts, mask = condition["encoder_hidden_states"], condition["attention_mask"]
        output = self.net(
            tokens,
            timestep=at / 1000,
            encoder_hidden_states=texts,
            img_ids=images,
            txt_ids=images.new_zeros(texts.shape[1], 3),
            attention_mask=torch.cat([mask, mask.new_ones(tokens.shape[:2])], 1),
            return_dict=False,
        )[0]
        return unpack(output, x)
