"""The one loop that executes a tableau."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor

from stepsampler.schedule import Schedule, Step
from stepsampler.solvers import Row, Update, tableau


class Denoiser(Protocol):
    """Predicts x0 from x at `step.sigma`; shapes of `x` and the result are equal."""

    def __call__(self, x: Tensor, step: Step) -> Tensor: ...


class Statistics(Protocol):
    """Of the model at hand, for schedules whose solver goes by them."""

    def rows(self, schedule: Schedule, device: torch.device) -> list[Row]:
        """The tableau; its tensors are of the shape of a latent."""
        ...


def trajectory(
    denoise: Denoiser,
    noise: Tensor,
    schedule: Schedule,
    draw: Callable[[], Tensor] | None = None,
    statistics: Statistics | None = None,
) -> Iterator[Tensor]:
    """Yield the state after each step; the last one is the sample at `final_sigma`.

    `noise` is standard normal, of shape (n, ...); `draw` gives more of it to steps with churn.
    States are x0 + sigma * noise, and those of a flow model (1 - sigma) x0 + sigma * noise.
    """
    rows = statistics.rows(schedule, noise.device) if statistics else tableau(schedule)
    yield from execute(denoise, noise * schedule.steps[0].sigma, rows, draw)


def execute(
    denoise: Denoiser,
    start: Tensor,
    rows: Iterable[Row],
    draw: Callable[[], Tensor] | None = None,
    depth: int | None = None,
) -> Iterator[Tensor]:
    """Yield the state after each step of a tableau, from the state at its first level.

    With `depth`, the most predictions that an update takes, rows may be made as they are asked for,
    and the updates of each after its call; they have no fresh noise.
    """
    if depth is None:
        rows = list(rows)
        if draw is None and any(row.fresh for row in rows):
            raise ValueError("the schedule has churn: it needs a source of noise")
        depth = max(len(u.x0) for row in rows for u in (row.advance, row.correct) if u)
    points: deque[Tensor] = deque(maxlen=depth)
    predictions: deque[Tensor] = deque(maxlen=depth)

    def apply(update: Update, state: Tensor, known: Iterable[Tensor] = predictions) -> Tensor:
        x = update.state * state
        for weight, x0 in zip(update.x0, known, strict=False):
            x = x + weight * x0
        for weight, point in zip(update.points, points, strict=False):
            x = x + weight * point
        return x if update.constant is None else x + update.constant

    point = state = start
    for row in rows:
        if row.alone:
            point = apply(row.advance, point, [_predict(denoise, point, row.step)])
            continue
        points.appendleft(point)
        reused = row.step.x0_reuse
        x0 = predictions[0] if reused else _predict(denoise, point, row.step)
        predictions.appendleft(x0)
        state = apply(row.correct, state) if row.correct else point
        point = apply(row.advance, state)
        if row.fresh and draw:
            point = point + row.fresh * draw()
        if row.ends:
            yield point


def _predict(denoise: Denoiser, x: Tensor, step: Step) -> Tensor:
    """The network's x0, or that of an analytic step, whose epsilon is x at unit variance."""
    if step.analytic is None:
        return denoise(x, step)
    return (1 - step.analytic * step.sigma / sqrt(1 + step.sigma**2)) * x


def sample(
    denoise: Denoiser,
    noise: Tensor,
    schedule: Schedule,
    draw: Callable[[], Tensor] | None = None,
    statistics: Statistics | None = None,
) -> Tensor:
    """The last state of `trajectory`, in the scale that `schedule.decode` asks for."""
    *_, x = trajectory(denoise, noise, schedule, draw, statistics)
    return x if schedule.decode == "x" else x / sqrt(1 + schedule.final_sigma**2)
