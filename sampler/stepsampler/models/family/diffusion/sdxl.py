"""Stable Diffusion XL: two text encoders, and the image's size as a condition."""

from typing import Any

import torch
from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.models.base import LatentModel
from stepsampler.models.conditions import embedded_scale
from stepsampler.models.texts import clip_states
from stepsampler.support.sizes import Size


class StableDiffusionXL(LatentModel):
    pipelines = ("StableDiffusionXLPipeline",)
    family = "sdxl"
    channels_last = True
    patch = 1
    clip_layer = 2
    chunked = True

    def __init__(self, pipeline: Any, size: Size | None = None) -> None:
        super().__init__(pipeline, size)
        vae = pipeline.vae
        if vae.dtype == torch.float16 and vae.config.force_upcast:  # it overflows
            vae.to(dtype=torch.float32)

    def _encode(self, prompt: str, negative: bool) -> Condition:
        """An empty negative prompt is what the stock pipeline takes without one.

        That is zeros where its config says `force_zeros_for_empty_prompt`.
        """
        absent = negative and not prompt
        if self.reading.chosen and not absent:
            states, pooled = clip_states(self, prompt, negative)
            return self._condition(states, pooled)
        states, without, pooled, pooled_without = self.pipeline.encode_prompt(
            [prompt], device=self.device, do_classifier_free_guidance=absent
        )
        return self._condition(without if absent else states, pooled_without if absent else pooled)

    def _condition(self, states: Tensor, pooled: Tensor) -> Condition:
        # original size, crop, target size: a whole image of the size that is made
        sides = self.height, self.width
        times = torch.tensor([[*sides, 0, 0, *sides]], dtype=self.dtype)
        return {
            "encoder_hidden_states": states,
            "text_embeds": pooled,
            "time_ids": times.to(self.device),
        }

    def _spread(self, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Playground v2.5's VAE says mean and deviation of its latents, a channel each."""
        config = self.pipeline.vae.config
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        if mean is None or deviation is None:
            return 1.0, 0.0
        mean, deviation = (latents.new_tensor(v)[:, None, None] for v in (mean, deviation))
        return deviation, mean * config.scaling_factor

    def _latents(self, pixels: Tensor, noise: Tensor) -> Tensor:
        found = super()._latents(pixels, noise)
        scale, offset = self._spread(found)
        return (found - offset) / scale

    def _decoded(self, latents: Tensor) -> Tensor:
        scale, offset = self._spread(latents)
        latents = latents * scale + offset
        return super()._decoded(latents)

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        added = {name: condition[name] for name in ("text_embeds", "time_ids")}
        states = condition["encoder_hidden_states"]
        scale = embedded_scale(self.pipeline, self.net, condition).get("timestep_cond")
        output = self.net(
            x, at, states, timestep_cond=scale, added_cond_kwargs=added, return_dict=False
        )
        return output[0]  # type: ignore[no-any-return]
