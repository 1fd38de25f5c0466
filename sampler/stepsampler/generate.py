"""Prompts and seeds -> batches of images. Image k depends on its own seed and prompt alone.

On a CPU the same image at the same place of a batch of the same size is the same bit for bit,
whatever else is in the batch; at another place or batch size latents agree to about 1e-5.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor

from stepsampler.errors import (
    DoesNotFitError,
    NotFiniteError,
    UserError,
    is_out_of_memory,
    note,
)
from stepsampler.models import LatentModel, Model, note_cuts
from stepsampler.models.pixels import quantised, stills
from stepsampler.sample import sample
from stepsampler.schedule import Schedule

if TYPE_CHECKING:
    from stepsampler.models.stock import StockModel

T = TypeVar("T")
LARGEST = 128  # batch that is tried
GAIN = 1.03  # times as fast is worth the memory of a larger batch
NO_IMAGES = torch.empty(0, 3, 0, 0, dtype=torch.uint8)


@dataclass(frozen=True)
class Batch:
    """Images, uint8 of shape (n, 3, height, width), with the seed and prompt of each.

    Of a model of videos they are the middle frames of `videos`, (n, frames, 3, height, width).
    """

    seeds: tuple[int, ...]
    prompts: tuple[str, ...]
    images: Tensor
    videos: Tensor | None = None

    @property
    def made(self) -> Tensor:
        """What the model makes: the videos, or the images."""
        return self.images if self.videos is None else self.videos


def noise_source(
    seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu"
) -> Callable[[], Tensor]:
    """Standard normal noise (len(seeds), *shape) on `device` at every call.

    One CPU generator a seed, so that it is the same on any device and in any company.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw() -> Tensor:
        return torch.stack([torch.randn(*shape, generator=g) for g in generators]).to(device)

    return draw


def seeded_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The first noise of each seed."""
    return noise_source(seeds, shape)()


def generate(
    model: Model,
    schedule: Schedule,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    negative_prompts: Sequence[str] | str = "",
    batch_size: int = 16,
    finite_only: bool = False,
) -> Iterator[Batch]:
    """Yield batches of at most `batch_size` images; `prompts` and `seeds` are of equal length.

    Prompts of which the model sees a part only are told on stderr, once. With `finite_only` an
    image that is not finite is missing from its batch, and stops nothing. What does not fit is
    refused by the call itself, before the first batch is asked for.

    Raises:
        UserError: unequal lengths, a schedule made for another kind of model, a negative prompt
            for a model that takes none, or a batch that does not fit into the device's memory.
        NotFiniteError: an image that is not finite.
    """
    if isinstance(negative_prompts, str):
        negative_prompts = [negative_prompts] * len(prompts)
    if not len(prompts) == len(seeds) == len(negative_prompts):
        raise UserError(
            "prompts, negative prompts and seeds must be equally many, "
            f"got {len(prompts)}, {len(negative_prompts)} and {len(seeds)}"
        )
    model.check(schedule)
    if model.guidance == "distilled" and any(negative_prompts):
        raise UserError("the guidance of this model is distilled: it takes no negative prompt")
    note_cuts(model, prompts, negative_prompts)
    return _batches(model, schedule, prompts, seeds, negative_prompts, batch_size, finite_only)


@torch.inference_mode()
def _batches(
    model: Model,
    schedule: Schedule,
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative_prompts: Sequence[str],
    batch_size: int,
    finite_only: bool,
) -> Iterator[Batch]:
    for start in range(0, len(seeds), batch_size):
        part = slice(start, start + batch_size)
        with fitting(model, len(seeds[part])):
            negative = negative_prompts[part]
            found = _images(model, schedule, prompts[part], seeds[part], negative, finite_only)
        chosen = [(seeds[start + k], prompts[start + k]) for k in found]
        made = torch.stack(list(found.values())) if found else NO_IMAGES
        videos = made if made.ndim == 5 else None
        images = made if videos is None else stills(videos)[:, 0]
        said = tuple(text for _, text in chosen)
        yield Batch(tuple(seed for seed, _ in chosen), said, images, videos)


@contextmanager
def fitting(model: Model, count: int) -> Iterator[None]:
    """Running out of memory over a batch of `count` is a mistake that a user can mend."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        less = "batch size (--batch-size)" if count > 1 else "size of the images, or float16"
        raise DoesNotFitError(
            f"a batch of {count} does not fit into the memory of {model.device}; "
            f"try a smaller {less}"
        ) from error


