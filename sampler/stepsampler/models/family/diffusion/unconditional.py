"""Unconditional U-Nets on pixels. A scheduler's clipping of x0 is no part of a schedule here."""

from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.errors import UserError
from stepsampler.models.base import LatentModel
from stepsampler.models.pixels import to_pixels


class Unconditional(LatentModel):
    pipelines = ("DDPMPipeline", "DDIMPipeline")
    family = "unconditional"
    channels_last = True
    conditional = False

    @property
    def _multiple(self) -> int:
        return int(2 ** (len(self.net.config.block_out_channels) - 1))

    def _encode(self, prompt: str, negative: bool) -> Condition:
        if prompt:
            raise UserError(f"the model is unconditional and takes no prompt, got {prompt!r}")
        return {}

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        return self.net(x, at, return_dict=False)[0]  # type: ignore[no-any-return]

    def _latents(self, pixels: Tensor, noise: Tensor) -> Tensor:
        if self.shape[0] == 1:
            return pixels.mean(1, keepdim=True)
        return pixels

    def decode(self, latents: Tensor) -> Tensor:
        self.pipeline.maybe_free_model_hooks()
        return to_pixels(latents)
