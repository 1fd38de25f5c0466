"""What sampling needs of a model: prompts to conditions, a denoiser, latents to images."""

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from stepsampler.denoiser import (
    Condition,
    FirstCalls,
    GuidedDenoiser,
    classifier_free,
    padded,
    stack,
)
from stepsampler.errors import NotFiniteError, UserError
from stepsampler.models.conditions import check_conditions, check_widths, checked, told_scale
from stepsampler.models.model import Model
from stepsampler.models.pixels import to_pixels
from stepsampler.models.sizes import Shaped
from stepsampler.models.texts import Reading
from stepsampler.noise import read_noise
from stepsampler.npnet.files import digest_of, find_npnet, read_npnet, read_spec
from stepsampler.npnet.network import NPNet
from stepsampler.sample import Denoiser
from stepsampler.schedule import FreeU, Schedule
from stepsampler.support.sizes import Size

KEPT = 2**28  # bytes of encoded prompts
NEARLY = 0.999  # of the highest level's time, for rounding
# Beginnings of names of components, the last two of LTX-2
NEEDED = ("text_encoder", "tokenizer", "unet", "transformer", "vae", "connectors", "audio_vae")


class LatentModel(Shaped, Model):
    """A diffusers pipeline, taken apart into the few calls that sampling needs.

    A family names the pipeline classes that it samples and fills in `_encode` and `_call`; where
    latents or images are not those of an AutoencoderKL, also `_trained_shape` and `_decoded`, and
    `rule` where guidance is no plain combination. `_call` takes times of 0 to 1000 and gives what
    `prediction_type` says, whatever the network is told and gives.

    Raises:
        UserError: the pipeline lacks a part, or the size is none that it can make.
    """

    pipelines: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()  # components that a pipeline may lack
    channels_last: ClassVar[bool] = False  # faster for convolutions on a CPU
    # The network is told how long texts are: by `mask`, left out if none is padded, or otherwise.
    mask: ClassVar[str | None] = None
    pads: ClassVar[bool] = False

    def __init__(self, pipeline: Any, size: Size | None = None) -> None:
        self._check_parts(pipeline)
        names = ("unet", "transformer", "transformer_2")
        found = [getattr(pipeline, name, None) for name in names]
        nets = [checked(net) for net in found if net is not None]
        super().__init__(pipeline, nets[0])
        self.nets = nets
        check_conditions(self.net)
        if told_scale(self.net):
            self.guidance = "distilled"
        for part in self.networks:
            part.eval().requires_grad_(False)
            if self.channels_last and not hasattr(part, "_hf_hook"):
                part.to(memory_format=self._layout)
        self.shape = self._latent_shape(size)
        self._read_scheduler(pipeline.scheduler.config)
        self._encoded: OrderedDict[tuple[str, bool], Condition] = OrderedDict()
        self._first_calls: FirstCalls | None = None
        self._npnet_file: str | None = None
        self._npnets: dict[str, NPNet] = {}  # by digest

    @classmethod
    def samples(cls, pipeline: Any) -> bool:
        """Whether our own loop can; a pipeline of which it cannot samples itself."""
        return True

    def read_texts(self, reading: Reading) -> None:
        super().read_texts(reading)
        self._encoded.clear()

    def refusal(self, prompt: str) -> str | None:
        try:
            self.encode([prompt])
        except UserError as error:
            return str(error)
        return None

    def _check_parts(self, pipeline: Any) -> None:
        for name, part in pipeline.components.items():
            if part is None and name.startswith(NEEDED) and name not in self.optional:
                raise UserError(f"the {type(pipeline).__name__} has no {name}")

    def _read_scheduler(self, config: Any) -> None:
        self.noise, self.prediction_type = read_noise(config, self._tokens)

    @cached_property
    def _layout(self) -> torch.memory_format:
        """The faster one: on a CPU, convolutions in bfloat16 want their channels first."""
        slow = self.dtype == torch.bfloat16 and self.device.type == "cpu"
        return torch.channels_last if self.channels_last and not slow else torch.contiguous_format

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str], negative: bool = False) -> Condition:
        """Conditions of shape (len(prompts), ...) by name.

        Each prompt is encoded alone, and once as long as it is among the last ones: so that its
        embedding is the same bit for bit whatever it is batched with. Texts of other lengths, which
        there are in chunks only, are repeated (`stack`).
        """
        rows = []
        for prompt in prompts:
            key = (prompt, negative)
            if key not in self._encoded:
                row = {k: self._cast(v) for k, v in self._encode(*key).items()}
                check_widths(self.net, row)
                self._encoded[key] = row
            self._encoded.move_to_end(key)
            rows.append(self._encoded[key])
        size = sum(v.nbytes for row in self._encoded.values() for v in row.values())
        most = self.most_encoded or len(self._encoded)
        while (size > KEPT or len(self._encoded) > most) and len(self._encoded) > 1:
            _, oldest = self._encoded.popitem(last=False)
            size -= sum(v.nbytes for v in oldest.values())
        join = padded if self.pads or self.mask else stack
        condition = {name: join([row[name] for row in rows]) for name in rows[0]}
        if self.mask and condition[self.mask].all():  # attention is faster without
            del condition[self.mask]
        return condition

    def length(self, prompt: str, negative: bool = False) -> int:
        """Tokens of a prompt as the network gets it; 0 where all have equally many."""
        if self.reading.long_prompts == "cut":
            return 0
        return self.encode([prompt], negative)["encoder_hidden_states"].shape[1]

    def _cast(self, value: Tensor) -> Tensor:
        """A text encoder may run in another dtype than the network; masks and classes stay."""
        return value.to(self.dtype) if value.is_floating_point() else value

    @abstractmethod
    def _encode(self, prompt: str, negative: bool) -> Condition:
        """The condition of one prompt; each tensor of shape (1, ...)."""

    @abstractmethod
    def _call(self, x: Tensor, at: Tensor, condition: Condition) -> Tensor:
        """One call of `net`: x of shape (n, *shape) in its dtype, times of shape (n,)."""

    @staticmethod
    def rule(uncond: Tensor, cond: Tensor, w: float) -> Tensor:
        return classifier_free(uncond, cond, w)

    def combine(self, uncond: Tensor, cond: Tensor, w: float) -> Tensor:
        """By `rule`, of outputs of the shape of latents; `rule` takes what the network gives."""
        return self.rule(uncond, cond, w)

    def as_stock(self, noise: Tensor) -> Mapping[str, Tensor]:
        """First noise (n, *shape) as a call of the stock pipeline takes it, by options' names."""
        return {"latents": noise}

    def compile(self) -> None:
        """Have torch compile `nets` at their next calls: a minute, then faster calls.

        Free-U changes attributes that a compiled network has as constants, and gradients through
        one are not to be trusted (some were lost): both take the network as it was.
        """
        if self.compiled:
            return
        if hasattr(self.net, "enable_freeu"):  # leaves attributes that it would have to ask for
            self.net.enable_freeu(1.0, 1.0, 1.0, 1.0)
            self.net.disable_freeu()
        for net in self.nets:
            net.compile(options={"freezing": True})  # weights as constants, packed once
        self.compiled = True

    def network(self, x: Tensor, time: float | Tensor, condition: Condition) -> Tensor:
        """One call of `net`, in its dtype; the result in float32, of the shape of `x`.

        A time is one for all, or one for each image, repeated where the batch is doubled.

        Where the network predicts a variance too, in channels after the others, that is left out.

        Raises:
            UserError: torch cannot compile the network.
        """
        x = x.to(self.dtype).contiguous(memory_format=self._layout)
        if isinstance(time, Tensor):
            at = time.repeat(len(x) // len(time))
        else:
            at = torch.full((len(x),), time, device=x.device)
        with self.uncompiled() if torch.is_grad_enabled() else nullcontext():
            try:
                output = self._call(x, at, condition)
            except torch._dynamo.exc.BackendCompilerFailed as error:
                reason = str(error.inner_exception).splitlines()[0]
                raise UserError(f"torch cannot compile the network: {reason}") from error
        return output[:, : x.shape[1]].float()

    def denoiser(
        self, cond: Condition, uncond: Condition | None, boundary: float | None = None
    ) -> Denoiser:
        """The network under conditions from `encode`; where there are two, `boundary` parts them.

        None is the model's own.
        """
        return GuidedDenoiser(
            self.network,
            self.noise,
            self.prediction_type,
            cond,
            uncond if self.conditional else None,
            self.guidance == "distilled",
            self._free_u if hasattr(self.net, "enable_freeu") else None,
            self.combine,
            None if self.experts.two else self._first_calls,
        )

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Inside, what the network answers at its highest level is known for the next schedule.

        Of one network, compiled or not: rivals, which take it as it was, stay outside.
        """
        self._first_calls = self._remembered
        try:
            yield
        finally:
            self._first_calls = None

    @contextmanager
    def beginning_alike(self, first: bool) -> Iterator[None]:
        with self._remembered.beginning_alike(first):
            yield

    @cached_property
    def _remembered(self) -> FirstCalls:
        return FirstCalls(self.noise.network_time(self.noise.sigma_max) * NEARLY)

    @property
    def saved(self) -> int:
        return self._remembered.saved

    def check(self, schedule: Schedule) -> None:
        super().check(schedule)
        if schedule.npnet:
            self._npnet(schedule.npnet)

    def take_npnet(self, file: str) -> None:
        self._npnets[digest_of(Path(file))] = self._read_npnet(Path(file))
        self._npnet_file = file

    def _npnet(self, digest: str) -> NPNet:
        """The network that a schedule names, read once."""
        if digest not in self._npnets:
            self._npnets[digest] = self._read_npnet(find_npnet(digest, self._npnet_file))
        return self._npnets[digest]

    def _read_npnet(self, path: Path) -> NPNet:
        network, spec = read_npnet(path), read_spec(path)
        reason = spec.mismatch(self.spec) if spec else None
        if reason:
            raise UserError(f"NPNet {str(path)!r} was made for {reason}")
        text = self.encode([""]).get("encoder_hidden_states") if self.conditional else None
        if text is None or text.ndim != 3:
            raise UserError(f"NPNet {str(path)!r} reads a text, and the model reads none")
        if reason := network.layout.refusal(self.shape, tuple(text.shape[1:])):
            raise UserError(f"NPNet {str(path)!r} does not fit: {reason}")
        return network.to(self.device)

    @torch.inference_mode()
    def first_noise(self, noise: Tensor, cond: Condition, schedule: Schedule) -> Tensor:
        """What a schedule begins with: noise (n, *shape) at unit variance, or golden noise of it.

        `cond` are the conditions of the positive prompts.

        Raises:
            UserError: the network is not at hand, or does not fit.
        """
        if schedule.npnet is None:
            return noise
        return self._npnet(schedule.npnet)(noise, cond["encoder_hidden_states"])  # type: ignore[no-any-return]

    @contextmanager
    def _free_u(self, values: FreeU) -> Iterator[None]:
        """Free-U on for a while, and then as it was, whatever happens meanwhile."""
        names = ("s1", "s2", "b1", "b2")
        block = self.net.up_blocks[0]  # all have the same
        before = [getattr(block, name, None) for name in names]
        self.net.enable_freeu(*(getattr(values, name) for name in names))
        try:
            with self.uncompiled():
                yield
        finally:
            if None in before:
                self.net.disable_freeu()
            else:
                self.net.enable_freeu(*before)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents of shape (n, *shape) -> images, uint8 of shape (n, 3, height, width).

        Of videos (n, frames, 3, height, width).

        An image that overflows in float16 is decoded again in float32, and it alone: so that an
        image is the same whatever it is batched with.

        Raises:
            NotFiniteError: a value of the latents or the images is not finite.
        """
        if not latents.isfinite().all():
            raise NotFiniteError(
                "the latents are not finite: the schedule overflows, or the network does in "
                f"{str(self.dtype).removeprefix('torch.')}"
            )
        vae = self.pipeline.vae
        images = self._decoded(latents)
        bad = ~images.isfinite().flatten(1).all(1)
        if bad.any() and vae.dtype == torch.float16:
            images = images.float()
            with torch.inference_mode(False):  # its weights stay ordinary tensors
                vae.to(torch.float32)
            images[bad] = self._decoded(latents[bad])
            with torch.inference_mode(False):
                vae.to(torch.float16)
        if not images.isfinite().all():
            raise NotFiniteError(
                f"the images are not finite, but the latents are: the VAE ({type(vae).__name__}) "
                "overflows; give another one, or another dtype"
            )
        self.pipeline.maybe_free_model_hooks()  # back to the CPU, where the pipeline is offloaded
        return to_pixels(images)

    @torch.inference_mode()
    def latents_of(self, images: Tensor, noise: Tensor) -> Tensor:
        """Images, uint8 (n, 3, height, width) -> float32 (n, *shape), what `decode` is given.

        Of the VAE's distribution of latents, on which networks are trained, that at `noise`
        (n, *shape) deviations from its mean.

        Raises:
            UserError: the VAE has no encoder.
        """
        pixels = images.to(self.device).float() / 127.5 - 1
        return self._latents(pixels, noise)

    def _latents(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """The way back of `_decoded`."""
        vae = self.pipeline.vae
        if getattr(vae, "encoder", None) is None:
            raise UserError(f"the VAE ({type(vae).__name__}) has no encoder, which images need")
        found = vae.encode(pixels.to(vae.dtype), return_dict=False)[0]
        if not isinstance(found, Tensor):
            found = found.mean.float() + found.std.float() * noise
        shift = vae.config.get("shift_factor") or 0.0
        return (found.float() - shift) * vae.config.scaling_factor  # type: ignore[no-any-return]

    def _decoded(self, latents: Tensor) -> Tensor:
        """What the VAE makes of latents, in [-1, 1]."""
        from diffusers.utils.torch_utils import get_module_execution_device

        vae = self.pipeline.vae
        shift = vae.config.get("shift_factor") or 0.0
        scaled = (latents / vae.config.scaling_factor + shift).to(vae.dtype)
        scaled = scaled.to(get_module_execution_device(vae))
        return vae.decode(scaled, return_dict=False)[0]  # type: ignore[no-any-return]
