"""LD3-like: the placement whose end points are nearest to the teacher's, by gradient descent.

The loop of the sampler is run with weights and sigmas that know how they follow from the placement.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stepsampler.grids import from_sigmas, kl_optimal, linspace
from stepsampler.noise import Noise, NoiseSchedule, timesteps_to_sigmas
from stepsampler.sample import Denoiser, execute, sample
from stepsampler.schedule import ModelSpec, Schedule, Step
from stepsampler.solvers import Row, Update, tableau
from stepsearch.rivals.dmn import dmn
from stepsearch.rivals.teacher import TEACHER_STEPS, teacher_states

SOLVER, ORDER = "dpmpp-midpoint", 2  # of teacher and student
ITERATIONS, RATE = 40, 0.05  # of Adam
CHECK = 10  # iterations between looks at the held-out part
NUDGE = 0.003  # of a sigma, to see how a float32 prediction depends on it

Part = tuple[Denoiser, Tensor]  # and the noise on which it knows what to show


def ld3(
    num_steps: int,
    noise: Noise,
    train: Sequence[Part],
    held_out: Sequence[Part],
    guidance_scale: float = 1.0,
    model: ModelSpec | None = None,
    iterations: int = ITERATIONS,
) -> list[float]:
    """The num_steps + 1 falling sigmas of least squared distance to the teacher's end points.

    After Tong et al. 2025 (LD3), without their second list of times for the network, which a
    schedule cannot hold, and without the freedom of the noise. The distance is between latents.
    Starts from the best of three known placements; each iteration takes the next part of `train`,
    and the iterate that is best on `held_out` is returned, the start included. Where the first and
    the last sigma lie is fixed.
    """
    student = _Student(num_steps, noise, guidance_scale, model)
    goals = [student.teacher(part) for part in train]
    truth = [student.teacher(part) for part in held_out]

    def check(gaps: Tensor) -> float:
        distances = [student.distance(gaps, *pair) for pair in zip(held_out, truth, strict=True)]
        return float(np.mean(distances))

    best = min(student.starts(), key=check)
    least = check(best)
    gaps = best.clone().requires_grad_()
    adam = torch.optim.Adam([gaps], RATE)
    for k, (part, goal) in enumerate(islice(cycle(zip(train, goals, strict=True)), iterations)):
        adam.zero_grad()
        with torch.enable_grad():
            (student.live(gaps, part) - goal).square().mean().backward()  # type: ignore[no-untyped-call]
        adam.step()
        if (k + 1) % CHECK == 0 or k + 1 == iterations:
            now = check(gaps.detach())
            if now < least:
                best, least = gaps.detach().clone(), now
    return student.sigmas(best)


class _Student:
    """Schedules by the logarithms of their gaps in timesteps, (num_steps,), up to a constant."""

    def __init__(
        self, num_steps: int, noise: Noise, guidance_scale: float, model: ModelSpec | None
    ) -> None:
        self.num_steps, self.noise, self.scale = num_steps, noise, guidance_scale
        self.model = model

    def starts(self) -> list[Tensor]:
        n, noise = self.num_steps, self.noise
        grids = [linspace(n, noise), kl_optimal(n, noise)]
        if isinstance(noise, NoiseSchedule):
            grids.append(dmn(n, noise))
        times = [[noise.timestep(sigma) for sigma in grid[:-1]] + [0.0] for grid in grids]
        return [torch.from_numpy(np.log(-np.diff(t))) for t in times]

    def sigmas(self, gaps: Tensor) -> list[float]:
        done = torch.cumsum(torch.softmax(gaps, 0), 0)[:-1].tolist()
        inner = [self.noise.last * (1 - share) for share in done]
        return timesteps_to_sigmas(self.noise, [self.noise.last, *inner, 0])

    def schedule(self, gaps: Tensor) -> Schedule:
        *sigmas, final = self.sigmas(gaps)
        scales = [self.scale] * self.num_steps
        return from_sigmas(sigmas, final, scales, ORDER, SOLVER, self.model)

    def teacher(self, part: Part) -> Tensor:
        denoise, latents = part
        levels = np.linspace(self.noise.last, 0, TEACHER_STEPS + 1)
        sigmas = timesteps_to_sigmas(self.noise, levels)
        order = ORDER if sigmas[-1] else 1
        states, _ = teacher_states(denoise, latents, sigmas, self.scale, SOLVER, order, self.model)
        return states[-1].clone()  # clone: not an inference tensor

    @torch.no_grad()
    def distance(self, gaps: Tensor, part: Part, goal: Tensor) -> float:
        end = sample(*part, self.schedule(gaps))
        return float((end - goal).square().mean())

    def live(self, gaps: Tensor, part: Part) -> Tensor:
        """The end point, from which gradients flow back to `gaps`."""
        denoise, latents = part
        rows = tableau(self.schedule(gaps.detach()))
        numbers = gaps.new_tensor(_numbers(rows))
        slopes = gaps.new_tensor(self._slopes(gaps.detach()))
        numbers = numbers + slopes @ (gaps - gaps.detach())
        *_, end = execute(_Following(denoise), latents * self.noise.sigma_max, _with(rows, numbers))
        return end

    def _slopes(self, gaps: Tensor) -> NDArray[np.float64]:
        """How the tableau's numbers change with each gap: central differences, (numbers, gaps)."""
        step = 1e-4
        columns = []
        for i in range(self.num_steps):
            ends = []
            for sign in (1, -1):
                moved = gaps.clone()
                moved[i] += sign * step
                ends.append(np.array(_numbers(tableau(self.schedule(moved)))))
            columns.append((ends[0] - ends[1]) / (2 * step))
        return np.stack(columns, 1)


class _Following:
    """A denoiser whose predictions follow a sigma that is a tensor, to first order."""

    def __init__(self, denoise: Denoiser) -> None:
        self.denoise = denoise

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        live = torch.as_tensor(step.sigma)
        sigma = float(live.detach())
        here, below = replace(step, sigma=sigma), replace(step, sigma=sigma * (1 - NUDGE))
        x0: Tensor = checkpoint(self.denoise, x, here, use_reentrant=False)  # saves memory
        with torch.no_grad():
            slope = (x0 - self.denoise(x, below)) / (sigma * NUDGE)
        return x0 + slope * (live - sigma)


def _numbers(rows: Sequence[Row]) -> list[float]:
    """All that a tableau says in numbers, row by row."""
    found: list[float] = []
    for row in rows:
        found.append(row.step.sigma)
        for update in (row.correct, row.advance):
            if update:
                found += [update.state, *update.x0, *update.points]
    return found


def _with(rows: Sequence[Row], numbers: Tensor) -> list[Row]:
    """The tableau with other numbers, of which some are tensors that gradients flow through."""
    rest = iter(numbers)

    def fill(update: Update) -> Update:
        return Update(
            next(rest),
            tuple(next(rest) for _ in update.x0),
            tuple(next(rest) for _ in update.points),
        )

    found = []
    for row in rows:
        step = replace(row.step, sigma=next(rest))
        correct = fill(row.correct) if row.correct else None
        found.append(row._replace(step=step, correct=correct, advance=fill(row.advance)))
    return found
