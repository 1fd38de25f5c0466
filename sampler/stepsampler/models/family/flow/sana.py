"""Sana: a flow on the latents of AutoencoderDC, under Gemma."""

from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.models.base import LatentModel
from stepsampler.models.texts import Limit
from stepsampler.support.sizes import Size


class Sana(LatentModel):
    pipelines = ("SanaPipeline",)
    family = "sana"
    patch = 1

    def __init__(self, pipeline: Any, size: Size | None = None) -> None:
        super().__init__(pipeline, size)
        defaults = signature(type(pipeline).__call__).parameters
        self._instruction = defaults["complex_human_instruction"].default

    def _read(self, prompt: str) -> str:
        return str(self.pipeline._text_preprocessing(prompt)[0])

    def _limits(self, negative: bool) -> list[Limit]:
        """The instruction has room of its own, less the tokens at its ends."""
        (limit,) = super()._limits(negative)
        before = "" if negative else "\n".join(self._instruction or [])
        room = limit.count([before])[0] - 2 if before else 0

        def count(texts: Sequence[str]) -> list[int]:
            return [n - room for n in limit.count([before + text for text in texts])]

        return [replace(limit, count=count)]

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
