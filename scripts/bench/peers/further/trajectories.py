"""What a teacher's trajectories say: where to call, and where to reuse the last answer.

A teacher is DPM++(2M) on even timesteps, as LD3's. Its states are looked at as the network sees
them, x / sqrt(1 + sigma^2): at a high level an error of x counts for little.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepsampler.generate import seeded_noise
from stepsampler.models import LatentModel
from stepsampler.noise import timesteps_to_sigmas
from stepsampler.schedule import Schedule, Step
from stepsearch.paths import recall, write_whole
from stepsearch.rivals.gits import cheapest_path
from stepsearch.rivals.placement import Counting
from stepsearch.rivals.teacher import TEACHER_STEPS, teacher_states

SCALE = 2.0  # of the teacher's guidance
BATCH = 24  # of its images at once


@dataclass(frozen=True)
class Trajectories:
    """Of some seeds: states (51, n, ...) at the levels, and dx/dsigma (50, n, ...) from them."""

    levels: NDArray[np.float64]  # timesteps, even
    sigmas: list[float]
    states: Tensor
    directions: Tensor

    def __getitem__(self, part: slice) -> "Trajectories":
        """Of some of the images."""
        states, directions = self.states[:, part], self.directions[:, part]
        return Trajectories(self.levels, self.sigmas, states, directions)

    @property
    def passes(self) -> int:
        return 2 * len(self.directions) * self.states.shape[1]


def teach(model: LatentModel, prompts: Sequence[str], seeds: range, folder: Path) -> Trajectories:
    """The teacher's trajectories, from the file of an earlier run where there is one."""
    levels = np.linspace(model.noise.last, 0, TEACHER_STEPS + 1)
    sigmas = timesteps_to_sigmas(model.noise, levels)
    path = folder / f"teacher-{SCALE:g}-{seeds.start}-{seeds.stop}.safetensors"
    found = recall(path, load_file) if path.exists() else None
    if found is None:
        parts = []
        for k in range(0, len(seeds), BATCH):
            batch = seeds[k : k + BATCH]
            texts = [prompts[seed % len(prompts)] for seed in batch]
            ask = Counting(model, texts, "", seeded_noise(batch, model.shape))
            order = 2 if sigmas[-1] else 1
            how = (sigmas, SCALE, "dpmpp-midpoint", order, model.spec)
            parts.append(teacher_states(ask, ask.latents, *how))
        states, directions = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        found = {"states": states, "directions": directions}
        write_whole(path, partial(save_file, found))
    return Trajectories(levels, sigmas, found["states"], found["directions"])


def reuse_costs(taught: Trajectories) -> NDArray[np.float64]:
    """How far a call at level i that is reused until level j lands from the teacher's state there.

    From the teacher's own state at i; root mean square over entries, mean over images; infinite for
    j <= i. A straight line keeps its x0 and its epsilon, so that it is the same which is reused.
    """
    sigmas = torch.tensor(taught.sigmas)
    found = np.full((len(sigmas), len(sigmas)), np.inf)
    for i, (x, d) in enumerate(zip(taught.states[:-1], taught.directions, strict=True)):
        later = sigmas[i + 1 :].view(-1, *[1] * x.ndim)
        gaps = x + (later - sigmas[i]) * d - taught.states[i + 1 :]
        error = (gaps / (1 + later**2).sqrt()).flatten(2).square().mean(2).sqrt()
        found[i, i + 1 :] = error.mean(1).double().numpy()
    return found


def reusing(calls: int, taught: Trajectories, model: LatentModel) -> Schedule:
    """DDIM on the teacher's grid that calls the network so often, first at its first level.

    The others reuse. Which, has the least sum of `reuse_costs`, by dynamic programming: what LeMiCa
    (arXiv 2511.00090) and DPCache (2602.22654) do for the features of their networks.
    """
    called = set(cheapest_path(reuse_costs(taught), calls))
    steps = tuple(
        Step(sigma, SCALE) if i in called else Step(sigma, x0_reuse=True)
        for i, sigma in enumerate(taught.sigmas[:-1])
    )
    return Schedule(steps, taught.sigmas[-1], "ddim", model.spec)


def rotations(points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Total rotation, sqrt(curvature^2 + torsion^2) ds, of curves (steps, n, d) at each step.

    By Frenet and Serret in the three axes in which each curve is longest; the median over curves.
    """
    rates = []
    for curve in np.moveaxis(np.asarray(points, np.float64), 1, 0):
        centred = curve - curve.mean(0)
        _, _, axes = np.linalg.svd(centred, full_matrices=False)
        first = np.gradient(centred @ axes[:3].T, axis=0)
        second = np.gradient(first, axis=0)
        third = np.gradient(second, axis=0)
        normal = np.cross(first, second)
        speed, size = (np.linalg.norm(v, axis=1) + 1e-12 for v in (first, normal))
        torsion = (normal * third).sum(1) / size**2
        rates.append(np.hypot(size / speed**3, torsion) * speed)
    return np.median(rates, axis=0)


def tors(num_steps: int, taught: Trajectories, model: LatentModel) -> list[float]:
    """Levels, num_steps + 1, between which the trajectories turn equally far.

    After TORS (arXiv 2603.00763), of its abstract and summaries alone, which say: statistics of
    curvature and torsion of projected trajectories, and segments of equal total rotation.
    """
    scale = (1 + torch.tensor(taught.sigmas) ** 2).sqrt().view(-1, *[1] * (taught.states.ndim - 1))
    rate = rotations((taught.states / scale).flatten(2).numpy())
    turned = np.concatenate([[0], np.cumsum((rate[1:] + rate[:-1]) / 2)])
    levels = np.interp(np.linspace(0, turned[-1], num_steps + 1), turned, taught.levels)
    return list(timesteps_to_sigmas(model.noise, levels))
