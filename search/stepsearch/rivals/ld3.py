"""LD3-like: the placement whose end points are nearest to the teacher's, by gradient descent."""

from collections.abc import Sequence
from itertools import cycle, islice

import numpy as np
import torch
from torch import Tensor

from stepsampler.grids import from_sigmas, kl_optimal, linspace
from stepsampler.noise import Noise, NoiseSchedule, timesteps_to_sigmas
from stepsampler.sample import Denoiser, execute, sample
from stepsampler.schedule import ModelSpec, Schedule
from stepsearch.rivals.dmn import dmn
from stepsearch.rivals.live import Following, LiveTableau
from stepsearch.rivals.teacher import TEACHER_STEPS, teacher_states

SOLVER, ORDER = "dpmpp-midpoint", 2  # of teacher and student
ITERATIONS, RATE = 40, 0.05  # of Adam
CHECK = 10  # iterations between looks at the held-out part

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
        rows = LiveTableau(self.schedule, gaps).at(gaps)
        *_, end = execute(Following(denoise), latents * self.noise.sigma_max, rows)
        return end
