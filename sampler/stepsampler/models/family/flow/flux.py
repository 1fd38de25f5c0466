"""FLUX.1: a flow on packed latents. In dev the guidance scale is an input of the network.

schnell has no such input: there guidance is classifier-free, with a second pass under the negative
prompt (`true_cfg_scale` of the stock pipeline).
"""

from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.models.packing import PackedModel, pack, places, unpack


class Flux(PackedModel):
    pipelines = ("FluxPipeline",)
    family = "flux"

    def _encode(self, prompt: str, negative: bool) -> Condition:
        states, pooled, _ = self.pipeline.encode_prompt([prompt], device=self.device)
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        images = places(x).to(x.dtype)
        texts = images.new_zeros(condition["encoder_hidden_states"].shape[1], 3)
        output = self.net(
            pack(x),
            timestep=at / 1000,
            img_ids=images,
            txt_ids=texts,
            return_dict=False,
            **condition,
        )[0]
        return unpack(output, x)
