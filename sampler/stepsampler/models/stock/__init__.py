"""A pipeline that samples itself: called as it is, with a schedule in its scheduler's place."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stepsampler.errors import UserError, is_out_of_memory
from stepsampler.halves import first_input
from stepsampler.models.conditions import told_scale
from stepsampler.models.model import Model
from stepsampler.models.sizes import NO_SIZE
from stepsampler.models.stock.known import hush, networks, own_rule, packages, read_inputs, why_not
from stepsampler.models.texts import Limit, Reading, limits
from stepsampler.noise import read_noise
from stepsampler.schedule import Schedule
from stepsampler.scheduler import StepScheduler, plan
from stepsampler.support.scales import ALONE, from_zero
from stepsampler.support.sizes import Size, sides

FRAMES = ("num_frames", "video_length", "frames")  # how pipelines of videos call their number
SCALES = ("true_cfg_scale", "guidance_scale")  # and the scale of two predictions
# What pipelines raise where a call, a package or a part of them does not fit
REFUSALS = (
    AttributeError, ImportError, LookupError, NameError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
MOST_LATENT = 256  # default sizes above it are pixels, those below it are latents
GUIDED = 2.0  # any scale above 1: `guided` replaces what the pipeline makes of it


class StockModel(Model):
    """A pipeline that is called as a black box, under `guided` where its guidance is known.

    Elsewhere it guides by its own rule, with the schedule's scale, which must be one for all steps.
    Passes are counted at the network.

    Raises:
        UserError: the pipeline or its scheduler cannot run a schedule, or the size is unknown.
    """

    def __init__(
        self, pipeline: Any, size: Size | None = None, family: str = "", frames: int | None = None
    ) -> None:
        cls = type(pipeline)
        self.name = cls.__name__
        reason = self._why_not(pipeline)
        if reason:
            raise UserError(f"a {self.name} cannot run a schedule: {reason}")
        nets = networks(pipeline)
        if not nets:
            raise UserError(f"the {self.name} has neither a U-Net nor a transformer")
        super().__init__(pipeline, next(iter(nets.values())))
        self.family = family or self.name
        self.nets = list(nets.values())
        self._inputs = read_inputs(pipeline)
        self._frames = next((name for name in FRAMES if name in self._inputs), None)
        if frames is not None and self._frames is None:
            raise UserError(f"a {self.name} makes pictures, which have no frames, got {frames}")
        self._asked = frames
        self.videos = self._frames is not None
        default = self._inputs.get(self._frames or "")
        self.frames = frames or (default if isinstance(default, int) else None)
        self.own_rule = own_rule(cls)
        if any(map(told_scale, self.nets)):
            self.guidance = "distilled"
        width, height = self._read_size(size)
        self.shape = (3, height, width)
        for part in self.networks:
            part.eval().requires_grad_(False)
        config = pipeline.scheduler.config
        try:
            self.rows_config = StepScheduler.from_config(config).config
        except ValueError as error:
            raise UserError(f"a {self.name} cannot run a schedule: {error}") from error
        self.noise, self.prediction_type = read_noise(config, self._tokens)
        self._counted: dict[str, float] = {}

    @staticmethod
    def _why_not(pipeline: Any) -> str | None:
        return why_not(type(pipeline))

    def _made(self, options: dict[str, Any]) -> Any:
        """Pictures or videos as the pipeline hands them out."""
        made = self.pipeline(**options)
        found = (getattr(made, name, None) for name in ("images", "image", "frames"))
        return next(each for each in found if each is not None)

    def _read_size(self, size: Size | None) -> tuple[int, int]:
        """Width and height: as asked, or as the pipeline makes them by default."""
        if size:
            return sides(size)
        width, height = (self._inputs.get(name) for name in ("width", "height"))
        if isinstance(width, int) and isinstance(height, int):
            return width, height
        factor = getattr(self.pipeline, "vae_scale_factor", 1)
        side = getattr(self.pipeline, "default_sample_size", None)
        side = side or self.net.config.get("sample_size")
        if not isinstance(side, int):
            raise UserError(NO_SIZE)
        side = side if side > MOST_LATENT else side * factor
        return side, side

    @property
    def _tokens(self) -> int:
        """Patches of one image, as most transformers cut it: some shifts depend on them."""
        side = 2 * int(getattr(self.pipeline, "vae_scale_factor", 8))
        return (self.shape[1] // side) * (self.shape[2] // side)

    @property
    def height(self) -> int:
        return self.shape[1]

    @property
    def width(self) -> int:
        return self.shape[2]

    @property
    def networks(self) -> list[Any]:
        return [
            part for part in self.pipeline.components.values() if isinstance(part, torch.nn.Module)
        ]

    @property
    def way(self) -> str:
        return f" stock {self._asked or ''}"

    def compile(self) -> None:
        for net in self.nets:
            net.compile()
        self.compiled = True

    def read_texts(self, reading: Reading) -> None:
        if reading.chosen:
            raise UserError(
                f"a {self.name} reads prompts by itself: {', '.join(reading.chosen)} is not "
                "supported"
            )

    def refusal(self, prompt: str) -> str | None:
        return None  # it shows when the pipeline is called

    def _limits(self, negative: bool) -> list[Limit]:
        """Those that can be read; what else a pipeline cuts, it does not say."""
        try:
            return [each for each in limits(self.pipeline) if isinstance(each.tokens, int)]
        except (AttributeError, KeyError, TypeError):
            return []

    def check(self, schedule: Schedule) -> None:
        super().check(schedule)
        plan(schedule, self.rows_config)
        scales = {step.guidance_scale for step in schedule.steps}
        if self.own_rule and len(scales) > 1:
            raise UserError(
                f"a {self.name} {self.own_rule}: its scale is one for all steps, but the schedule "
                f"has {min(scales):g} to {max(scales):g}"
            )
        if self.own_rule and scales != {1} and not any(name in self._inputs for name in SCALES):
            raise UserError(f"a {self.name} {self.own_rule}: it takes no guidance_scale")
        if self.own_rule and any(s.guidance_rescale or s.free_u for s in schedule.steps):
            raise UserError(
                f"a {self.name} {self.own_rule}: guidance_rescale and Free-U are not supported"
            )

    def passes(self, schedule: Schedule) -> float:
        """As counted at the network, once there is an image; before, what the schedule says."""
        return self._counted.get(_bare(schedule), schedule.passes)

    def scale(self, schedule: Schedule) -> float | None:
        """With which scale the pipeline is called for a schedule; None: its default."""
        if self.guidance == "distilled":
            return None
        if all(step.guidance_scale == 1 for step in schedule.steps):
            return 0.0 if from_zero(packages(type(self.pipeline))) else 1.0
        return schedule.steps[0].guidance_scale if self.own_rule else GUIDED

    def options(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negative_prompts: Sequence[str],
        steps: int,
        scale: float | None,
    ) -> dict[str, Any]:
        """Of a call for these images; a generator for each, so that none depends on the others.

        Raises:
            UserError: a negative prompt, which the pipeline does not take.
        """
        found: dict[str, Any] = {
            "prompt": list(prompts),
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
            "num_inference_steps": steps,
            "output_type": "np",
        }
        _, height, width = self.shape
        wanted = {"width": width, "height": height, "use_resolution_binning": False}
        found |= {name: value for name, value in wanted.items() if name in self._inputs}
        if self._asked and self._frames:
            found[self._frames] = self._asked
        by = next((name for name in SCALES if name in self._inputs), None)
        if scale is not None and by:
            found[by] = scale
        if scale == 1 and by:  # some guide otherwise all the same
            without = ALONE.get(self.family, {})
            found |= {name: value for name, value in without.items() if name in self._inputs}
        if any(negative_prompts) and "negative_prompt" not in self._inputs:
            raise UserError(f"a {self.name} takes no negative prompt")
        if any(negative_prompts) or by == SCALES[0]:  # that one is for nothing without
            found["negative_prompt"] = list(negative_prompts)
        return found

    def call(self, options: dict[str, Any]) -> tuple[Tensor, float]:
        """Images in [0, 1], float (n, 3, height, width) on the CPU, and the passes of one.

        Of videos (n, frames, 3, height, width).

        Raises:
            UserError: the pipeline refuses the call, or makes images of another size.
        """
        hush(self.pipeline)
        try:
            with counting(self.nets) as rows:
                made = self._made(options)
        except REFUSALS as error:
            if isinstance(error, UserError) or is_out_of_memory(error):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if isinstance(error, NameError) and error.name and find_spec(error.name) is None:
                reason = f"it needs the package {error.name}, which is not installed"
            raise UserError(f"a {self.name} refuses the call: {reason}") from error
        images = _pictures(made)
        if images.shape[-2:] != self.shape[1:]:
            sizes = [f"{size[-1]} x {size[-2]}" for size in (images.shape, self.shape)]
            raise UserError(
                f"a {self.name} makes images of {sizes[0]} where {sizes[1]} are wanted: give a "
                "size that it makes"
            )
        passes, left = divmod(rows[0], len(images))
        return images, rows[0] / len(images) if left else passes

    def sampled(self, schedule: Schedule, options: dict[str, Any]) -> Tensor:
        """Images of `call`, where the pipeline has the schedule in its scheduler's place.

        Raises:
            UserError: as `call`, or the pipeline does not take the schedule's steps.
        """
        images, passes = self.call(options)
        taken = getattr(self.pipeline.scheduler, "step_index", None)
        if taken != schedule.num_steps:
            raise UserError(
                f"a {self.name} takes {taken} of the schedule's {schedule.num_steps} steps: it "
                "insists on steps of its own"
            )
        self._counted[_bare(schedule)] = passes
        return images

    @contextmanager
    def scheduled(self, schedule: Schedule) -> Iterator[None]:
        """Inside, the pipeline takes the schedule's steps, under its own guidance."""
        before = self.pipeline.scheduler
        config = {k: v for k, v in before.config.items() if k != "schedule"}
        rows = plan(schedule, self.rows_config)
        self.pipeline.scheduler = StepScheduler.from_config(config, schedule=rows)
        try:
            yield
        finally:
            self.pipeline.scheduler = before


@contextmanager
def counting(nets: Iterable[Any]) -> Iterator[list[int]]:
    """Rows that networks get: one for each image and pass."""
    rows = [0]

    def count(_net: Any, args: Any, kwargs: Any) -> None:
        rows[0] += len(first_input(args, kwargs))

    handles = [net.register_forward_pre_hook(count, with_kwargs=True) for net in nets]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def _bare(schedule: Schedule) -> str:
    return replace(schedule, provenance={}).to_json()


def _pictures(made: Any) -> Tensor:
    """Of a pipeline's output: (n, 3, height, width), or (n, frames, 3, height, width)."""
    values = torch.from_numpy(np.stack([np.asarray(each) for each in made]))
    if values.dtype == torch.uint8:
        values = values / 255
    values = values.movedim(-1, -3)
    return values.expand(*values.shape[:-3], 3, -1, -1).float()
