"""Stable Diffusion 1.x and 2.x: epsilon and v."""

from typing import Any

import torch
from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.models.base import LatentModel


class StableDiffusion(LatentModel):
    pipelines = ("StableDiffusionPipeline",)
    family = "stable-diffusion"

    def __init__(self, pipeline: Any, size: int | None = None) -> None:
        super().__init__(pipeline, size)
        self.net.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)

    def _encode(self, prompt: str, negative: bool) -> Condition:
        embeddings, _ = self.pipeline.encode_prompt([prompt], self.device, 1, False)
        return {"encoder_hidden_states": embeddings}

    def network(self, x: Tensor, time: float, condition: Condition) -> Tensor:
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        at = torch.full((len(x),), time, device=self.device)
        output = self.net(x, at, return_dict=False, **condition)[0]
        return output.float()  # type: ignore[no-any-return]
