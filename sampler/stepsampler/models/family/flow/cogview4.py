"""CogView 4: a flow under GLM, whose network is told the time from which a level was shifted.

The stock pipeline cuts these times to whole numbers. It pads the texts of a batch to the longest,
with tokens that are seen; here each text is as long as it is by itself.
"""

from math import sqrt
from typing import Any

import torch
from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.models.base import LatentModel
from stepsampler.noise import FlowSchedule


class CogView4(LatentModel):
    pipelines = ("CogView4Pipeline",)
    family = "cogview4"
    pads = True

    def _read_scheduler(self, config: Any) -> None:
        """Of a dynamic shift: linear in the root of the number of tokens."""
        super()._read_scheduler(config)
        if config.get("use_dynamic_shifting"):
            root = sqrt(self._tokens / config.get("base_image_seq_len", 256))
            shift = root * config.get("max_shift", 0.75) + config.get("base_shift", 0.25)
            self.noise = FlowSchedule(shift)

    def _encode(self, prompt: str, negative: bool) -> Condition:
        states, _ = self.pipeline.encode_prompt([prompt], None, False, device=self.device)
        size = torch.tensor([[self.height, self.width]], dtype=self.dtype, device=self.device)
        return {
            "encoder_hidden_states": states,
            "target_size": size,
            "lengths": torch.tensor([states.shape[1]]),  # on the CPU, where rows are chosen
        }

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        """A call for each length of the texts: the network has no mask that hides padding."""
        assert isinstance(self.noise, FlowSchedule)
        told = self.noise.timestep(float(at[0]) / 1000) * torch.ones_like(at)
        lengths, output = condition["lengths"].tolist(), torch.empty_like(x)
        for length in sorted(set(lengths)):
            rows = [k for k, n in enumerate(lengths) if n == length]
            size = condition["target_size"][rows]
            output[rows] = self.net(
                x[rows],
                condition["encoder_hidden_states"][rows, :length],
                timestep=told[rows],
                original_size=size,
                target_size=size,
                crop_coords=torch.zeros_like(size),
                return_dict=False,
            )[0]
        return output
