"""Sana: a flow on the latents of AutoencoderDC, under Gemma."""

from inspect import signature
from typing import Any

from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.models.base import LatentModel


class Sana(LatentModel):
    pipelines = ("SanaPipeline",)
    family = "sana"

    def __init__(self, pipeline: Any, size: int | None = None) -> None:
        super().__init__(pipeline, size)
        defaults = signature(type(pipeline).__call__).parameters
        self._instruction = defaults["complex_human_instruction"].default

    def _encode(self, prompt: str, negative: bool) -> Condition:
        """The stock pipeline puts an instruction before prompts, not before negative ones."""
        states, mask, _, _ = self.pipeline.encode_prompt(
            [prompt],
            do_classifier_free_guidance=False,
            device=self.device,
            complex_human_instruction=None if negative else self._instruction,
        )
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        at = at * self.net.config.timestep_scale
        output = self.net(x, timestep=at, return_dict=False, **condition)
        return output[0]  # type: ignore[no-any-return]
