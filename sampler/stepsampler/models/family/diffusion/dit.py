"""DiT: class-conditional, with a learned variance that sampling drops."""

import torch
from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.errors import UserError
from stepsampler.models.base import LatentModel


class DiT(LatentModel):
    pipelines = ("DiTPipeline",)
    family = "dit"
    square = True  # it takes the root of the number of tokens

    @property
    def _factor(self) -> int:
        halvings = len(self.pipeline.vae.config.block_out_channels) - 1
        return int(2**halvings)

    def _encode(self, prompt: str, negative: bool) -> Condition:
        """A prompt is a class's number or one of its names; an empty one is the class «none»."""
        return {"class_labels": torch.tensor([self._class(prompt)], device=self.device)}

    def _class(self, prompt: str) -> int:
        count = int(self.net.config.num_embeds_ada_norm)
        if not prompt:
            return count
        if prompt.isdecimal() and int(prompt) < count:
            return int(prompt)
        labels = self.pipeline.labels
        if prompt not in labels:
            first = next(iter(labels), None)
            names = f" or one of {len(labels)} names such as {first!r}" if labels else ""
            raise UserError(
                f"a prompt of this model is a class, 0 to {count - 1}{names}, got {prompt!r}"
            )
        return int(labels[prompt])

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        return self.net(x, at, return_dict=False, **condition)[0]  # type: ignore[no-any-return]
