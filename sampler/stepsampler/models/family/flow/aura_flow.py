"""AuraFlow: a flow under UMT5, whose network has places for images of one largest size."""

from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.models.base import LatentModel


class AuraFlow(LatentModel):
    pipelines = ("AuraFlowPipeline",)
    family = "aura-flow"

    @property
    def _most(self) -> int:
        """There are as many places as a square of that side has patches."""
        return int(self.net.config.pos_embed_max_size**0.5) * int(self.net.config.patch_size)

    def _encode(self, prompt: str, negative: bool) -> Condition:
        """States of padding are zeros, and are seen."""
        states, *_ = self.pipeline.encode_prompt(
            [prompt], do_classifier_free_guidance=False, device=self.device
        )
        return {"encoder_hidden_states": states}

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        output = self.net(x, timestep=(at / 1000).to(x.dtype), return_dict=False, **condition)
        return output[0]  # type: ignore[no-any-return]
