"""Wan 2.1 and 2.2: a flow on the latents of videos, under UMT5.

Two networks of 2.2 share a video: the first takes the noisy steps, from a boundary downwards the
second does. The stock pipeline's boundary is `boundary_ratio`, a sigma; its `guidance_scale` is w,
and `guidance_scale_2` that of the second network. Where `expand_timesteps` is set (2.2, 5B) the
network is told the time of each token.
"""

from inspect import signature
from typing import Any, cast

from torch import Tensor

from stepsampler.denoiser import Condition
from stepsampler.errors import UserError
from stepsampler.models.base import LatentModel
from stepsampler.models.family.flow.qwen_image import decoded_frames
from stepsampler.models.texts import Limit, limits
from stepsampler.sample import Denoiser
from stepsampler.schedule import Step
from stepsampler.support.sizes import Size


class Wan(LatentModel):
    pipelines = ("WanPipeline",)
    family = "wan"
    optional = ("transformer", "transformer_2")
    videos = True

    def _check_parts(self, pipeline: Any) -> None:
        super()._check_parts(pipeline)
        if pipeline.transformer is None and pipeline.transformer_2 is None:
            raise UserError(f"the {type(pipeline).__name__} has no transformer")

    def __init__(self, pipeline: Any, size: Size | None = None, frames: int | None = None) -> None:
        self._default = signature(type(pipeline).__call__).parameters
        super().__init__(pipeline, size)
        every = int(pipeline.vae_scale_factor_temporal)
        self.frames = self._default["num_frames"].default if frames is None else frames
        if self.frames % every != 1 % every:
            below = (self.frames - 1) // every * every + 1
            raise UserError(
                f"frames must be 1 more than a multiple of {every}, got {self.frames}: the nearest "
                f"are {below} and {below + every}"
            )
        channels, height, width = self.shape
        self.shape = (channels, (self.frames - 1) // every + 1, height, width)
        self._acting = self.net

    @property
    def _factor(self) -> int:
        return int(self.pipeline.vae_scale_factor_spatial)

    @property
    def _multiple(self) -> int:
        return self._factor * int(self.net.config.patch_size[1])

    def _trained_shape(self) -> tuple[int, int, int]:
        """That of the stock pipeline's default."""
        sides = (self._default[name].default // self._factor for name in ("height", "width"))
        return (self.net.config.in_channels, *sides)

    def _vae_channels(self, config: Any, channels: int) -> int:
        return int(config.z_dim)

    @property
    def _tokens(self) -> int:
        """Patches of a frame: the stock schedulers' shifts do not depend on them."""
        patch = int(self.net.config.patch_size[1])
        return (self.shape[-2] // patch) * (self.shape[-1] // patch)

    def _limits(self, negative: bool) -> list[Limit]:
        return limits(self.pipeline, self._most_tokens)

    @property
    def _most_tokens(self) -> int:
        return int(self._default["max_sequence_length"].default)

    def _read(self, prompt: str) -> str:
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        return cast(str, prompt_clean(prompt))

    def _encode(self, prompt: str, negative: bool) -> Condition:
        states, _ = self.pipeline.encode_prompt(
            [prompt],
            do_classifier_free_guidance=False,
            max_sequence_length=self._most_tokens,
            device=self.device,
        )
        return {"encoder_hidden_states": states}

    def denoiser(
        self, cond: Condition, uncond: Condition | None, boundary: float | None = None
    ) -> Denoiser:
        plain = super().denoiser(cond, uncond)

        def at_step(x: Tensor, step: Step) -> Tensor:
            self._acting = self.experts.among(step, boundary)
            return plain(x, step)

        return at_step

    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        if self.pipeline.config.expand_timesteps:
            at = at[:, None].expand(-1, self.shape[1] * self._tokens)
        output = self._acting(x, timestep=at, return_dict=False, **condition)
        return output[0]  # type: ignore[no-any-return]

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents).movedim(1, 2)

    def _decoded(self, latents: Tensor) -> Tensor:
        return decoded_frames(self.pipeline.vae, latents)
