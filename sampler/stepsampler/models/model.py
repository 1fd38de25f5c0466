"""What every command needs of a model, whether our own loop or its pipeline samples it."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from stepsampler.errors import UserError
from stepsampler.experts import Experts
from stepsampler.models.texts import Limit, Reading, cut_sentences, limits
from stepsampler.noise import Noise
from stepsampler.schedule import ModelSpec, Schedule
from stepsampler.statistics.file import Statistics, choose
from stepsampler.support.sizes import Size, size_of


class Model(ABC):
    """A diffusers pipeline and what is known of it.

    `net` is the U-Net or transformer, or the first of `nets`; `shape` that of one latent, or of one
    image where the pipeline samples, (channels, height, width); that of a video's latent is
    (channels, frames, height, width), and (numbers,) where it has sound. The pipeline stays on the
    devices where it is: offloading and device maps are left to diffusers. `compiled` is true after
    `compile`, and where the network came compiled.
    """

    family: str
    videos: bool = False  # is what it makes, else pictures
    frames: int | None = None  # of a video; None for pictures, or where the pipeline does not say
    conditional: bool = True  # takes a prompt, be it a text or a class
    # Layer of CLIP, from the last one, whose states the network takes; None: layers cannot be left
    # out. `chunked`: all texts go through CLIP alone, so that long prompts can go in chunks.
    clip_layer: ClassVar[int | None] = None
    chunked: ClassVar[bool] = False
    guidance: str = "classifier-free"
    compiled: bool = False
    most_encoded: int | None = None  # prompts of which the conditions are kept
    statistics: tuple[Statistics, ...] = ()  # by which dpm-v3 goes

    pipeline: Any
    net: Any
    nets: list[Any]  # of which a step calls one
    noise: Noise
    prediction_type: str
    shape: tuple[int, ...]

    def __init__(self, pipeline: Any, net: Any) -> None:
        self.pipeline, self.net = pipeline, net
        # as diffusers' pipelines may be handed over: compiled in place, or in a wrapper
        self.compiled = (
            hasattr(net, "_orig_mod") or getattr(net, "_compiled_call_impl", None) is not None
        )
        self.reading = Reading()
        self._told: set[tuple[str, bool]] = set()  # prompts that `cuts` was asked for

    @property
    @abstractmethod
    def height(self) -> int:
        """Of the images in pixels."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Of the images in pixels."""

    @property
    def size(self) -> Size:
        """Of the images in pixels: a side, or WIDTHxHEIGHT."""
        return size_of(self.width, self.height)

    @cached_property
    def experts(self) -> Experts:
        """The networks that share a trajectory, where there are two."""
        return Experts.of(self.pipeline)

    @property
    def way(self) -> str:
        """What else than weights and sizes decides how images look; a part of digests."""
        return ""

    @abstractmethod
    def compile(self) -> None:
        """Have torch compile `nets` at their next calls."""

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Inside, a compiled network runs as it was."""
        with torch.compiler.set_stance("force_eager") if self.compiled else nullcontext():
            yield

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Inside, network calls that many schedules have in common are made once."""
        yield

    @contextmanager
    def beginning_alike(self, first: bool) -> Iterator[None]:
        """Inside, `remembering` knows all calls that a schedule has in common with the first."""
        yield

    @property
    def saved(self) -> int:
        """Passes so far that this spared."""
        return 0

    @abstractmethod
    def refusal(self, prompt: str) -> str | None:
        """Why the model takes no such prompt, if it does not."""

    def take_npnet(self, file: str) -> None:
        """Have a network of golden noise at hand, for the schedules that name it.

        Raises:
            UserError: it does not fit the model, or the model takes none.
        """
        raise UserError(
            f"NPNet {file!r}: a {type(self.pipeline).__name__} draws its first noise itself"
        )

    def passes(self, schedule: Schedule) -> float:
        """Network passes that an image under this schedule takes."""
        return schedule.passes

    def read_texts(self, reading: Reading) -> None:
        """Read prompts so from now on.

        Raises:
            UserError: the family has no such choice, or CLIP has not so many layers.
        """
        reading.check(self.pipeline, self.clip_layer, self.chunked)
        self.reading = reading

    def cuts(self, prompts: Iterable[str], negative_prompts: Iterable[str] = ()) -> list[str]:
        """A sentence for each kind of text encoder that does not see the end of some prompts.

        Prompts that an earlier call was about are left out.
        """
        found: list[str] = []
        for negative, texts in ((False, prompts), (True, negative_prompts)):
            new = [text for text in dict.fromkeys(texts) if (text, negative) not in self._told]
            self._told |= {(text, negative) for text in new}
            if new and self.conditional and self.reading.long_prompts == "cut":
                read = [self._read(text) for text in new]
                what = "negative prompts" if negative else "prompts"
                hint = "--long-prompts chunk" if self.chunked else ""
                found += cut_sentences(self._limits(negative), new, read, what, hint)
        return found

    def _read(self, prompt: str) -> str:
        """What the tokenizers get of a prompt."""
        return prompt

    def _limits(self, negative: bool) -> list[Limit]:
        return limits(self.pipeline)

    @property
    def networks(self) -> list[Any]:
        """The U-Net or transformer, the VAE and what reads texts, as far as there are any."""
        parts = self.pipeline.components
        nets = ("unet", "transformer", "transformer_2")
        names = [*nets, "vae", *(n for n in parts if n.startswith(("text_encoder", "connectors")))]
        return [parts[name] for name in names if parts.get(name) is not None]

    @cached_property
    def device(self) -> torch.device:
        """Where the networks run, which need not be where their weights lie.

        Kept, because diffusers walks through all modules to find it: a pipeline that is moved
        afterwards wants a new model.
        """
        return self.pipeline._execution_device  # type: ignore[no-any-return]

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of the network; kept, because `net.dtype` walks through all of its parameters."""
        return self.net.dtype  # type: ignore[no-any-return]

    def statistics_of(self, schedule: Schedule) -> Statistics | None:
        """Those by which the schedule goes; None if it goes by none.

        Raises:
            UserError: the model has others, or none.
        """
        return choose(self.statistics, schedule.statistics) if schedule.statistics else None

    def settled(self, schedule: Schedule) -> Schedule:
        """The schedule with its statistics named by digest, as it is sampled with this model."""
        found = self.statistics_of(schedule)
        if not found or not schedule.statistics or schedule.statistics.digest:
            return schedule
        return replace(schedule, statistics=replace(schedule.statistics, digest=found.digest))

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
        if not self.conditional:
            for step in (*schedule.steps, schedule.raw_noise):
                if step and step.guidance_scale != 1:
                    raise UserError(
                        f"guidance_scale is {step.guidance_scale:g}, but the model is "
                        "unconditional: it must be 1"
                    )
        self.noise.check_range(schedule)
        self.experts.check(schedule)
        if found := self.statistics_of(schedule):
            found.check_levels(schedule)
        if any(step.free_u for step in schedule.steps) and not hasattr(self.net, "enable_freeu"):
            raise UserError("the schedule uses Free-U, which only U-Nets with skips have")


def check_readable(pipeline: Any) -> None:
    """Refuse weights that change when they are read.

    A 4-bit layer of bitsandbytes that has computed on a CPU with AVX512-BF16 gets the scales of its
    blocks in another order by its own `state_dict` (0.50; `findings/bitsandbytes_state_dict.sh`).

    Raises:
        UserError: names the component.
    """
    for name, part in pipeline.components.items():
        for module in part.modules() if isinstance(part, torch.nn.Module) else ():
            repacks = getattr(module, "support_avx512bf16_for_cpu", False)
            if repacks and module.weight.device.type == "cpu":
                raise UserError(
                    f"the {name} has 4-bit weights of bitsandbytes on a CPU, which change when they"
                    " are read there: put it on a GPU, or load it in 8 bits"
                )


def model_digest(model: Model) -> str:
    """A short digest of the weights: every byte of every tensor of every network.

    Bytes, not sums: sums depend on how many threads add them.
    """
    digest = hashlib.sha256(f"{model.dtype} {model.spec}{model.way}".encode())
    for name, part in sorted(model.pipeline.components.items()):
        if isinstance(part, torch.nn.Module):
            for key, tensor in weights_of(part):
                digest.update(f"{name}.{key} {tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor.cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def weights_of(network: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and numbers of all that a network holds, as plain tensors.

    Those of a quantised weight, a subclass of torch's (torchao, optimum-quanto, GGUF), are the
    tensors that it is made of, or else its values.
    """
    for name, value in network.state_dict().items():
        yield from _plain(name, value)


def _plain(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, tuple | list):  # as torch packs the weights of its quantised layers
        for i, part in enumerate(value):
            yield from _plain(f"{name}.{i}", part)
    if not isinstance(value, Tensor):
        return
    if hasattr(value, "__tensor_flatten__"):
        for inner in value.__tensor_flatten__()[0]:
            yield from _plain(f"{name}.{inner}", getattr(value, inner))
    elif value.is_quantized or type(value).dequantize is not Tensor.dequantize:
        yield name, value.dequantize()
    else:
        yield name, value.detach().as_subclass(Tensor)


def is_quantised(network: torch.nn.Module) -> bool:
    """Whether some of its weights have fewer than 16 bits, or are made of others when used."""
    return any(_quantised(value) for value in network.state_dict().values())


def _quantised(value: object) -> bool:
    if isinstance(value, tuple | list):  # as torch packs them
        return any(map(_quantised, value))
    if not isinstance(value, Tensor):
        return False
    return (
        hasattr(value, "__tensor_flatten__")
        or value.is_quantized
        or type(value).dequantize is not Tensor.dequantize
        or (value.dtype.itemsize == 1 and value.dtype != torch.bool)
    )
