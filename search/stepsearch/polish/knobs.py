"""What a polish turns: the numbers of a schedule as one vector, which is 0 at the schedule."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from stepsampler.grids import is_guided
from stepsampler.schedule import Schedule, Step
from stepsampler.solvers import shares
from stepsearch.config import StudyConfig
from stepsearch.config.space import SpaceConfig

Freedom = Literal["one-gain", "gain", "weights", "none"]
PAST = 2  # predictions that a step's own weights are of, where its rule takes no more
ALL = "of all"  # place of a number that all steps share
# The unit of a move, for each kind: a relative change over which features follow in a line.
RATES = {"gap": 0.02, "end": 0.02, "scale": 0.02, "gain": 0.025, "weight": 0.025}


def numbers_of(config: StudyConfig) -> dict[str, Any]:
    """What of `Knobs` moves in a study: what its box searches one by one, and perhaps gains.

    Without them what comes out can be exported wherever what the box finds can be.
    """
    space = config.space
    return {
        "freedom": "one-gain" if space.gain or config.search.polish_gain else "none",
        "levels": space.placement == "curve" and not space.whole_timesteps,
        "one_scale": space.guidance == "constant",
    }


def most_numbers(space: SpaceConfig) -> int:
    """Of a schedule of a study at most: levels, scales of guided ones, and a gain of all.

    An analytic step is one more; one that reuses guidance has a scale, but no pass for it.
    """
    steps, spare = space.most_steps, max(0, space.passes - space.most_steps)
    guided = steps if space.reuse > 1 else min(steps, spare)
    return steps + bool(space.analytic) + 1 + guided + 1


@dataclass(frozen=True)
class Knobs:
    """The parameters around a schedule, in float64 and without units.

    gap     logarithms of the gaps in log sigma between the first level and the last positive one
    end     logarithm of that last one, which is the final sigma unless that is 0
    scale   logarithm of the strength w - 1 of each guided step, where it is above 0; or, with
            `one_scale`, of all of them
    gain    logarithm of one factor of the gains of all steps; or of each step's; or
    weight  what is added to the shares of its rule (`solvers.shares`)

    Which of these, `freedom` says; a step with a corrector, or of Heun's, has a gain, no weights.
    The first level stays.
    """

    start: Schedule
    freedom: Freedom = "weights"
    levels: bool = True
    one_scale: bool = False

    @property
    def names(self) -> list[str]:
        """Kind and place of each parameter."""
        return [f"{kind} {place}" for kind, place in self._places()]

    @property
    def rates(self) -> Tensor:
        return torch.tensor([RATES[kind] for kind, _ in self._places()], dtype=torch.float64)

    def zero(self) -> Tensor:
        """The parameters of the schedule itself."""
        return torch.zeros(len(self.names), dtype=torch.float64)

    def schedule(self, parameters: Tensor | Sequence[float]) -> Schedule:
        """The schedule at some parameters.

        Raises:
            ScheduleError: there is none, as two levels coincide.
        """
        values = [float(x) for x in parameters]
        at = dict(zip(self._places(), values, strict=True))
        sigmas = self._sigmas(at)
        final = 0.0 if self.start.final_sigma == 0 else sigmas.pop()
        moved = [replace(s, sigma=x) for s, x in zip(self.start.steps, sigmas, strict=True)]
        plan = replace(self.start, steps=tuple(moved), final_sigma=final)
        steps = [self._step(plan, i, at) for i in range(plan.num_steps)]
        return replace(plan, steps=tuple(steps))

    def _places(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        gaps = len(self._positive) - 1
        if self.levels and gaps > 1:
            found += [("gap", str(i)) for i in range(gaps)]
        if self.levels and gaps > 0:
            found.append(("end", ""))
        # a distilled network is told the scale
        free = [i for i, step in enumerate(self.start.steps) if self._strengthened(step)]
        if self.one_scale:
            found += [("scale", ALL)] if free else []
        else:
            found += [("scale", str(i)) for i in free]
        if self.freedom == "one-gain":
            return [*found, ("gain", ALL)]
        for i, step in enumerate(self.start.steps):
            if self.freedom == "weights" and self._own(step):
                found += [("weight", f"{i}, {j}") for j in range(self._count(i))]
            elif self.freedom != "none":
                found.append(("gain", str(i)))
        return found

    def _strengthened(self, step: Step) -> bool:
        guided = is_guided(step) and self.start.guidance != "distilled"
        return guided and step.guidance_scale > 1

    def _own(self, step: Step) -> bool:
        return not step.corrector and self.start.solver != "heun"

    def _count(self, i: int) -> int:
        return max(self.start.steps[i].order, min(PAST, i + 1))

    @property
    def _positive(self) -> list[float]:
        return [sigma for sigma in self.start.sigmas if sigma > 0]

    def _sigmas(self, at: dict[tuple[str, str], float]) -> list[float]:
        """The positive levels, falling."""
        if ("end", "") not in at:
            return self._positive
        logs = np.log(self._positive)
        gaps = -np.diff(logs)
        stretch = [at.get(("gap", str(i)), 0.0) for i in range(len(gaps))]
        # a schedule may end anywhere below its first level, near which it may not come
        end = logs[0] - (logs[0] - logs[-1]) * exp(-at["end", ""] / (logs[0] - logs[-1]))
        gaps = gaps * np.exp(stretch)
        inner = logs[0] - (logs[0] - end) * np.cumsum(gaps) / gaps.sum()
        return [self._positive[0], *np.exp(inner).tolist()]

    def _step(self, plan: Schedule, i: int, at: dict[tuple[str, str], float]) -> Step:
        step = plan.steps[i]
        place = ("scale", ALL if self.one_scale else str(i))
        if place in at and self._strengthened(step):
            scale = 1 + (step.guidance_scale - 1) * exp(at[place])
            step = replace(step, guidance_scale=scale)
        for gain in (("gain", ALL), ("gain", str(i))):
            if gain in at:
                step = replace(step, gain=step.gain * exp(at[gain]))
        if ("weight", f"{i}, 0") in at:
            count = self._count(i)
            rule = shares(plan, i)
            padded = [*rule, *[0.0] * (count - len(rule))]
            own = [w + at["weight", f"{i}, {j}"] for j, w in enumerate(padded)]
            step = replace(step, weights=tuple(own), order=count)
        return step
