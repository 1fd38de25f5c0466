"""Lumina 2: a flow that runs from 0, noise, to 1, under Gemma, with guidance rescaled by rows.

The stock pipeline's `guidance_scale` is w. With `cfg_normalization`, its default, what comes of
guidance is rescaled to the length of the prediction under the prompt: row of a channel by row.
`cfg_trunc_ratio` is a schedule with w = 1 in the last steps.
"""

from dataclasses import replace

from torch import Tensor

from stepsampler.denoiser import Condition, direction
from stepsampler.models.base import LatentModel
from stepsampler.models.texts import Limit


class Lumina2(LatentModel):
    pipelines = ("Lumina2Pipeline",)
    family = "lumina2"

    @property
    def _most(self) -> int:
        return 2 * int(min(self.net.config.axes_lens[1:]))

    @property
    def _tokens(self) -> int:
        return self.shape[0]  # the stock pipeline takes the channels for them

    def _limits(self, negative: bool) -> list[Limit]:
        (limit,) = super()._limits(negative)
        before = "" if negative else f"{self.pipeline.system_prompt} <Prompt Start> "
        return [replace(limit, count=lambda texts: limit.count([before + text for text in texts]))]

    def _encode(self, prompt: str, negative: bool) -> Condition:
        """The stock pipeline puts an instruction before prompts, not before negative ones."""
        if negative:
            states, mask = self.pipeline._get_gemma_prompt_embeds([prompt], self.device)
        else:
            states, mask, _, _ = self.pipeline.encode_prompt(
                [prompt], do_classifier_free_guidance=False, device=self.device
            )
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    @staticmethod
    def rule(uncond: Tensor, cond: Tensor, w: float) -> Tensor:
        return direction(uncond, cond, w)

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        output = self.net(x, timestep=1 - at / 1000, return_dict=False, **condition)
        return -output[0]  # type: ignore[no-any-return]
