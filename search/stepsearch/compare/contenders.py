"""What `stepsearch evaluate` scores: a schedule, a pipeline with its own scheduler, a folder."""

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from stepsampler.batch import MANIFEST, read_manifest
from stepsampler.denoiser import stack
from stepsampler.errors import UserError, counted
from stepsampler.generate import fitting, generate
from stepsampler.models import LatentModel, Model
from stepsampler.models.pixels import quantised, stills
from stepsampler.models.stock import SCALES, StockModel, counting
from stepsampler.models.stock.known import networks, read_inputs
from stepsampler.schedule import Schedule
from stepsampler.support.images.pixels import Exif, Fit
from stepsampler.support.sizes import Size, sides
from stepsearch.compare.schedulers import choose_scheduler, rehearse
from stepsearch.metrics.alignment import Prompt
from stepsearch.metrics.images import ImageFiles
from stepsearch.metrics.interchange import read_npz


class Contender(Protocol):
    """Makes the images of any range of seeds; the same each time."""

    name: str
    identity: str  # changes with everything that changes an image
    steps: int | None
    passes: float | None  # network passes an image; None: not known (yet)
    prompted: bool  # whether image k shows prompt k
    captioned: bool  # whether it is known what the images show

    def batches(self, seeds: range, prompts: list[Prompt], batch_size: int) -> Iterator[Tensor]:
        """Images of `seeds`, uint8 (n, 3, height, width), in batches; a prompt for each."""
        ...

    def texts(self, seeds: range, prompts: list[Prompt]) -> list[str]:
        """What the images of `seeds` are to show, if it is known."""
        ...


class OnSchedule:
    """A schedule on a model; an unconditional one has no use for prompts."""

    def __init__(
        self,
        name: str,
        schedule: Schedule,
        model: Model,
        digest: str,
        negative_prompt: str = "",
    ) -> None:
        model.check(schedule)
        self.negative_prompt = negative_prompt
        self.prompted = self.captioned = model.conditional
        self.name, self.schedule, self.model = name, schedule, model
        bare = replace(model.settled(schedule), provenance={}, model=None).to_json()
        self.identity = _digest(f"schedule {bare} {digest} {model.shape}")
        self.steps: int | None = schedule.num_steps
        # what a pipeline makes of it is counted with its first images
        self.passes = None if isinstance(model, StockModel) else model.passes(schedule)

    def batches(self, seeds: range, prompts: list[Prompt], batch_size: int) -> Iterator[Tensor]:
        texts = self.texts(seeds, prompts) if self.prompted else [""] * len(seeds)
        for batch in generate(
            self.model,
            self.schedule,
            texts,
            seeds,
            negative_prompts=self.negative_prompt,
            batch_size=batch_size,
        ):
            self.passes = self.model.passes(self.schedule)
            yield batch.images

    def texts(self, seeds: range, prompts: list[Prompt]) -> list[str]:
        return [prompt.text for prompt in prompts]


