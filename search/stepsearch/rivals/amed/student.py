"""The solver that a predictor steers: each interval of its grid gets a step where it is told.

It is the loop of the sampler, on rows whose numbers are found as it goes: a tensor with a number
for each image, since each image has levels of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepsampler.denoiser import GuidedDenoiser
from stepsampler.errors import UserError
from stepsampler.grids import from_sigmas
from stepsampler.models import LatentModel, Model
from stepsampler.noise import NoiseSchedule, timesteps_to_sigmas
from stepsampler.sample import Denoiser
from stepsampler.schedule import ModelSpec, Schedule, Step
from stepsampler.solvers import Levels, Row, Update, multistep
from stepsearch.rivals.amed.predictor import Setting, Told

NUDGE = 0.03  # of what a network is told: over less than a timestep it answers by chance
DIFFERENCE = 1e-4  # of r, up and down
EDGE = 1e-3  # r stays so far from 0 and 1, where two levels would be one
Choose = Callable[[int], Told]  # of an interval, once the network was called at its beginning


class LateRow(Row):
    """A row whose update is known only after its network call."""

    make: Callable[[], Update]

    @property
    def advance(self) -> Update:
        return self.make()


class Student:
    """The rows of a setting on a model's noise levels; the grid is even in timesteps.

    Raises:
        UserError: a model that is not variance-preserving.
    """

    def __init__(self, setting: Setting, noise: object) -> None:
        if not isinstance(noise, NoiseSchedule):
            raise UserError("amed is for variance-preserving models only")
        if setting.afs and noise.ends_in_noise:
            raise UserError(
                "amed with an odd number of calls has an analytic first step, which no model with "
                f"zero terminal SNR has, got {setting.calls}"
            )
        self.setting = setting
        self._noise = noise
        times = np.linspace(noise.last, 0, setting.intervals + 1)
        self.grid = timesteps_to_sigmas(noise, times)

    @property
    def depth(self) -> int:
        return self.setting.order

    def passes(self, model: Model) -> int:
        """Network passes an image: a guided call is two, unless the guidance is distilled."""
        guided = self.setting.guidance_scale != 1 and model.guidance != "distilled"
        return self.setting.calls * (2 if guided else 1)

    def order(self, i: int) -> int:
        """Of step i: as diffusers lowers it, in the first steps and the last."""
        return min(self.setting.order, i + 1, self.setting.num_steps - i)

    def rows(self, choose: Choose) -> Iterator[Row]:
        """Two for each interval; `choose` is asked when the first one's call is made."""
        s, rs = self.setting, list[Tensor]()
        for k in range(s.intervals):
            told: list[Told] = []

            def first(k: int = k, told: list[Told] = told) -> Update:
                found = choose(k)
                told.append(found._replace(r=found.r.clamp(EDGE, 1 - EDGE)))
                rs.append(told[0].r)
                return self.update(2 * k, rs)

            analytic = 1.0 if s.afs and k == 0 else None
            w = 1.0 if analytic else s.guidance_scale
            step = Step(self.grid[k], w, self.order(2 * k), analytic=analytic)
            row = LateRow(step, None, Update(1.0), ends=True)
            row.make = first
            yield row
            found, r = told[0], told[0].r
            middle = self.grid[k + 1] ** r * self.grid[k] ** (1 - r)
            here = Step(middle, s.guidance_scale, time_scale=found.time_scale)  # type: ignore[arg-type]
            yield Row(here, None, self.update(2 * k + 1, rs, found.gain), ends=True)

    def update(self, i: int, rs: list[Tensor], gain: Tensor | None = None) -> Update:
        """Of step i, with numbers of shape (n, 1, 1, 1) that follow the last of `rs`."""
        values = torch.stack([r.detach() for r in rs], 1).double().cpu().numpy()
        here = np.array([self._numbers(i, row) for row in values])
        numbers = torch.from_numpy(here).to(rs[-1])
        if rs[-1].requires_grad:
            moved = np.zeros_like(values)
            moved[:, -1] = DIFFERENCE
            up, down = (
                np.array([self._numbers(i, row) for row in values + sign * moved])
                for sign in (1, -1)
            )
            slope = torch.from_numpy((up - down) / (2 * DIFFERENCE)).to(rs[-1])
            numbers = numbers + slope * (rs[-1] - rs[-1].detach())[:, None]
        state, *rest = (column[:, None, None, None] for column in numbers.unbind(1))
        if gain is not None:
            rest = [gain[:, None, None, None] * weight for weight in rest]
        half = self.order(i)
        return Update(state, tuple(rest[:half]), tuple(rest[half:]))  # type: ignore[arg-type]

    def _numbers(self, i: int, rs: NDArray[np.float64]) -> list[float]:
        sigmas = [self.grid[0]]
        for k, r in enumerate(rs):
            cur, after = self.grid[k], self.grid[k + 1]
            sigmas += [float(after**r * cur ** (1 - r)), after]
        at = Levels([1.0] * len(sigmas), sigmas)
        s = self.setting
        found = multistep(at, i, s.solver, self.order(i), s.prediction)
        return [found.state, *found.x0, *found.points]

    def static(self, told: list[Told], model: ModelSpec | None, guidance: str) -> Schedule:
        """The schedule of what was told on average, an interval each."""
        s, sigmas, changes = self.setting, list[float](), list[dict[str, Any]]()
        for k, each in enumerate(told):
            r, gain, time = (float(values.double().mean()) for values in each)
            cur, after = self.grid[k], self.grid[k + 1]
            sigmas += [cur, after**r * cur ** (1 - r)]
            changes += [{}, {"gain": gain, "time_scale": time}]
        scales = [s.guidance_scale] * len(sigmas)
        plan = from_sigmas(sigmas, self.grid[-1], scales, s.order, s.solver, model, True)
        steps = [
            replace(step, prediction=s.prediction, **change)
            for step, change in zip(plan.steps, changes, strict=True)
        ]
        if s.afs:
            steps[0] = replace(steps[0], analytic=1.0, guidance_scale=1.0)
        return replace(plan, steps=tuple(steps), guidance=guidance)

    def teacher(self, model: ModelSpec | None, guidance: str) -> Schedule:
        """`between` steps in each interval, even in timesteps."""
        s, noise = self.setting, self._noise
        count = (s.between + 1) * s.intervals
        *sigmas, final = timesteps_to_sigmas(noise, np.linspace(noise.last, 0, count + 1))
        scales = [s.guidance_scale] * count
        plan = from_sigmas(sigmas, final, scales, s.order, s.solver, model, True)
        steps = tuple(replace(step, prediction=s.prediction) for step in plan.steps)
        return replace(plan, steps=steps, guidance=guidance)


