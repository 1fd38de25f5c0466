"""What the formats share: samplers by name, numbers as text, the list of what is lost."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from math import isfinite
from typing import Any, NamedTuple

from stepsampler.errors import UserError
from stepsampler.grids import from_sigmas
from stepsampler.noise import Noise
from stepsampler.schedule import ModelSpec, Schedule, Step

# What reading JSON of another shape raises: a list for a number, a number beyond all floats, …
MALFORMED = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)


class Text(NamedTuple):
    """A schedule in another tool's words."""

    text: str
    lost: tuple[str, ...] = ()  # what it does not hold
    notes: tuple[str, ...] = ()  # what the tool does with it that is to be known


class Reading(NamedTuple):
    """What was read of another tool's text."""

    schedule: Schedule
    lost: tuple[str, ...] = ()  # what else in the text changes the images
    notes: tuple[str, ...] = ()  # what is no part of a schedule


class Options(NamedTuple):
    """What an export may be told beside the schedule."""

    detail: str | None = None  # after the colon of the format's name
    shift: float = 1.0  # of the flow scheduler that gets the sigmas
    scheduler_config: Mapping[str, Any] | None = None  # of the flow scheduler, kept as it is
    mu: float | None = None  # which the pipeline passes to it
    checkpoint: str | None = None  # the file that a workflow loads
    version: str | None = None  # of the tool


class Target(NamedTuple):
    """What a text of another tool may leave open: the model, and the sampler's settings."""

    noise: Noise
    model: ModelSpec | None
    solver: str = "dpmpp-midpoint"
    order: int = 2
    guidance_scale: float = 1.0
    guidance: str = "classifier-free"


class Sampler(NamedTuple):
    """A rule of k-diffusion's family, as both ComfyUI and stable-diffusion.cpp have it."""

    solver: str
    highest: int  # order reached as predictions come in
    flow: bool  # the same update for flow models
    lowers_last: bool = True  # order 1 onto sigma 0

    def orders(self, n: int, final_sigma: float) -> list[int]:
        """Of n steps."""
        start = 2 if self.solver == "heun" else 1
        orders = [min(max(start, i + 1), self.highest) for i in range(n)]
        if final_sigma == 0 and self.lowers_last:
            orders[-1] = 1
        return orders


def rule(schedule: Schedule) -> str:
    """The solver, by one name where two are the same at the orders used.

    Every rule of order 1 is Euler's in (x, sigma), and `exact` up to order 2 is `dpmpp-heun`.
    """
    orders = [step.order for step in schedule.steps]
    if max(orders) == 1 and not any(step.corrector for step in schedule.steps):
        return "ddim"
    if schedule.solver == "exact" and max(orders) == 2:
        return "dpmpp-heun"
    return schedule.solver


def choose(samplers: Mapping[str, Sampler], schedule: Schedule) -> tuple[str, list[str]]:
    """The sampler that runs these orders of this rule; else the nearest, and what is lost."""
    ours, orders = rule(schedule), [step.order for step in schedule.steps]
    for name, sampler in samplers.items():
        same = sampler.orders(schedule.num_steps, schedule.final_sigma) == orders
        if sampler.solver == ours and same and (sampler.flow or not schedule.flow):
            return name, []
    # the last is DPM++(2M), nearest to every rule on lambda; the first Euler
    nearest = next((k for k, s in samplers.items() if s.solver == ours), list(samplers)[-1])
    if schedule.flow and not samplers[nearest].flow:
        nearest = next(iter(samplers))
    listed = " ".join(map(str, orders))
    return nearest, [f"the rule {schedule.solver} at orders {listed} ({nearest} instead)"]


def for_a_list(samplers: Mapping[str, Sampler], schedule: Schedule) -> tuple[str, list[str]]:
    """The sampler of a tool that takes a list of sigmas, and what of the schedule gets lost."""
    sampler, lost = choose(samplers, schedule)
    lost += losses(schedule)
    if schedule.guidance == "distilled" and not schedule.flow:
        lost.append("guidance as an input of a U-Net")
    if schedule.final_sigma > 0 and schedule.flow:
        lost.append("a final sigma above 0 of a flow model (it divides the latent by 1 - sigma)")
    if schedule.final_sigma > 0 and schedule.decode != "x":
        lost.append(f"decode {schedule.decode!r}")
    return sampler, lost


