"""A tableau whose numbers are tensors: gradients of what the sampler makes, down to its schedule.

The loop of the sampler is run with weights, sigmas and guidance scales that know how they follow
from some parameters: by central differences, since they are plain numbers of a few parameters.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepsampler.errors import UserError
from stepsampler.models import LatentModel
from stepsampler.models.model import is_quantised
from stepsampler.sample import Denoiser
from stepsampler.schedule import Schedule, Step
from stepsampler.solvers import Row, Update, tableau

NUDGE = 0.003  # of a sigma, to see how a float32 prediction depends on it
# Networks answer to the time roughly from timestep to timestep; over this much their slope is that
# over steps as large as those of a level that is learned.
FAR = 0.03
DIFFERENCE = 1e-4  # of a parameter, up and down


def check_gradients(model: LatentModel, name: str) -> None:
    """Refuse networks from which the method `name` could not learn.

    Raises:
        UserError: those in 16 bits, whose gradients are mostly rounding; quantised ones (the layers
            of some have a wrong gradient, and say nothing: findings/torchao_int8_gradient_lost.sh);
            and those that diffusers offloads in groups, whose weights leave the device before the
            gradient.
    """
    learns = f"{name} learns by gradients"
    if model.dtype != torch.float32:
        dtype = str(model.dtype).removeprefix("torch.")
        raise UserError(f"{learns}: the model's dtype must be float32, got {dtype}")
    for net in model.nets:
        hooks = [getattr(part, "_diffusers_hook", None) for part in net.modules()]
        grouped = any(known and known.get_hook("group_offloading") for known in hooks)
        what = "quantised" if is_quantised(net) else "offloaded in groups" if grouped else ""
        if what:
            of = type(model.pipeline).__name__
            raise UserError(f"{learns}: the network of the {of} is {what}, and none flows through")


class LiveTableau:
    """The rows of `schedule(parameters)`, and how their numbers change with each parameter."""

    def __init__(self, schedule: Callable[[Tensor], Schedule], parameters: Tensor) -> None:
        """`parameters`, of shape (k,) in float64, are taken as they are: without gradient."""
        here = parameters.detach()

        def numbers_at(moved: Tensor) -> NDArray[np.float64]:
            return np.array(_numbers(decoded_rows(schedule(moved))))

        self.rows = decoded_rows(schedule(here))
        columns = [
            (numbers_at(here + step) - numbers_at(here - step)) / (2 * DIFFERENCE)
            for step in DIFFERENCE * torch.eye(len(here), dtype=here.dtype)
        ]
        self.here, self.slopes = here, torch.from_numpy(np.stack(columns, 1))

    def at(self, parameters: Tensor) -> list[Row]:
        """The rows with tensors for all numbers that depend on `parameters`, where they are now."""
        shift = parameters - self.here
        numbers = [
            number + slope @ shift if slope.any() else number
            for number, slope in zip(_numbers(self.rows), self.slopes, strict=True)
        ]
        return _with(self.rows, iter(numbers))


def decoded_rows(schedule: Schedule) -> list[Row]:
    """The tableau whose last state is in the scale that `schedule.decode` asks for."""
    *rows, last = tableau(schedule)
    if schedule.decode == "x":
        return [*rows, last]
    scale = 1 / sqrt(1 + schedule.final_sigma**2)
    state, x0, points, _ = last.advance  # no rule has a constant
    scaled = Update(scale * state, tuple(scale * w for w in x0), tuple(scale * w for w in points))
    return [*rows, last._replace(advance=scaled)]


class Following:
    """A denoiser through which gradients flow to x, to a guidance scale and to a sigma.

    The prediction follows the sigma to first order, by a difference. Nothing of the network is
    kept between a call and its gradient, for which it is called again. The difference is over a
    share `nudge` of sigma.
    """

    def __init__(self, denoise: Denoiser, nudge: float = NUDGE) -> None:
        self.denoise, self.nudge = denoise, nudge

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        sigma, scale = step.sigma, step.guidance_scale
        here = replace(step, sigma=_plain(sigma), guidance_scale=_plain(scale))
        return _Called.apply(x, sigma, scale, self.denoise, here, self.nudge)  # type: ignore[no-any-return,no-untyped-call]


class _Called(torch.autograd.Function):
    """(x, sigma, guidance scale, …) -> x0."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        sigma: Tensor | float,
        scale: Tensor | float,
        denoise: Denoiser,
        step: Step,
        nudge: float,
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.denoise, ctx.step, ctx.nudge = denoise, step, nudge
        return denoise(x, step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,), (gradient,), step = ctx.saved_tensors, gradients, ctx.step
        of_x, of_sigma, of_scale, *_ = ctx.needs_input_grad
        found: list[Tensor | None] = [None, None, None]
        with torch.enable_grad():
            x = x.detach().requires_grad_(of_x)
            scale = torch.tensor(step.guidance_scale, dtype=torch.float64, requires_grad=of_scale)
            called = replace(step, guidance_scale=scale) if of_scale else step
            x0 = ctx.denoise(x, called)
            wanted = {i: t for i, t in ((0, x), (2, scale)) if t.requires_grad}
            if wanted:
                parts = torch.autograd.grad(x0, list(wanted.values()), gradient)
                for i, part in zip(wanted, parts, strict=True):
                    found[i] = part
        if of_sigma:
            with torch.no_grad():
                below = ctx.denoise(x.detach(), replace(step, sigma=step.sigma * (1 - ctx.nudge)))
                slope = (x0.detach() - below) / (step.sigma * ctx.nudge)
                found[1] = (gradient * slope).sum(dtype=torch.float64).cpu()
        return (*found, None, None, None)


def _plain(value: Tensor | float) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else value


def _numbers(rows: Sequence[Row]) -> list[float]:
    """All that a tableau says in numbers, row by row."""
    found: list[float] = []
    for row in rows:
        found += [row.step.sigma, row.step.guidance_scale, row.fresh]
        for update in (row.correct, row.advance):
            if update:
                found += [update.state, *update.x0, *update.points]
    return found


def _with(rows: Sequence[Row], rest: Iterator[Any]) -> list[Row]:
    """The tableau with other numbers, of which some are tensors that gradients flow through."""

    def fill(update: Update) -> Update:
        return Update(
            next(rest),
            tuple(next(rest) for _ in update.x0),
            tuple(next(rest) for _ in update.points),
        )

    found = []
    for row in rows:
        step = replace(row.step, sigma=next(rest), guidance_scale=next(rest))
        fresh = next(rest)
        correct = fill(row.correct) if row.correct else None
        advance = fill(row.advance)
        found.append(row._replace(step=step, correct=correct, advance=advance, fresh=fresh))
    return found
