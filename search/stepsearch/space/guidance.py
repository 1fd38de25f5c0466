"""Guidance of a box: its scales, what a budget leaves of them, and statistics that suit them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stepsampler.errors import UserError
from stepsampler.schedule import BY_STATISTICS, StatisticsSpec, Step
from stepsearch.config.space import SpaceConfig
from stepsearch.rivals.baselines import told


def guidance_of(
    config: SpaceConfig,
    params: Mapping[str, float],
    at: NDArray[np.float64],
    curve: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Scales of the steps at positions of the trajectory, where the one of each step is `curve`."""
    if config.guidance == "off":
        return np.ones(len(at))
    if config.guidance == "per-step":
        return curve
    if config.guidance == "interval":
        guided = (params["guided_from"] <= at) & (at <= params["guided_to"])
        return np.where(guided, params["guidance_scale"], 1.0)
    line = params["guidance_scale"] + params.get("guidance_slope", 0.0) * (2 * at - 1)
    return np.clip(line, *config.guidance_scale)


def within_budget(guidance: list[float], passes: int, every: int = 1) -> list[float]:
    """Guidance below or at 1 is off; then the weakest guided steps go off until passes suffice.

    Every so manieth of the guided ones costs two. Of equally weak ones the noisier go first.
    """
    scales = [w if w > 1 else 1.0 for w in guidance]
    guided = sorted((w, i) for i, w in enumerate(scales) if w > 1)
    for _, i in guided[: max(0, len(guided) - every * (passes - len(scales)))]:
        scales[i] = 1.0
    return scales


def iterations(config: SpaceConfig, params: Mapping[str, float], spare: int) -> int:
    """How often the first guided step is iterated, of which `spare` passes pay for guidance.

    At most so often that one step can be guided; each time has a guided call and an unconditional
    one.
    """
    wanted = min(max(round(params.get("repeats", 0.0)), 0), config.repeats)
    return max(0, min(wanted, (spare - 1) // 3))


def iterated(steps: list[Step], times: int, final_sigma: float) -> list[Step]:
    """The first guided step iterated, unless a corrector is before it or it lands on sigma 0."""
    guided = [i for i, step in enumerate(steps) if step.guidance_scale != 1]
    if not guided or not times:
        return steps
    i = guided[0]
    corrected = i > 0 and steps[i - 1].corrector
    if corrected or (i == len(steps) - 1 and final_sigma == 0):
        return steps
    return [*steps[:i], replace(steps[i], repeats=times), *steps[i + 1 :]]


def under(statistics: StatisticsSpec | None, guidance: list[float]) -> list[float]:
    """Guidance scales of which those of guided steps give way to that of the statistics."""
    if statistics is None:
        return guidance
    return [statistics.guidance_scale if w != 1 else 1.0 for w in guidance]


def statistics_for(config: SpaceConfig, known: Sequence[StatisticsSpec]) -> StatisticsSpec | None:
    """The first of the model's statistics that are of a guidance scale of the box.

    None where no solver goes by them.

    Raises:
        UserError: a solver does, and there are none.
    """
    if BY_STATISTICS not in config.solvers:
        return None
    low, high = config.guidance_scale
    off = config.guidance == "off"
    for spec in known:
        w = spec.guidance_scale
        if w == 1 if off else w > 1 and low <= w <= high:
            return spec
    wanted = "1, as guidance is off" if off else f"{max(low, 1):g} to {high:g}, above 1"
    raise UserError(
        f"space.solvers: {BY_STATISTICS} goes by statistics of a guidance scale of the box, "
        f"{wanted}; {told(known)}"
    )