def losses(schedule: Schedule) -> list[str]:
    """What no list of sigmas or timesteps holds."""
    steps = schedule.steps
    found = {
        "golden_noise": schedule.raw_noise is not None,
        "golden_noise of an NPNet": schedule.npnet is not None,
        "an analytic first step": steps[0].analytic is not None,
        "the corrector": any(s.corrector for s in steps),
        "the prediction form of a step": any(_form_matters(s) for s in steps),
        "the gain of a step": any(s.gain != 1 for s in steps),
        "weights of a step": any(s.weights for s in steps),
        "time_scale": any(s.time_scale != 1 for s in steps),
        "guidance_reuse": any(s.guidance_reuse for s in steps),
        "boundary": schedule.boundary is not None,
        "x0_reuse": any(s.x0_reuse for s in steps),
        "repeats": any(s.repeats for s in steps),
        "churn": any(s.churn for s in steps),
        "guidance_rescale": any(s.guidance_rescale for s in steps),
        "Free-U per step": any(s.free_u for s in steps),
    }
    return [name for name, used in found.items() if used]


def _form_matters(step: Step) -> bool:
    return step.prediction is not None and step.order > 1


def plain(number: float) -> str:
    """All digits and no exponent, which ComfyUI would read as a second number."""
    text = format(Decimal(repr(float(number))), "f")
    return text if "." in text else f"{text}.0"


def sigma_list(schedule: Schedule) -> str:
    return ", ".join(map(plain, schedule.sigmas))


def malformed(error: Exception) -> str:
    """What reading JSON of another shape came upon, in words of ours."""
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON at line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return "a value in it is of another kind"


def in_brackets(text: str) -> str:
    """What stands in the brackets of a list as Python prints it, such as tensor([1., 0.])."""
    printed = re.fullmatch(
        r"\s*(?:\w+\s*[=:]\s*)?(?:[\w.]*(?:tensor|array)\()?\s*\[([^\[\]]*)\]\s*"
        r"(?:,?\s*(?:device|dtype)=[^\[\]]*)?\)?\s*",
        text,
    )
    return printed[1] if printed else text


def numbers_from(text: str, what: str = "sigmas") -> list[float]:
    """Numbers between commas, semicolons or spaces, with or without brackets.

    Raises:
        UserError: something else; `what` names what was expected.
    """
    words = [word for word in re.split(r"[\s,;]+", in_brackets(text).strip("[]() ")) if word]
    numbers = []
    for word in words:
        try:
            numbers.append(float(word))
        except ValueError as error:
            raise UserError(f"expected a list of {what}, {word[:40]!r} is no number") from error
        if not isfinite(numbers[-1]):
            raise UserError(f"expected a list of {what}, {word[:40]!r} is not finite")
    return numbers


def per_step_guidance_of_heun(schedule: Schedule) -> bool:
    """Whether the second call of a Heun step would get the guidance of the next step."""
    twice = schedule.solver == "heun" and any(step.order > 1 for step in schedule.steps)
    return twice and not one_guidance(schedule)


def highest_guidance(schedule: Schedule) -> float:
    return max(step.guidance_scale for step in schedule.steps)


def one_guidance(schedule: Schedule) -> bool:
    return len({step.guidance_scale for step in schedule.steps}) == 1


def build(
    sigmas: Sequence[float], scales: Sequence[float] | None, sampler: Sampler | None, target: Target
) -> Schedule:
    """A schedule with a tool's sampler, or the target's where none is named.

    Raises:
        UserError: it cannot be sampled, or there are not as many scales as steps.
    """
    if len(sigmas) < 2:
        raise UserError(f"expected at least two sigmas, got {len(sigmas)}")
    n = len(sigmas) - 1
    if scales is None:
        scales = [target.guidance_scale] * n
    if len(scales) != n:
        raise UserError(f"expected {n} guidance scales, one a step, got {len(scales)}")
    if sampler is None:
        made = from_sigmas(
            sigmas[:-1], sigmas[-1], scales, target.order, target.solver, target.model
        )
        return replace(made, guidance=target.guidance)
    orders = sampler.orders(n, sigmas[-1])
    steps = [Step(s, w, o) for s, w, o in zip(sigmas[:-1], scales, orders, strict=True)]
    return Schedule(
        tuple(steps), sigmas[-1], sampler.solver, target.model, guidance=target.guidance
    )