class BatchSize:
    """How many images go through the network at once, for as long as a process lives.

    As many as given, or "auto": as many as are fastest (`fastest`). Where memory runs out it is
    halved for good, which is said.
    """

    def __init__(self, size: int | Literal["auto"], probe: Callable[[int], object]) -> None:
        self._size = None if size == "auto" else size
        self._probe = probe

    @property
    def size(self) -> int:
        if self._size is None:
            self._size, speed = fastest(self._probe)
            note(f"batches of {self._size}: {speed:.3g} images a second, the fastest here")
        return self._size

    def fit(self, do: Callable[[int], T]) -> T:
        """What `do` returns for a batch size that fits.

        Raises:
            DoesNotFitError: a single image does not.
        """
        while True:
            size = self.size
            try:
                return do(size)
            except DoesNotFitError:
                if size == 1:
                    raise
            # outside of `except`, whose traceback keeps the tensors of the failed batch
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._size = size // 2
            note(f"a batch of {size} does not fit into memory: {self._size} at once from now on")


def fastest(probe: Callable[[int], object]) -> tuple[int, float]:
    """The batch size of most images a second among 1, 2, 4, … and how many those are.

    Doubled until memory runs out, or until two doublings brought nothing (`GAIN`). `probe` makes a
    batch; of each size the second one counts, since the first compiles and looks for kernels.

    Raises:
        DoesNotFitError: a single image does not fit.
    """
    best, speed, size, idle = 1, 0.0, 1, 0
    while size <= LARGEST and idle < 2:
        try:
            probe(size)
            began = time.perf_counter()
            probe(size)
            found = size / (time.perf_counter() - began)
        except DoesNotFitError:
            if size == 1:
                raise
            break
        idle = 0 if found > GAIN * speed else idle + 1
        if found > speed:
            best, speed = size, found
        size *= 2
    return best, speed


def _images(
    model: Model,
    schedule: Schedule,
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative_prompts: Sequence[str],
    finite_only: bool,
) -> dict[int, Tensor]:
    """One batch by place, uint8 on the CPU."""
    if isinstance(model, LatentModel):
        return _sampled(model, schedule, prompts, seeds, negative_prompts, finite_only)
    from stepsampler.models.stock import StockModel

    assert isinstance(model, StockModel)
    images = stock_images(model, schedule, prompts, seeds, negative_prompts)
    if not finite_only:
        return dict(enumerate(quantised(images)))
    return {k: quantised(image) for k, image in enumerate(images) if image.isfinite().all()}


def stock_images(
    model: "StockModel",
    schedule: Schedule,
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative_prompts: Sequence[str],
) -> Tensor:
    """Those of the pipeline itself, as `StockModel.call` gives them."""
    from stepsampler.guided import guided  # imports diffusers

    scale = model.scale(schedule)
    options = model.options(prompts, seeds, negative_prompts, schedule.num_steps, scale)
    way = model.scheduled(schedule) if model.own_rule else guided(model.pipeline, schedule)
    with way:
        return model.sampled(schedule, options)


def _sampled(
    model: LatentModel,
    schedule: Schedule,
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative_prompts: Sequence[str],
    finite_only: bool,
) -> dict[int, Tensor]:
    """By our own loop.

    Images whose prompts are of other lengths, as chunks can be, take network calls of their own:
    each image is that of its own prompts, whatever it is batched with.
    """
    guided = any(s.guidance_scale != 1 for s in (*schedule.steps, schedule.raw_noise) if s)
    guided = guided and model.guidance != "distilled"
    statistics = model.statistics_of(schedule)
    parts: dict[tuple[int, int], list[int]] = {}
    for k, (prompt, negative) in enumerate(zip(prompts, negative_prompts, strict=True)):
        lengths = model.length(prompt), model.length(negative, True) if guided else 0
        parts.setdefault(lengths, []).append(k)
    images: dict[int, Tensor] = {}
    for places in parts.values():
        draw = noise_source([seeds[k] for k in places], model.shape, model.device)
        cond = model.encode([prompts[k] for k in places])
        uncond = model.encode([negative_prompts[k] for k in places], True) if guided else None
        denoise = model.denoiser(cond, uncond, schedule.boundary)
        noise = model.first_noise(draw(), cond, schedule)
        made = sample(denoise, noise, schedule, draw, statistics)
        try:
            images |= zip(places, model.decode(made).cpu(), strict=True)
        except NotFiniteError:
            if not finite_only:
                raise
            for k, latent in zip(places, made, strict=True):
                with suppress(NotFiniteError):
                    images[k] = model.decode(latent[None]).cpu()[0]
    return dict(sorted(images.items()))
