"""What `stepsearch evaluate` scores: a schedule, a pipeline with its own scheduler, a folder."""

import hashlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from stepsampler.errors import UserError
from stepsampler.generate import generate
from stepsampler.models import LatentModel
from stepsampler.models.base import quantised
from stepsampler.schedule import Schedule
from stepsearch.evaluate import Prompt
from stepsearch.images import Fit, ImageFiles


class Contender(Protocol):
    """Makes the images of any range of seeds; the same each time."""

    name: str
    identity: str  # changes with everything that changes an image
    steps: int | None
    passes: float | None  # network passes an image; None: not known (yet)
    prompted: bool  # whether image k shows prompt k

    def batches(self, seeds: range, prompts: list[Prompt], batch_size: int) -> Iterator[Tensor]:
        """Images of `seeds`, uint8 (n, 3, height, width), in batches; a prompt for each."""
        ...


class OnSchedule:
    """A schedule on a model."""

    prompted = True

    def __init__(self, name: str, schedule: Schedule, model: LatentModel, digest: str) -> None:
        model.check(schedule)
        self.name, self.schedule, self.model = name, schedule, model
        bare = replace(schedule, provenance={}, model=None).to_json()
        self.identity = _digest(f"schedule {bare} {digest} {model.shape}")
        self.steps: int | None = schedule.num_steps
        self.passes: float | None = float(schedule.passes)

    def batches(self, seeds: range, prompts: list[Prompt], batch_size: int) -> Iterator[Tensor]:
        texts = [prompt.text for prompt in prompts]
        for batch in generate(self.model, self.schedule, texts, seeds, batch_size=batch_size):
            yield batch.images


class OnStock:
    """A diffusers pipeline under its own call, with its own scheduler or another of diffusers'.

    It starts from the noise from which schedules start, one generator a seed. `passes` are counted
    at the network.
    """

    prompted = True

    def __init__(
        self,
        model: LatentModel,
        digest: str,
        steps: int,
        guidance_scale: float | None = None,
        scheduler: str | None = None,
    ) -> None:
        self.model, self.guidance_scale = model, guidance_scale
        self.steps: int | None = steps
        self.passes: float | None = None
        self.scheduler = _scheduler(model, scheduler)
        most = self.scheduler.config.get("num_train_timesteps", steps)
        if steps > most:
            raise UserError(f"--stock: the model has {most} timesteps, got {steps} steps")
        name = type(self.scheduler).__name__.removesuffix("Scheduler")
        scale = "" if guidance_scale is None else f", w {guidance_scale:g}"
        self.name = f"{name}, {steps} steps{scale}"
        settings = sorted((k, str(v)) for k, v in self.scheduler.config.items() if k[0] != "_")
        self.identity = _digest(
            f"stock {name} {settings} {steps} {guidance_scale} {digest} {model.shape}"
        )

    @torch.inference_mode()
    def batches(self, seeds: range, prompts: list[Prompt], batch_size: int) -> Iterator[Tensor]:
        pipeline = self.model.pipeline
        pipeline.set_progress_bar_config(disable=True)
        for start in range(0, len(seeds), batch_size):
            chunk = seeds[start : start + batch_size]
            texts = [prompt.text for prompt in prompts[start : start + batch_size]]
            with self._own_scheduler(), _counted(self.model.net) as rows:
                images = pipeline(texts, **self._options(chunk)).images
            self.passes = rows[0] / len(chunk)
            yield quantised(images.float()).cpu()

    def _options(self, seeds: range) -> dict[str, Any]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        # Drawn from the same generators, so that a scheduler's own noise is not this noise again.
        noise = torch.stack([torch.randn(*self.model.shape, generator=g) for g in generators])
        options: dict[str, Any] = {
            "num_inference_steps": self.steps,
            "generator": generators,
            "output_type": "pt",
        }
        known = inspect.signature(self.model.pipeline.__call__).parameters
        if self.guidance_scale is not None:
            options["guidance_scale"] = self.guidance_scale
        if not hasattr(self.model.pipeline, "_pack_latents"):  # those pack their own noise
            options["latents"] = noise.to(self.model.device, self.model.dtype)
        factor = self.model.pipeline.vae_scale_factor
        for name, side in (("height", self.model.shape[1]), ("width", self.model.shape[2])):
            if name in known:
                options[name] = side * factor
        return options

    @contextmanager
    def _own_scheduler(self) -> Iterator[None]:
        before = self.model.pipeline.scheduler
        self.model.pipeline.scheduler = self.scheduler
        try:
            yield
        finally:
            self.model.pipeline.scheduler = before


class OnFiles:
    """Images that lie in a folder or a zip: image k is the k-th by name."""

    prompted = False

    def __init__(
        self, source: Path, n: int, first: int, size: int | None = None, fit: Fit = "crop"
    ) -> None:
        self.files, self.first, self.size, self.fit = ImageFiles.find(source), first, size, fit
        if len(self.files.names) < n:
            raise UserError(
                f"{source}: {len(self.files.names)} images, but {n} are wanted; lower --images"
            )
        self.name = str(source)
        self.steps: int | None = None
        self.passes: float | None = None
        self.identity = _digest(f"files {self.files.digest()} {size} {fit} {first}")

    def batches(self, seeds: range, prompts: list[Prompt], batch_size: int) -> Iterator[Tensor]:
        chosen = range(seeds.start - self.first, seeds.stop - self.first)
        return self.files.batches(self.size, self.fit, batch_size, chosen)


def _scheduler(model: LatentModel, name: str | None) -> Any:
    """The pipeline's own scheduler, or another class of diffusers with the same settings."""
    import diffusers

    if name is None:
        return model.pipeline.scheduler
    cls = getattr(diffusers, name, None)
    if cls is None or not name.endswith("Scheduler"):
        raise UserError(
            f"--scheduler: diffusers has no {name!r}; give a class such as "
            "DPMSolverMultistepScheduler"
        )
    made = cls.from_config(model.pipeline.scheduler.config)
    flow = model.spec.prediction_type == "flow_prediction"
    if flow != (name.startswith("FlowMatch") or bool(made.config.get("use_flow_sigmas"))):
        kind = "flow" if flow else "variance-preserving"
        raise UserError(f"--scheduler: {name} is not for a {kind} model with these settings")
    return made


@contextmanager
def _counted(net: torch.nn.Module) -> Iterator[list[int]]:
    """Count the rows that a network is called with."""
    rows = [0]

    def count(_: object, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = inputs[0] if inputs else named.get("sample", named.get("hidden_states", ()))
        rows[0] += len(x)

    handle = net.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
