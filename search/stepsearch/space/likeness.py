"""Whether two schedules are the same one, and the form of their rules."""

from collections.abc import Mapping
from dataclasses import replace
from math import log

from stepsampler.schedule import WITHOUT_FORMS, GoldenNoise, LearnedNoise, Schedule, Step
from stepsampler.solvers import FORMS


def form(step: Step, solver: str) -> str:
    """Of the predictions that a step takes: its own, or its solver's."""
    return step.prediction or FORMS.get(solver, "data")


def chosen_form(params: Mapping[str, float], solver: str) -> str | None:
    """What the steps' rule extrapolates, if that is a choice and not the solver's own form."""
    if "prediction" not in params or solver in WITHOUT_FORMS:
        return None
    wanted = "noise" if params["prediction"] >= 0.5 else "data"
    return None if wanted == FORMS.get(solver, "data") else wanted


def same(a: Schedule, b: Schedule) -> bool:
    """Up to a thousandth of a sigma; for which model, and how they were found, is not compared."""
    for name in ("solver", "num_steps", "decode", "guidance", "statistics"):
        if getattr(a, name) != getattr(b, name):
            return False
    if _rounded(a.golden_noise) != _rounded(b.golden_noise):
        return False
    if (a.final_sigma == 0) != (b.final_sigma == 0):
        return False
    close = [abs(log(s / t)) < 1e-3 for s, t in zip(a.sigmas, b.sigmas, strict=True) if s and t]
    bare = [[_bare(step) for step in plan.steps] for plan in (a, b)]
    return all(close) and bare[0] == bare[1]


def _rounded(golden: GoldenNoise | LearnedNoise | None) -> GoldenNoise | LearnedNoise | None:
    if not isinstance(golden, GoldenNoise):
        return golden
    sigma, scale = float(f"{golden.sigma:.3g}"), round(golden.guidance_scale, 8)
    return replace(golden, sigma=sigma, guidance_scale=scale)


def _bare(step: Step) -> Step:
    scale, gain = round(step.guidance_scale, 8), round(step.gain, 8)
    return replace(step, sigma=1.0, guidance_scale=scale, gain=gain)