class OnStock:
    """A diffusers pipeline under its own call, with its own scheduler or another of diffusers'.

    It starts from the noise from which schedules start, one generator a seed. `passes` are counted
    at the network.

    Raises:
        UserError: the pipeline draws its own noise, or the scheduler or the steps do not fit it.
    """

    prompted = captioned = True

    def __init__(
        self,
        model: Model,
        digest: str,
        steps: int,
        guidance_scale: float | None = None,
        scheduler: str | None = None,
        spacing: str | None = None,
        negative_prompt: str = "",
    ) -> None:
        own_noise = "latents" not in inspect.signature(model.pipeline.__call__).parameters
        if own_noise and not isinstance(model, StockModel):
            raise UserError(
                f"--stock: a {type(model.pipeline).__name__} takes no latents, so it cannot start "
                "from the noise of the schedules; score schedules on it"
            )
        known = read_inputs(model.pipeline)
        if negative_prompt and ("negative_prompt" not in known or "true_cfg_scale" in known):
            raise UserError(
                f"--stock: a {type(model.pipeline).__name__} by itself takes no negative prompt, "
                f"got {negative_prompt!r}"
            )
        scales = SCALES if isinstance(model, StockModel) else SCALES[1:]
        self._guiders: dict[str, Any] = {}  # in the place of the pipeline's, which have the scale
        if guidance_scale is not None and not known.keys() & set(scales):
            parts = model.pipeline.components.items()
            own = {n: part for n, part in parts if "guider" in n and hasattr(part, SCALES[1])}
            if not own or model.guidance == "distilled":
                raise UserError(
                    f"--stock: a call of a {type(model.pipeline).__name__} takes no "
                    f"guidance_scale, got {guidance_scale:g}"
                )
            for n, guider in own.items():
                self._guiders[n] = guider.new(guidance_scale=guidance_scale, enabled=True)
        self.model, self.guidance_scale = model, guidance_scale
        self.negative_prompt = negative_prompt
        self.steps: int | None = steps
        self.passes: float | None = None
        self.scheduler = choose_scheduler(model, scheduler, spacing)
        most = self.scheduler.config.get("num_train_timesteps", steps)
        if steps > most:
            raise UserError(f"--stock: the model has {most} timesteps, got {steps} steps")
        rehearse(self.scheduler, steps, model.prediction_type == "flow_prediction")
        name = type(self.scheduler).__name__.removesuffix("Scheduler")
        scale = "" if guidance_scale is None else f", w {guidance_scale:g}"
        self.name = f"{name}, {counted(steps, 'step')}{f', {spacing}' if spacing else ''}{scale}"
        settings = sorted((k, str(v)) for k, v in self.scheduler.config.items() if k[0] != "_")
        self.identity = _digest(
            f"stock {name} {settings} {steps} {guidance_scale} {digest} {model.shape}"
        )

    @torch.inference_mode()
    def batches(self, seeds: range, prompts: list[Prompt], batch_size: int) -> Iterator[Tensor]:
        for start in range(0, len(seeds), batch_size):
            chunk = seeds[start : start + batch_size]
            texts = self.texts(chunk, prompts[start : start + batch_size])
            with fitting(self.model, len(chunk)), self._own_parts():
                images, self.passes = self._call(texts, chunk)
            yield quantised(stills(images)[:, 0] if self.model.videos else images).cpu()

    def _call(self, texts: list[str], seeds: range) -> tuple[Tensor, float]:
        """Images or videos in [0, 1], and the passes of one."""
        model = self.model
        if isinstance(model, StockModel):
            negative = [self.negative_prompt] * len(texts)
            assert self.steps
            return model.call(
                model.options(texts, seeds, negative, self.steps, self.guidance_scale)
            )
        assert isinstance(model, LatentModel)
        model.pipeline.set_progress_bar_config(disable=True)
        with counting(networks(model.pipeline).values()) as rows:
            options = {**self._read(model, texts), **self._options(model, seeds)}
            made = model.pipeline(**options)
        images = made.frames if model.videos else made.images
        return images.float(), rows[0] / len(seeds)

    def texts(self, seeds: range, prompts: list[Prompt]) -> list[str]:
        return [prompt.text for prompt in prompts]

    def _read(self, model: LatentModel, texts: list[str]) -> dict[str, Any]:
        """The prompts; as embeddings where they are read otherwise than the pipeline would."""
        negative = [self.negative_prompt] * len(texts)
        if not model.reading.chosen:
            return {"prompt": texts, **({"negative_prompt": negative} if negative[0] else {})}
        conditions = model.encode(texts), model.encode(negative, negative=True)
        found: dict[str, Tensor] = {}
        for name, argument in (
            ("encoder_hidden_states", "prompt_embeds"),
            ("text_embeds", "pooled_prompt_embeds"),
            ("pooled_projections", "pooled_prompt_embeds"),
        ):
            if name in conditions[0]:
                cond, uncond = stack([condition[name] for condition in conditions]).chunk(2)
                found |= {argument: cond, f"negative_{argument}": uncond}
        known = inspect.signature(model.pipeline.__call__).parameters
        return {name: value for name, value in found.items() if name in known}

    def _options(self, model: LatentModel, seeds: range) -> dict[str, Any]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        # Drawn from the same generators, so that a scheduler's own noise is not this noise again.
        noise = torch.stack([torch.randn(*model.shape, generator=g) for g in generators])
        options: dict[str, Any] = {
            "num_inference_steps": self.steps,
            "generator": generators,
            **model.as_stock(noise.to(model.device, model.dtype)),
            "output_type": "pt",
        }
        if self.guidance_scale is not None and not self._guiders:
            options["guidance_scale"] = self.guidance_scale
        known = inspect.signature(model.pipeline.__call__).parameters
        sides = {"height": model.height, "width": model.width}
        # PixArt and Sana would make the nearest of some sizes, and resize the images.
        more = {"use_resolution_binning": False, "num_frames": model.frames}
        for name, value in {**sides, **more}.items():
            if name in known:
                options[name] = value
        return options

    @contextmanager
    def _own_parts(self) -> Iterator[None]:
        """The scheduler and the guiders in the places of the pipeline's."""
        pipeline = self.model.pipeline
        before = {name: getattr(pipeline, name) for name in ("scheduler", *self._guiders)}
        try:
            pipeline.scheduler = self.scheduler
            for name, guider in self._guiders.items():  # setattr would rewrite the config
                object.__setattr__(pipeline, name, guider)
            yield
        finally:
            pipeline.scheduler = before.pop("scheduler")
            for name, guider in before.items():
                object.__setattr__(pipeline, name, guider)