class Middle:
    """What the middle of a U-Net gave in its last call: a mean over channels, under the prompts.

    Raises:
        UserError: a model without such a middle.
    """

    def __init__(self, model: Model) -> None:
        block = getattr(model.net, "mid_block", None)
        if not isinstance(model, LatentModel) or block is None:
            raise UserError(
                "amed looks at the middle of a U-Net, which our own loop calls: a "
                f"{type(model.pipeline).__name__} has none"
            )
        self.block, self.last = block, torch.empty(0)

    @contextmanager
    def watched(self) -> Iterator["Middle"]:
        def keep(_net: object, _inputs: object, output: Tensor) -> None:
            self.last = output.detach()

        handle = self.block.register_forward_hook(keep)
        try:
            yield self
        finally:
            handle.remove()

    def of(self, n: int) -> Tensor:
        """(n, bottleneck); of a doubled batch, the half under the prompts, which is the second."""
        return self.last[-n:].float().mean(1).flatten(1)


class PerImage(GuidedDenoiser):
    """A denoiser that may be called with a sigma and a time for each image, of shape (n,)."""

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        sigma: float | Tensor = step.sigma
        if not isinstance(sigma, Tensor):
            return super().__call__(x, step)
        told = sigma * step.time_scale
        sigma = sigma[:, None, None, None]
        x0 = self._told(x, sigma, told.detach(), step)
        if not told.requires_grad:
            return x0
        with torch.no_grad():
            below = self._told(x, sigma, told * (1 - NUDGE), step)
            slope = (x0 - below) / (told * NUDGE)[:, None, None, None]
        return x0 + slope * (told - told.detach())[:, None, None, None]

    def _told(self, x: Tensor, sigma: Tensor, told: Tensor, step: Step) -> Tensor:
        """x0 of x at `sigma`, where the network is told the times of other levels."""
        times = self._times(told)
        alpha = (1 + sigma**2).rsqrt()
        output = self._output(alpha * x, times, step)  # type: ignore[arg-type]
        if self.prediction_type == "sample":
            return output
        if self.prediction_type == "epsilon":
            return x - sigma * output
        return alpha**2 * x - alpha * sigma * output

    def _times(self, sigmas: Tensor) -> Tensor:
        """Fractional timesteps, log sigma being linear between whole ones; clamped."""
        assert isinstance(self.noise, NoiseSchedule)
        known = torch.from_numpy(self.noise.log_sigmas).to(sigmas)
        logs = sigmas.log()
        right = torch.searchsorted(known, logs.detach().contiguous()).clamp(1, len(known) - 1)
        low, high = known[right - 1], known[right]
        share = ((logs - low) / (high - low)).clamp(0, 1)
        return right - 1 + share


def denoiser(model: LatentModel, texts: list[str], negative: str) -> Denoiser:
    """Of prompts on a model; no inference tensor, so that gradients flow."""
    cond, uncond = model.encode(texts), model.encode([negative] * len(texts), negative=True)
    plain = model.denoiser(
        {k: v.clone() for k, v in cond.items()}, {k: v.clone() for k, v in uncond.items()}
    )
    assert isinstance(plain, GuidedDenoiser)  # of a U-Net
    names = ("network", "noise", "prediction_type", "cond", "uncond", "distilled")
    return PerImage(**{name: getattr(plain, name) for name in names}, combine=plain.combine)
