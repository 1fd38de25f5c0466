"""GITS: the few of many levels along which a trajectory bends least."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepsampler.noise import NoiseSchedule
from stepsampler.sample import Denoiser
from stepsearch.rivals.teacher import teacher_states

POINTS = 61  # of the teacher's grid, polynomial with rho 7; both as the authors have them
RHO = 7.0


def gits(
    num_steps: int,
    noise: NoiseSchedule,
    denoise: Denoiser,
    latents: Tensor,
    guidance_scale: float = 1.0,
    coefficient: float = 1.15,
) -> list[float]:
    """The num_steps + 1 falling sigmas of Chen et al. 2024 (GITS, algorithm 1).

    `latents` is standard normal noise of shape (n, ...); the authors take n = 256. A `coefficient`
    above 1 moves steps towards the image.
    """
    ends = noise.sigma_max ** (1 / RHO), noise.sigma_min ** (1 / RHO)
    sigmas = (np.linspace(*ends, POINTS) ** RHO).tolist()
    states, directions = teacher_states(denoise, latents, sigmas, guidance_scale, "ipndm", 4)
    path = cheapest_path(costs(states, directions, sigmas), num_steps, coefficient)
    return [sigmas[i] for i in path]


def costs(states: Tensor, directions: Tensor, sigmas: list[float]) -> NDArray[np.float64]:
    """How much farther than the teacher one Euler step from level i to j leaves the straight line.

    The line is that from the noise to the sample; the mean over samples; infinite for j <= i.
    """
    start, end = states[0], states[-1]
    own = _deviation(states, start, end)
    matrix = np.full((len(sigmas), len(sigmas)), np.inf)
    for i, (x, d) in enumerate(zip(states[:-1], directions, strict=True)):
        gaps = torch.tensor([s - sigmas[i] for s in sigmas[i + 1 :]], dtype=x.dtype)
        jumps = x + gaps.to(x.device).view(-1, *[1] * x.ndim) * d
        matrix[i, i + 1 :] = (_deviation(jumps, start, end) - own[i + 1 :]).cpu().numpy()
    return matrix


def _deviation(points: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Distance from the line through `start` and `end`, the mean over samples; shape (points,)."""
    away = (points - start).flatten(2)
    line = (end - start).flatten(1)
    line = line / line.norm(dim=1, keepdim=True)
    along = (away * line).sum(2, keepdim=True) * line
    distances: Tensor = (away - along).norm(dim=2)
    return distances.mean(1)


def cheapest_path(
    matrix: NDArray[np.float64], num_steps: int, coefficient: float = 1.0
) -> list[int]:
    """Indices from 0 to the last in `num_steps` jumps of least cost, by dynamic programming.

    The k-th jump counts `coefficient` to the power k.
    """
    last = len(matrix) - 1
    cost = matrix[:, last].copy()  # of one jump to the end
    choices = []
    for _ in range(num_steps - 1):
        through = matrix + coefficient * cost[None, :]
        choices.append(through.argmin(1))
        cost = through.min(1)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return [*path, last]
