"""Stable Diffusion 1.x and 2.x, epsilon and v, and latent consistency models of them."""

from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.models.base import LatentModel
from stepsampler.models.conditions import embedded_scale
from stepsampler.models.texts import clip_states


class StableDiffusion(LatentModel):
    pipelines = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")
    family = "stable-diffusion"
    channels_last = True
    patch = 1
    clip_layer = 1
    chunked = True

    def _encode(self, prompt: str, negative: bool) -> Condition:
        if not self.reading.chosen:
            embeddings, _ = self.pipeline.encode_prompt([prompt], self.device, 1, False)
        else:
            embeddings, _ = clip_states(self, prompt, negative, normed=True)
        return {"encoder_hidden_states": embeddings}

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        told = embedded_scale(self.pipeline, self.net, condition)
        return self.net(x, at, return_dict=False, **told)[0]  # type: ignore[no-any-return]