class OnFiles:
    """Images that lie in a folder or a zip, in the order of `ImageFiles.chosen`."""

    prompted = captioned = False

    def __init__(
        self,
        source: Path,
        n: int,
        first: int,
        size: Size | None = None,
        fit: Fit = "crop",
        exif: Exif = "apply",
        broken: Mapping[str, str] | None = None,
    ) -> None:
        self.files = ImageFiles.readable(source, n, exif, broken)
        self.first, self.size, self.fit = first, size, fit
        self.files.check(size, fit)  # all at once: they are measured in parts
        self.name = str(source)
        self.steps: int | None = None
        self.passes: float | None = None
        what = f"files {self.files.digest()} {size} {fit} {first} {self.files.drawn}"
        self.identity = _digest(f"{what} {self.files.preparation}".strip())

    def read_captions(self) -> None:
        """Take what each image shows from the manifest that `stepsample batch` wrote beside them.

        Raises:
            UserError: there is none, or not a line for each image.
        """
        source = self.files.source
        path = source / MANIFEST
        if not path.is_file():
            raise UserError(
                f"--clip-score: {source}: it is not known what its images show: no {MANIFEST} of "
                "`stepsample batch` lies there; score it without"
            )
        _, rows = read_manifest(path)
        found = {row["file"]: row["prompt"] for row in rows}
        lacking = [name for name in self.files.names if name not in found]
        if lacking:
            raise UserError(f"--clip-score: {path}: it has no line for {lacking[0]}")
        self.captions, self.captioned = [found[name] for name in self.files.names], True

    def batches(self, seeds: range, prompts: list[Prompt], batch_size: int) -> Iterator[Tensor]:
        return self.files.batches(self.size, self.fit, batch_size, self._places(seeds))

    def texts(self, seeds: range, prompts: list[Prompt]) -> list[str]:
        places = self._places(seeds)
        return self.captions[places.start : places.stop]

    def _places(self, seeds: range) -> range:
        return range(seeds.start - self.first, seeds.stop - self.first)


class OnArray:
    """Images of an `.npz` of others (ADM's `arr_0`), drawn as those of a folder; as they are."""

    prompted = captioned = False

    def __init__(self, source: Path, n: int, first: int, size: Size | None = None) -> None:
        images = read_npz(source).images
        if images is None:
            raise UserError(f"{source}: statistics without images can be a reference alone")
        if len(images) < n:
            count = counted(len(images), "image")
            raise UserError(f"{source}: {count}, but {n} are wanted; lower --images")
        height, width = images.shape[2:]
        if size is not None and (width, height) != sides(size):
            wanted = " x ".join(map(str, sides(size)))
            raise UserError(
                f"{source}: its images are {width} x {height} and are taken as they are, wanted "
                f"is {wanted}"
            )
        order = np.random.default_rng(0).permutation(len(images))[:n]
        self.images, self.first, self.name = images[order], first, str(source)
        self.steps: int | None = None
        self.passes: float | None = None
        self.identity = _digest(
            f"array {hashlib.sha256(self.images.tobytes()).hexdigest()} {self.images.shape} {first}"
        )

    def batches(self, seeds: range, prompts: list[Prompt], batch_size: int) -> Iterator[Tensor]:
        chosen = self.images[seeds.start - self.first : seeds.stop - self.first]
        yield from torch.split(torch.from_numpy(chosen), batch_size)

    def texts(self, seeds: range, prompts: list[Prompt]) -> list[str]:
        return []


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
