"""A search whose measurements cost nothing: what is left is what storages and algorithms cost."""

import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from cluster.builds import clock
from stepsampler.noise import NoiseSchedule
from stepsampler.schedule import Schedule
from stepsearch.config import StudyConfig
from stepsearch.metrics.distance import Moments
from stepsearch.metrics.evaluator import Measurement
from stepsearch.space.box import SearchSpace

NAME, GRID, FLOOR = "bench", "kl-optimal", 0.5
IMAGES, AXES, BEST = 250, 128, 0.05  # BEST: the last level of the best schedule


def settings(trials: int, algorithm: str = "random", steps: int = 3) -> StudyConfig:
    """A study like the tiny ones, of a budget."""
    return StudyConfig.model_validate(
        {
            "name": NAME,
            "space": {
                "num_steps": steps,
                "passes": 2 * steps,
                "max_steps": 2 * steps - 1,
                "guidance": "per-step",
            },
            "evaluation": {"images": IMAGES},
            "search": {"trials": trials, "algorithm": algorithm},
        }
    )


@dataclass
class Stub:
    """In an evaluator's place: features that are the further off the worse the last level is."""

    seconds: float = 0.0
    seed: int = 0
    saved: int = 0  # passes whose answer was known

    def __post_init__(self) -> None:
        self.model = SimpleNamespace(
            noise=NoiseSchedule.scaled_linear(), guidance="classifier-free"
        )
        self.model.spec = self.model.noise.spec("stable-diffusion", "epsilon")
        self.reference = SimpleNamespace(
            metric="fd_stub128", parts=(), search=Moments(np.zeros(AXES), np.eye(AXES), 10_000)
        )
        self.identity, self.slept, self.at = "stub", 0.0, list[float]()
        self._draw = np.random.default_rng(self.seed)
        self._rows = self._draw.normal(size=(IMAGES, AXES)).astype(np.float32)

    def measure(self, schedule: Schedule, seeds: range) -> Measurement:
        began = clock()
        self.at.append(time.process_time())
        if self.seconds:
            time.sleep(self.seconds * self._draw.uniform(0.8, 1.2))
        aligned = np.ones(len(seeds), np.float32)
        aligned[: len(seeds) // 20] = 0
        found = Measurement(self._rows[: len(seeds)] + off(schedule), aligned)
        self.slept += clock() - began
        return found

    def space(self, config: StudyConfig) -> SearchSpace:
        return SearchSpace(config.space, self.model.noise, self.model.spec, GRID)


def off(schedule: Schedule) -> np.float32:
    """How far off the features are."""
    return np.float32(abs(np.log(schedule.steps[-1].sigma / BEST)) / 3)
