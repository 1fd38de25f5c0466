"""Kolors: the network and the conditions of SDXL, under ChatGLM in the place of two CLIPs."""

from stepsampler.denoiser import Condition
from stepsampler.models.family.diffusion.sdxl import StableDiffusionXL


class Kolors(StableDiffusionXL):
    pipelines = ("KolorsPipeline",)
    family = "kolors"
    clip_layer = None  # type: ignore[assignment]  # there is no CLIP
    chunked = False

    def _encode(self, prompt: str, negative: bool) -> Condition:
        states, _, pooled, _ = self.pipeline.encode_prompt(
            [prompt], device=self.device, do_classifier_free_guidance=False
        )
        return self._condition(states, pooled)
