"""What the rows work on: pipelines, evaluators of a study, schedules; on one device."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from gpu import card, shapes
from stepsampler.grids import make_schedule
from stepsampler.models import from_pipeline, quiet
from stepsampler.schedule import Schedule
from stepsampler.support.pictures import save_png
from stepsearch.config import StudyConfig
from stepsearch.config.code import allow_code, load_function
from stepsearch.metrics.evaluator import Evaluator

SCALE = 3.0
PROMPTS = ("a red bag", "two blue shoes", "a coat", "a dress on a chair")
NAMES = {"sd15": "Stable Diffusion 1.5", "sdxl": "SDXL"}


class SkippedError(Exception):
    """What a row lacks here."""


class OutOfTimeError(BaseException):  # which nobody on the way takes for an error of theirs
    """A row has spent its seconds."""


@dataclass(frozen=True)
class Found:
    """What a row measured, in words; `held` is None where nothing was wanted of it."""

    measured: str
    held: bool | None
    value: float | None = None


@dataclass
class Bench:
    """One device for all rows. In a dry run models are tiny, and numbers mean nothing."""

    device: torch.device
    folder: Path
    dry: bool = False
    until: float = field(default=float("inf"))  # time.monotonic() at which the row is to end

    def __post_init__(self) -> None:
        quiet()
        allow_code(True)  # that of `shapes`, as the model of a study

    def left(self) -> float:
        """Seconds of the row."""
        return self.until - time.monotonic()

    def batch(self, name: str) -> int:
        """Images that go through the network at once."""
        return 2 if self.dry else {"sd15": 16, "sdxl": 8}[name]

    def pipeline(self, name: str) -> Any:
        """The same one at every call: on the device, bfloat16, or tiny in float32."""
        made = load_function("model", shapes.CODE[name, self.dry])()
        return made.to(self.device)

    def model(self, name: str) -> Any:
        return from_pipeline(self.pipeline(name))

    def plan(self, model: Any, steps: int, unguided: Sequence[int] = ()) -> Schedule:
        """Steps of DPM-Solver++(2M), all guided but those."""
        plan = make_schedule(
            "linspace", steps, model.noise, guidance_scale=SCALE, order=2, model=model.spec
        )
        scales = [1.0 if i in unguided else SCALE for i in range(steps)]
        steps_ = (replace(s, guidance_scale=w) for s, w in zip(plan.steps, scales, strict=True))
        return replace(plan, steps=tuple(steps_))

    def study(self, name: str, batch_size: int | str) -> StudyConfig:
        """Of a model of `shapes`, scored under EfficientNet-Lite0 against a few random pictures."""
        pictures, prompts = self.folder / f"pictures-{name}", self.folder / "prompts.txt"
        size = from_pipeline(self.pipeline(name)).size
        if not pictures.is_dir():
            pictures.mkdir()
            draw = torch.Generator().manual_seed(0)
            for k in range(8):
                image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=draw)
                save_png(image, pictures / f"{k}.png")
        prompts.write_text("\n".join(PROMPTS))
        evaluation = {"extractor": "lite0", "reference": str(pictures), "prompts": str(prompts)}
        return StudyConfig.model_validate(
            {
                "name": f"gpu-{name}",
                "model": {"code": shapes.CODE[name, self.dry]},
                "space": {"num_steps": 6, "passes": 12},
                "evaluation": {**evaluation, "rulers": [], "batch_size": batch_size},
            }
        )

    def evaluator(self, name: str, batch_size: int | str | None = None) -> Evaluator:
        """One whose cache is empty."""
        config = self.study(name, batch_size or self.batch(name))
        place = self.folder / f"cache-{time.monotonic_ns()}"
        return Evaluator(config, place, str(self.device))

    def seconds(self, run: Callable[[], object]) -> float:
        return card.seconds(run, self.device)

    def times(self, runs: Sequence[Callable[[], object]], rounds: int) -> list[float]:
        """Median seconds of each; they take turns, as often as the row's time allows."""
        first = [self.seconds(run) for run in runs]  # kernels are chosen, and compiled
        rounds = max(1, min(rounds, int(0.8 * self.left() / sum(first))))
        found: list[list[float]] = [[] for _ in runs]
        for k in range(rounds):
            for i in (range(len(runs)), reversed(range(len(runs))))[k % 2]:
                found[i].append(self.seconds(runs[i]))
        return [median(each) for each in found]
