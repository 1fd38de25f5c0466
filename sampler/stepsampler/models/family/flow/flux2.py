"""FLUX.2: a flow on normalised latents with squares of 2 x 2 as channels, under a language model.

In dev the guidance scale is an input of the network. klein has no such input: there guidance takes
a second pass, under a text that the stock pipeline always leaves empty; that of a distilled klein
ignores its scale, which here is w like any other. Shifts depend on the number of steps.
"""

from math import exp
from typing import Any

import torch
from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.models.base import LatentModel
from stepsampler.models.texts import chat, up_to
from stepsampler.noise import FlowSchedule

STEPS = 50  # of which the coordinate of placements has the shift; the stock pipelines' default


class Flux2(LatentModel):
    pipelines = ("Flux2Pipeline", "Flux2KleinPipeline")
    family = "flux2"
    patch = 1

    @property
    def _factor(self) -> int:
        return 2 * super()._factor

    def _trained_shape(self) -> tuple[int, int, int]:
        side = self.pipeline.default_sample_size // 2
        return self.net.config.in_channels, side, side

    def _vae_channels(self, config: Any, channels: int) -> int:
        return 4 * super()._vae_channels(config, channels // 4)

    def _read_scheduler(self, config: Any) -> None:
        super()._read_scheduler(config)
        if config.get("use_dynamic_shifting"):
            slope, intercept = log_shift(self.shape[1] * self.shape[2])
            self.noise = FlowSchedule(exp(slope * STEPS + intercept), 0.0, (slope, intercept))

    def _read(self, prompt: str) -> str:
        if not hasattr(self.pipeline, "system_message"):  # klein
            return chat(self.pipeline.tokenizer, prompt)
        from diffusers.pipelines.flux2.pipeline_flux2 import format_input

        prompt = prompt.replace("[IMG]", "")  # as the stock pipeline does
        (messages,) = format_input([prompt], self.pipeline.system_message)
        text = self.pipeline.tokenizer.apply_chat_template(messages, tokenize=False)
        return up_to(prompt, text)

    def _encode(self, prompt: str, negative: bool) -> Condition:
        states, _ = self.pipeline.encode_prompt([prompt], device=self.device)
        return {"encoder_hidden_states": states}

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        height, width = x.shape[2:]
        output = self.net(
            x.flatten(2).transpose(1, 2),
            timestep=at / 1000,
            img_ids=_places(x.device, 1, height, width, 1),
            txt_ids=_places(x.device, 1, 1, 1, condition["encoder_hidden_states"].shape[1]),
            return_dict=False,
            **condition,
        )[0]
        return output.transpose(1, 2).unflatten(2, (height, width))  # type: ignore[no-any-return]

    def _decoded(self, latents: Tensor) -> Tensor:
        from diffusers.utils.torch_utils import get_module_execution_device

        vae = self.pipeline.vae
        mean, variance = (
            values.to(latents)[:, None, None]
            for values in (vae.bn.running_mean, vae.bn.running_var)
        )
        plain = latents * (variance + vae.config.batch_norm_eps).sqrt() + mean
        plain = torch.nn.functional.pixel_shuffle(plain, 2).to(vae.dtype)
        plain = plain.to(get_module_execution_device(vae))
        return vae.decode(plain, return_dict=False)[0]  # type: ignore[no-any-return]


def log_shift(tokens: int) -> tuple[float, float]:
    """Slope and intercept, in the number of steps, of the stock pipelines' mu.

    Theirs is `compute_empirical_mu`: two lines in the number of tokens, for 10 and 200 steps.
    """
    at_10, at_200 = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return 0.0, at_200
    slope = (at_200 - at_10) / 190
    return slope, at_200 - 200 * slope


def _places(device: torch.device, *sides: int) -> Tensor:
    """Of each token: time, row, column, and number in the text."""
    return torch.cartesian_prod(*(torch.arange(side, device=device) for side in sides))
