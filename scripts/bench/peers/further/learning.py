"""Schedules that learn by gradients of other losses than ours, with the freedom of a polish.

The knobs are those of `stepsearch polish`: levels, guidance scales and weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from stepsampler.generate import seeded_noise
from stepsampler.models import LatentModel
from stepsampler.sample import execute
from stepsampler.schedule import Schedule
from stepsearch.metrics.alignment import Prompt
from stepsearch.metrics.features import Judge
from stepsearch.polish.knobs import Knobs
from stepsearch.rivals.ld3 import CHECK, ITERATIONS
from stepsearch.rivals.live import FAR, Following, LiveTableau, decoded_rows
from stepsearch.rivals.placement import Counting

PART = 10  # images of an iteration
BETAS = (0.8, 0.98)  # of Adam, for few iterations
LAST = 0.1  # share of the first rate that the last iteration has; between them it falls evenly


@dataclass(frozen=True)
class Part:
    """Noise of a few seeds, the model on their prompts, and what the end is held against."""

    ask: Counting
    labels: Tensor  # classes, (n,)
    goal: Tensor | None = None  # the teacher's end, of the shape of the noise


Loss = Callable[[Tensor, Part], Tensor]  # of the end latents


def parts_of(
    model: LatentModel, prompts: Sequence[Prompt], seeds: range, goals: Tensor | None = None
) -> list[Part]:
    """Seed s has prompt s; of `goals` the first is of the first seed."""
    found = []
    for k in range(0, len(seeds), PART):
        batch = seeds[k : k + PART]
        asked = [prompts[seed % len(prompts)] for seed in batch]
        noise = seeded_noise(batch, model.shape)
        ask = Counting(model, [prompt.text for prompt in asked], "", noise)
        labels = torch.tensor([prompt.label for prompt in asked])
        found.append(Part(ask, labels, None if goals is None else goals[k : k + PART]))
    return found


def regression(end: Tensor, part: Part) -> Tensor:
    """As LD3 and S4S (arXiv 2502.17423) learn: the squared distance from the teacher's end."""
    return (end - part.goal).square().mean()


def live_pixels(images: Tensor) -> Tensor:
    """The whole numbers that images in [-1, 1], (n, 1 or 3, height, width), are saved as, of three
    channels, as floats; to a gradient the rounding is not there, the clamp is."""
    x = (images.float() / 2 + 0.5).clamp(0, 1).expand(-1, 3, -1, -1) * 255
    return x.detach().round() + (x - x.detach())


@dataclass(frozen=True)
class Classified:
    """As Dual-Solver (arXiv 2603.03973) learns: cross-entropy of a frozen classifier, in nats."""

    model: LatentModel
    judge: Judge

    def __call__(self, end: Tensor, part: Part) -> Tensor:
        images = live_pixels(self.model._decoded(end))
        return cross_entropy(self.judge.live(images), part.labels)


@dataclass(frozen=True)
class Learned:
    """The best iterate on the held-out part, and the loss there before and after."""

    schedule: Schedule
    before: float
    after: float
    passes: int


def learn(
    starts: Sequence[Schedule],
    train: Sequence[Part],
    held_out: Sequence[Part],
    loss: Loss,
    iterations: int = ITERATIONS,
) -> Learned:
    """Adam from the start of least loss; each iteration takes the next part of `train`.

    A corrector of UniPC's has no weights of its own: starts go without.
    """

    def end(part: Part, rows: Sequence, ask: Callable) -> Tensor:
        *_, latents = execute(ask, part.ask.latents * rows[0].step.sigma, rows)
        return latents

    @torch.no_grad()
    def check(schedule: Schedule) -> float:
        rows = decoded_rows(schedule)
        return float(np.mean([float(loss(end(part, rows, part.ask), part)) for part in held_out]))

    values = [check(plain(start)) for start in starts]
    before = least = min(values)
    start = best = plain(starts[values.index(least)])
    knobs = Knobs(start, "weights")
    moved = knobs.zero().requires_grad_()  # in units of the rates
    adam = torch.optim.Adam([moved], 1.0, BETAS)
    slowing = torch.optim.lr_scheduler.LinearLR(adam, 1.0, LAST, iterations)
    for k, part in enumerate(islice(cycle(train), iterations), 1):
        adam.zero_grad()
        parameters = moved * knobs.rates
        rows = LiveTableau(knobs.schedule, parameters).at(parameters)
        with torch.enable_grad():
            loss(end(part, rows, Following(part.ask, nudge=FAR)), part).backward()
        adam.step()
        slowing.step()
        if k % CHECK == 0 or k == iterations:
            now = knobs.schedule(moved.detach() * knobs.rates)
            if (value := check(now)) < least:
                best, least = now, value
    passes = sum(part.ask.passes for part in [*train, *held_out])
    return Learned(best, before, least, passes)


def plain(schedule: Schedule) -> Schedule:
    """Without correctors."""
    steps = tuple(replace(step, corrector=False) for step in schedule.steps)
    return replace(schedule, steps=steps)
