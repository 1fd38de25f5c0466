"""What sampling needs of a model: prompts to conditions, a denoiser, latents to images."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from stepsampler.denoiser import Condition, GuidedDenoiser
from stepsampler.errors import UserError
from stepsampler.noise import Noise, NoiseSchedule
from stepsampler.schedule import FreeU, ModelSpec, Schedule

KEPT = 256  # encoded prompts


class LatentModel(ABC):
    """A diffusers pipeline, taken apart into the few calls that sampling needs.

    A family names the pipeline classes that it samples and fills in `_encode`, `network` and, where
    images are no plain AutoencoderKL latents, `decode`.

    `shape` is that of one latent, (channels, height, width); `net` the U-Net or transformer.
    """

    pipelines: ClassVar[tuple[str, ...]] = ()
    family: ClassVar[str]
    guidance: str = "classifier-free"

    pipeline: Any
    net: Any
    noise: Noise
    prediction_type: str
    shape: tuple[int, int, int]

    def __init__(self, pipeline: Any, size: int | None = None) -> None:
        self.pipeline = pipeline
        self.net = getattr(pipeline, "unet", None) or pipeline.transformer
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
        self._read_scheduler(pipeline.scheduler.config)
        self.shape = self._latent_shape(size)
        self._encoded: OrderedDict[tuple[str, bool], Condition] = OrderedDict()

    def _read_scheduler(self, config: Any) -> None:
        self.noise = NoiseSchedule.from_scheduler_config(config)
        self.prediction_type = config.get("prediction_type", "epsilon")

    def _latent_shape(self, size: int | None) -> tuple[int, int, int]:
        """Of images of `size` pixels; by default those the model was trained on."""
        factor = self.pipeline.vae_scale_factor
        size = size or self.net.config.sample_size * factor
        if size % (2 * factor) or size < 2 * factor:
            raise UserError(f"size must be a multiple of {2 * factor} pixels, got {size}")
        return (self.net.config.in_channels, size // factor, size // factor)

    @property
    def device(self) -> torch.device:
        return self.net.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        return self.net.dtype  # type: ignore[no-any-return]

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
        if schedule.flow != (self.prediction_type == "flow_prediction"):
            raise UserError(
                "the model is a flow model; a schedule for it must name one in its `model`"
            )
        if schedule.guidance != self.guidance:
            raise UserError(
                f"the schedule's guidance is {schedule.guidance}, but the model's is "
                f"{self.guidance}: their scales mean different things"
            )
        self.noise.check_range(schedule)
        if any(step.free_u for step in schedule.steps) and not hasattr(self.net, "enable_freeu"):
            raise UserError("the schedule uses Free-U, which only U-Nets with skips have")

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str], negative: bool = False) -> Condition:
        """Conditions of shape (len(prompts), ...) by name.

        Each prompt is encoded alone, and once as long as it is among the last ones: so that its
        embedding is the same bit for bit whatever it is batched with.
        """
        rows = []
        for prompt in prompts:
            key = (prompt, negative)
            if key not in self._encoded:
                self._encoded[key] = self._encode(prompt, negative)
            self._encoded.move_to_end(key)
            rows.append(self._encoded[key])
        while len(self._encoded) > KEPT:
            self._encoded.popitem(last=False)
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    @abstractmethod
    def _encode(self, prompt: str, negative: bool) -> Condition:
        """The condition of one prompt; each tensor of shape (1, ...)."""

    @abstractmethod
    def network(self, x: Tensor, time: float, condition: Condition) -> Tensor:
        """One call of `net`, in its dtype; the result in float32, of the shape of `x`."""

    def denoiser(self, cond: Condition, uncond: Condition | None) -> GuidedDenoiser:
        """The network under conditions from `encode`."""
        return GuidedDenoiser(
            self.network,
            self.noise,
            self.prediction_type,
            cond,
            uncond,
            self.guidance == "distilled",
            self._free_u if hasattr(self.net, "enable_freeu") else None,
        )

    @contextmanager
    def _free_u(self, values: FreeU) -> Iterator[None]:
        self.net.enable_freeu(values.s1, values.s2, values.b1, values.b2)
        try:
            yield
        finally:
            self.net.disable_freeu()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents of shape (n, *shape) -> images, uint8 of shape (n, 3, height, width)."""
        vae = self.pipeline.vae
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        scaled = (latents / vae.config.scaling_factor + shift).to(vae.dtype)
        return to_pixels(vae.decode(scaled, return_dict=False)[0])


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8."""
    return ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
