"""PixArt-alpha and -sigma: a transformer under T5, with a learned variance that sampling drops."""

import torch
from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.models.base import LatentModel


class PixArt(LatentModel):
    pipelines = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    family = "pixart"

    def _read(self, prompt: str) -> str:
        return str(self.pipeline._text_preprocessing(prompt, clean_caption=True)[0])

    def _encode(self, prompt: str, negative: bool) -> Condition:
        states, mask, _, _ = self.pipeline.encode_prompt(
            [prompt],
            do_classifier_free_guidance=False,
            device=self.device,
            clean_caption=True,  # as the stock pipeline, where bs4 and ftfy are installed
        )
        condition = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
        if self.net.use_additional_conditions:
            told = {
                "resolution": [self.height, self.width],
                "aspect_ratio": [self.height / self.width],
            }
            for name, values in told.items():
                condition[name] = torch.tensor([values], dtype=self.dtype, device=self.device)
        return condition

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        output = self.net(
            x,
            encoder_hidden_states=condition["encoder_hidden_states"],
            encoder_attention_mask=condition["encoder_attention_mask"],
            timestep=at,
            added_cond_kwargs={k: condition.get(k) for k in ("resolution", "aspect_ratio")},
            return_dict=False,
        )
        return output[0]  # type: ignore[no-any-return]
