"""Stable Diffusion 1.x and 2.x: epsilon and v."""

from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.models.base import LatentModel


class StableDiffusion(LatentModel):
    pipelines = ("StableDiffusionPipeline",)
    family = "stable-diffusion"
    channels_last = True

    def _encode(self, prompt: str, negative: bool) -> Condition:
        embeddings, _ = self.pipeline.encode_prompt([prompt], self.device, 1, False)
        return {"encoder_hidden_states": embeddings}

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        return self.net(x, at, return_dict=False, **condition)[0]  # type: ignore[no-any-return]
