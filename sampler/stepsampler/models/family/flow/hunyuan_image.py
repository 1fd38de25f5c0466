"""HunyuanImage 2.1: a flow under Qwen2.5-VL, and under ByT5 for what a prompt has in quotes.

The stock pipeline's guidance is a component, its `guider`. The usual one, for adaptive projected
guidance, guides with w as we do in its first six steps (`adaptive_projected_guidance_start_step`);
from then on it projects a running sum of the differences of all steps, with a scale of its own.
That is no function of two predictions: here all steps are guided as the first ones.

In a distilled one w is an input of the network, times 1000. One that is told where a step ends as
well (`use_meanflow`) is left to its pipeline.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.models.base import LatentModel
from stepsampler.models.texts import Limit


class HunyuanImage(LatentModel):
    pipelines = ("HunyuanImagePipeline",)
    family = "hunyuan-image"
    patch = 1
    pads = True

    @classmethod
    def samples(cls, pipeline: Any) -> bool:
        return not pipeline.transformer.config.use_meanflow

    def _trained_shape(self) -> tuple[int, int, int]:
        side = self.pipeline.default_sample_size
        return self.net.config.in_channels, side, side

    @property
    def _tokens(self) -> int:
        return self.shape[1] * self.shape[2]

    def _limits(self, negative: bool) -> list[Limit]:
        """The template's beginning has room of its own; ByT5 gets what stands in quotes."""
        from diffusers.pipelines.hunyuan_image.pipeline_hunyuanimage import extract_glyph_text

        pipeline = self.pipeline
        template = pipeline.prompt_template_encode.partition("{}")[0]

        def ids(
            tokenizer: Any, write: Callable[[str], str]
        ) -> Callable[[Sequence[str]], list[int]]:
            return lambda texts: [
                len(tokenizer(write(text), verbose=False)["input_ids"]) for text in texts
            ]

        room = pipeline.tokenizer_max_length + pipeline.prompt_template_encode_start_idx
        glyphs = ids(
            pipeline.tokenizer_2, lambda text: (extract_glyph_text(text) or "").removesuffix('". ')
        )
        return [
            Limit("QWEN2.5", room, ids(pipeline.tokenizer, lambda text: template + text)),
            Limit("BYT5", pipeline.tokenizer_2_max_length, glyphs),
        ]

    def _encode(self, prompt: str, negative: bool) -> Condition:
        """Without the padding of the stock pipeline, which its masks hide."""
        states, mask, glyphs, glyph_mask = self.pipeline.encode_prompt([prompt], self.device)
        mask, glyph_mask = mask.bool(), glyph_mask.bool()
        return {
            "encoder_hidden_states": states[mask][None],
            "encoder_attention_mask": mask[mask][None],
            "encoder_hidden_states_2": glyphs[glyph_mask][None],
            "encoder_attention_mask_2": glyph_mask[glyph_mask][None],
        }

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        told = dict(condition)
        if "guidance" in told:
            told["guidance"] = 1000 * told["guidance"].to(x.dtype)
        output = self.net(x, timestep=at.to(x.dtype), return_dict=False, **told)
        return output[0]  # type: ignore[no-any-return]
