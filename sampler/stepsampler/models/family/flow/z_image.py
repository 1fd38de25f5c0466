"""Z-Image and Z-Image-Turbo: a flow that runs from 0, noise, to 1, under Qwen3.

The stock pipeline's `guidance_scale` is w - 1 of ours: it combines cond + (w - 1) (cond - uncond),
so that 0 is none there and 1 costs two passes. Its `cfg_truncation` is a schedule with w = 1 from
some step on; `cfg_normalization`, off by default, has no counterpart here.
"""

import torch
from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.models.base import LatentModel
from stepsampler.models.texts import chat


class ZImage(LatentModel):
    pipelines = ("ZImagePipeline",)
    family = "z-image"
    pads = True

    def _trained_shape(self) -> tuple[int, int, int]:
        side = 1024 // self._factor  # the stock pipeline's default
        return self.net.config.in_channels, side, side

    @property
    def _most(self) -> int:
        return 2 * int(min(self.net.config.axes_lens[1:]))

    @property
    def _tokens(self) -> int:
        return (self.shape[1] // 2) * (self.shape[2] // 2)

    def _read(self, prompt: str) -> str:
        return chat(self.pipeline.tokenizer, prompt)

    def _encode(self, prompt: str, negative: bool) -> Condition:
        """Texts without padding; their lengths stay on the CPU, where lists are cut to them."""
        (states,), _ = self.pipeline.encode_prompt(
            [prompt], device=self.device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": states[None], "lengths": torch.tensor([len(states)])}

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        lengths = condition["lengths"].tolist()
        states = condition["encoder_hidden_states"]
        texts = [row[:length] for row, length in zip(states, lengths, strict=True)]
        images = list(x.unsqueeze(2).unbind())
        output = self.net(images, 1 - at / 1000, texts, return_dict=False)[0]
        return -torch.stack(output).squeeze(2)
