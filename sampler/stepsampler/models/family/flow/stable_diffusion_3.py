"""Stable Diffusion 3 and 3.5: a flow under two CLIPs and T5, which may be left out."""

from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.models.base import LatentModel


class StableDiffusion3(LatentModel):
    pipelines = ("StableDiffusion3Pipeline",)
    family = "sd3"
    clip_layer = 2
    optional = ("text_encoder_3", "tokenizer_3")  # zeros stand in for T5, as in the stock pipeline

    @property
    def _most(self) -> int | None:
        places, patch = self.net.config.pos_embed_max_size, self.net.config.patch_size
        return int(places * patch) if places else None

    def _encode(self, prompt: str, negative: bool) -> Condition:
        states, _, pooled, _ = self.pipeline.encode_prompt(
            [prompt],
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            clip_skip=None if negative else self.reading.clip_skip,
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        output = self.net(x, timestep=at, return_dict=False, **condition)
        return output[0]  # type: ignore[no-any-return]
