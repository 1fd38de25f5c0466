"""The one loop that executes a tableau."""

from collections import deque
from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from stepsampler.schedule import Schedule
from stepsampler.solvers import tableau


class Denoiser(Protocol):
    """Predicts x0 from x = x0 + sigma * noise; shapes of `x` and the result are equal."""

    def __call__(self, x: Tensor, sigma: float, guidance_scale: float) -> Tensor: ...


def trajectory(denoise: Denoiser, noise: Tensor, schedule: Schedule) -> Iterator[Tensor]:
    """Yield the state after each step; the last one is the sample at `final_sigma`.

    `noise` is standard normal, of shape (n, ...).
    """
    rows = tableau(schedule)
    predictions: deque[Tensor] = deque(maxlen=max(len(row.weights) for row in rows))
    x = noise * schedule.steps[0].sigma
    for step, row in zip(schedule.steps, rows, strict=True):
        predictions.appendleft(denoise(x, step.sigma, step.guidance_scale))
        x = row.decay * x
        for weight, x0 in zip(row.weights, predictions, strict=False):
            x = x + weight * x0
        yield x


def sample(denoise: Denoiser, noise: Tensor, schedule: Schedule) -> Tensor:
    """The last state of `trajectory`."""
    *_, x = trajectory(denoise, noise, schedule)
    return x
