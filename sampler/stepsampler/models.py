"""A diffusers pipeline, taken apart into the few calls that sampling needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepsampler.denoiser import GuidedDenoiser
from stepsampler.errors import UserError
from stepsampler.noise import NoiseSchedule
from stepsampler.schedule import ModelSpec, Schedule

BUNDLED = ("tiny",)


def resolve(name: str) -> str:
    """Folder of a bundled model, or the name itself: a local folder or a hub id."""
    if name in BUNDLED:
        return str(files("stepsampler") / "bundled" / name)
    return name


@dataclass
class LatentModel:
    """A Stable Diffusion pipeline (1.x, 2.x: epsilon or v) as encode, denoiser, decode.

    `shape` is that of one latent, (channels, height, width).
    """

    pipeline: Any
    noise: NoiseSchedule
    prediction_type: str
    device: torch.device
    dtype: torch.dtype
    shape: tuple[int, int, int]

    family = "stable-diffusion"

    @classmethod
    def load(
        cls, name: str, device: str = "cpu", dtype: str = "float32", size: int | None = None
    ) -> "LatentModel":
        """Load "tiny", a local folder or a hub id.

        `size` is the side of the images in pixels; by default the one the model was trained on.

        Raises:
            UserError: nothing there, another kind of pipeline, a size the model cannot make,
                or a device that does not exist.
        """
        check_device(device)
        _quiet()
        from diffusers import DiffusionPipeline

        folder = resolve(name)
        if not Path(folder).is_dir() and (name.count("/") != 1 or name.startswith((".", "/"))):
            raise UserError(
                f"model {name!r}: no such folder; give a diffusers folder, a hub id "
                f"(owner/name) or one of {', '.join(BUNDLED)}"
            )
        try:
            pipeline = DiffusionPipeline.from_pretrained(
                folder, dtype=getattr(torch, dtype), safety_checker=None, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"model {name!r} cannot be loaded: {reason}") from error
        return cls.from_pipeline(pipeline, device, size)

    @classmethod
    def from_pipeline(
        cls, pipeline: Any, device: str = "cpu", size: int | None = None
    ) -> "LatentModel":
        """Take a loaded pipeline of the class StableDiffusionPipeline."""
        if type(pipeline).__name__ != "StableDiffusionPipeline":
            raise UserError(
                f"pipelines of the class {type(pipeline).__name__} are not supported; "
                "StableDiffusionPipeline is"
            )
        config = pipeline.scheduler.config
        unet = pipeline.unet
        factor = pipeline.vae_scale_factor
        size = size or unet.config.sample_size * factor
        if size % (8 * factor // 4) or size < factor:
            raise UserError(f"size must be a multiple of {8 * factor // 4} pixels, got {size}")
        pipeline.to(device)
        for part in (unet, pipeline.vae, pipeline.text_encoder):
            part.eval().requires_grad_(False)
        unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
        return cls(
            pipeline,
            NoiseSchedule.from_scheduler_config(config),
            config.get("prediction_type", "epsilon"),
            unet.device,
            unet.dtype,
            (unet.config.in_channels, size // factor, size // factor),
        )

    @property
    def spec(self) -> ModelSpec:
        return self.noise.spec(self.family, self.prediction_type)

    def check(self, schedule: Schedule) -> None:
        """Refuse a schedule that was made for another kind of model.

        Raises:
            UserError: names what differs.
        """
        difference = schedule.model and schedule.model.mismatch(self.spec)
        if difference:
            raise UserError(f"the schedule was made for {difference}")
        self.noise.check_range(schedule)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings, shape (len(prompts), tokens, width); equal prompts are encoded once."""
        unique = list(dict.fromkeys(prompts))
        embeddings, _ = self.pipeline.encode_prompt(unique, self.device, 1, False)
        place = {prompt: i for i, prompt in enumerate(unique)}
        return embeddings[[place[prompt] for prompt in prompts]]  # type: ignore[no-any-return]

    def denoiser(self, cond: Tensor, uncond: Tensor) -> GuidedDenoiser:
        """The network under text embeddings of shape (n, tokens, width)."""
        return GuidedDenoiser(self._network, self.noise, self.prediction_type, cond, uncond)

    def _network(self, x: Tensor, timestep: float, states: Tensor) -> Tensor:
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        at = torch.full((len(x),), timestep, device=self.device)
        output = self.pipeline.unet(x, at, encoder_hidden_states=states, return_dict=False)[0]
        return output.float()  # type: ignore[no-any-return]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents of shape (n, *shape) -> images, uint8 of shape (n, 3, height, width)."""
        vae = self.pipeline.vae
        scaled = (latents / vae.config.scaling_factor).to(vae.dtype)
        images = vae.decode(scaled, return_dict=False)[0].float()
        pixels: Tensor = ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels


def check_device(device: str) -> None:
    """Refuse a device that torch cannot use.

    Raises:
        UserError: names the device and the reason.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device!r} cannot be used: {reason}") from error


def _quiet() -> None:
    """No progress bars and advice of the libraries between our lines of output."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
