"""Well-known placements of the steps, by formula.

Each function takes the number of steps n and the model's noise schedule and returns n + 1 falling
sigmas: n at which the denoiser is called, and the one on which the last step lands.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import atan, inf, isfinite, tan

import numpy as np
from scipy.stats import beta as beta_distribution

from stepsampler.errors import UserError
from stepsampler.noise import FlowSchedule, Noise, NoiseSchedule, timesteps_to_sigmas
from stepsampler.schedule import SOLVERS, WITH_CORRECTOR, ModelSpec, Schedule, StatisticsSpec, Step

Grid = Callable[[int, Noise], list[float]]


def linspace(n: int, noise: Noise) -> list[float]:
    """Evenly spaced timesteps from the last, then 0: diffusers' default of DPM-Solver++.

    Of a flow what stock pipelines make of them, all but those of Stable Diffusion 3 and Sana, which
    leave them to a scheduler that shifts twice or truncates.
    """
    if isinstance(noise, FlowSchedule):
        return [*noise.stock_sigmas(n), 0.0]
    return [*timesteps_to_sigmas(noise, noise.snap(np.linspace(noise.last, 0, n + 1)[:-1])), 0.0]


def trailing(n: int, noise: Noise) -> list[float]:
    """timestep_spacing="trailing" (Lin et al. 2023, table 2); of a flow the same as `linspace`."""
    if isinstance(noise, FlowSchedule):
        return linspace(n, noise)
    total = noise.count
    timesteps = noise.snap(np.arange(total, 0, -total / n)[:n]) - (total - noise.last)
    return [*timesteps_to_sigmas(noise, timesteps), 0.0]


def leading(n: int, noise: Noise) -> list[float]:
    """timestep_spacing="leading" with offset 1, Stable Diffusion's own; starts below the last."""
    timesteps = np.arange(n)[::-1] * ((noise.last + 1) // n) + 1
    return [*timesteps_to_sigmas(noise, timesteps), 0.0]


def karras(n: int, noise: Noise, rho: float = 7.0) -> list[float]:
    """Karras et al. 2022, eq. 5: n sigmas down to sigma_min, then 0."""
    ramp = np.linspace(noise.sigma_max ** (1 / rho), noise.sigma_min ** (1 / rho), n)
    return [*(ramp**rho).tolist(), 0.0]


def exponential(n: int, noise: Noise) -> list[float]:
    """Log-linear sigmas down to sigma_min, then 0."""
    return [*np.geomspace(noise.sigma_max, noise.sigma_min, n).tolist(), 0.0]


def uniform_logsnr(n: int, noise: Noise) -> list[float]:
    """Log-linear sigmas that land on sigma_min (DPM-Solver, Lu et al. 2022)."""
    return np.geomspace(noise.sigma_max, noise.sigma_min, n + 1).tolist()  # type: ignore[no-any-return]


def beta(n: int, noise: Noise, a: float = 0.6, b: float = 0.6) -> list[float]:
    """Timesteps at quantiles of a beta distribution (Lee et al. 2024, arXiv 2407.12173), then 0."""
    quantiles = beta_distribution.ppf(1 - np.arange(n) / n, a, b)
    return [*timesteps_to_sigmas(noise, quantiles * noise.last), 0.0]


def kl_optimal(n: int, noise: Noise) -> list[float]:
    """Evenly spaced atan(sigma) (Sabour et al. 2024, Align Your Steps, eq. 9)."""
    angles = np.linspace(atan(noise.sigma_max), atan(noise.sigma_min), n + 1)
    return [tan(angle) for angle in angles]


def quadratic(n: int, noise: Noise) -> list[float]:
    """Evenly spaced square roots of the timestep, landing on timestep 0."""
    return timesteps_to_sigmas(noise, np.linspace(noise.last**0.5, 0, n + 1) ** 2)


def power(
    n: int,
    noise: Noise,
    final_timestep: float | None = None,
    rho: float = 1.2,
    first_sigma: float | None = None,
) -> list[float]:
    """Power law in the timestep that stops early (arXiv 2510.02390); alpha-bar is interpolated.

    Without `final_timestep` the hand-tuned one of that method for Stable Diffusion is taken: it
    is an entry of an auxiliary Karras grid, which depends on n. Starts at the last timestep, or at
    that of `first_sigma`.
    """
    first = noise.last if first_sigma is None else noise.timestep(first_sigma)
    if final_timestep is None:
        size, exponent, entry = SEED_STOPS.get(n, (8, 5.0, 6))
        final_timestep = noise.timestep(karras(size, noise, exponent)[entry])
    ramp = np.linspace(first ** (1 / rho), final_timestep ** (1 / rho), n + 1)
    return [noise.sigma_by_alpha_bar(t) for t in ramp**rho]


def power_to_one(n: int, noise: Noise, rho: float = 1.2) -> list[float]:
    """Its original mode: n points of the same power law from the last timestep to 1, then 0."""
    ramp = np.linspace(noise.last ** (1 / rho), 1, n) ** rho
    return [noise.sigma_by_alpha_bar(t) for t in (*ramp, 0.0)]


# n -> points, exponent and entry of the auxiliary grid
SEED_STOPS = {4: (8, 5.0, 5), 7: (12, 10.0, 7), 8: (12, 7.0, 9)}

# Align Your Steps (Sabour et al. 2024, table 3): ten steps found for these two models.
AYS = {
    "ays-sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays-sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}


def _ays(name: str) -> Grid:
    def grid(n: int, noise: Noise) -> list[float]:
        if not isinstance(noise, NoiseSchedule):
            raise UserError(f"{name} has the sigmas of Stable Diffusion, not of a flow model")
        sigmas = log_linear(AYS[name], n + 1)
        sigmas[0] = min(sigmas[0], noise.sigma_max)
        return [*sigmas[:-1], 0.0]  # as every tool ships it: the last sigma gives way to 0

    grid.__doc__ = f"Align Your Steps, the published list of {name[4:].upper()}, resampled."
    return grid


def log_linear(sigmas: Sequence[float], count: int) -> list[float]:
    """Resample a list of sigmas to `count` entries, log sigma linear in the index."""
    at = np.linspace(0, len(sigmas) - 1, count)
    return np.exp(np.interp(at, np.arange(len(sigmas)), np.log(sigmas))).tolist()  # type: ignore[no-any-return]


GRIDS: dict[str, Grid] = {
    "linspace": linspace,
    "trailing": trailing,
    "leading": leading,
    "karras": karras,
    "exponential": exponential,
    "uniform-logsnr": uniform_logsnr,
    "beta": beta,
    "kl-optimal": kl_optimal,
    "quadratic": quadratic,
    "power": power,
    **{name: _ays(name) for name in AYS},
}

# What can be made: the search takes only `GRIDS` as baselines.
PLACEMENTS = {**GRIDS, "seed-original": power_to_one}


def make_schedule(
    grid: str,
    num_steps: int,
    noise: Noise,
    *,
    solver: str = "dpmpp-midpoint",
    order: int = 2,
    guidance_scale: float = 1.0,
    model: ModelSpec | None = None,
    lower_order_final: bool = False,
    analytic: tuple[float, float] | None = None,
    statistics: StatisticsSpec | None = None,
) -> Schedule:
    """A baseline: one grid, one order, one guidance scale.

    `lower_order_final` is as for `from_sigmas`. `analytic` is the gain of an analytic first step
    and where it lands: the fraction, in timesteps, of the way to the second sigma; the grid's first
    network call moves there, so that the passes stay the same.

    Raises:
        UserError: an unknown grid, or no step.
    """
    if grid not in PLACEMENTS:
        raise UserError(f"grid must be one of {', '.join(PLACEMENTS)}, got {grid!r}")
    if num_steps < 1:
        raise UserError(f"num_steps must be at least 1, got {num_steps}")
    *sigmas, final_sigma = PLACEMENTS[grid](num_steps, noise)
    if analytic:
        start, end = (noise.timestep(s) for s in [*sigmas, final_sigma][:2])
        sigmas.insert(1, noise.sigma(start + analytic[1] * (end - start)))
    scales = [guidance_scale] * len(sigmas)
    plan = from_sigmas(
        sigmas, final_sigma, scales, order, solver, model, lower_order_final, statistics
    )
    if not analytic:
        return plan
    first = replace(plan.steps[0], guidance_scale=1.0, analytic=analytic[0])
    return replace(plan, steps=(first, *plan.steps[1:]))


def guide(
    schedule: Schedule, scale: float, interval: tuple[float, float] | None = None
) -> Schedule:
    """The schedule with one guidance scale, or with it only where low < sigma <= high.

    No step reuses guidance afterwards. A step without a call keeps what it has.
    (Kynkäänniemi et al. 2024, eq. 6)
    """
    _check_statistics(schedule, scale)
    low, high = interval or (0.0, inf)
    steps = []
    for step in schedule.steps:
        w = scale if low < step.sigma <= high else 1.0
        repeats = step.repeats if w != 1 else 0
        guided = replace(step, guidance_scale=w, guidance_reuse=False, repeats=repeats)
        steps.append(guided if step.calls else step)
    golden = schedule.golden_noise
    if raw := schedule.raw_noise:
        golden = replace(raw, guidance_scale=scale)
    return replace(schedule, steps=tuple(steps), golden_noise=golden)


def scale_guidance(schedule: Schedule, scale: float) -> Schedule:
    """The schedule with the shape of its guidance, and `scale` as the mean over its guided steps.

    w becomes 1 + (w - 1) * (scale - 1) / (mean - 1): a step that is guided twice as far beyond 1 as
    another stays so. Steps without guidance stay without, so that the passes are the same; golden
    noise is scaled with the steps. Analytic steps call no network and are left out.

    Raises:
        UserError: no guided step, guidance that is below 1 on average, or a scale that is no more
            than 1 or takes a step's guidance below 0.
    """
    if not isfinite(scale) or scale <= 1:
        raise UserError(f"the guidance scale must be above 1, which is none, got {scale:g}")
    _check_statistics(schedule, scale)
    guided = [s.guidance_scale for s in schedule.steps if is_guided(s)]
    if not guided:
        raise UserError("the schedule has no guided step whose guidance could be scaled")
    mean = sum(guided) / len(guided)
    if mean <= 1:
        raise UserError(f"the guidance to scale must be above 1 on average, got {mean:g}")
    factor = (scale - 1) / (mean - 1)

    def scaled(w: float) -> float:
        return 1 + (w - 1) * factor

    steps = [
        replace(step, guidance_scale=scaled(step.guidance_scale)) if is_guided(step) else step
        for step in schedule.steps
    ]
    golden = schedule.golden_noise
    if raw := schedule.raw_noise:
        golden = replace(raw, guidance_scale=scaled(raw.guidance_scale))
    return replace(schedule, steps=tuple(steps), golden_noise=golden)


def _check_statistics(schedule: Schedule, scale: float) -> None:
    named = schedule.statistics
    if named and named.guidance_scale != scale:
        raise UserError(
            f"its statistics are of guidance scale {named.guidance_scale:g}, got {scale:g}"
        )


def is_guided(step: Step) -> bool:
    """Whether a step calls the network with guidance."""
    return step.calls and step.guidance_scale != 1


def from_sigmas(
    sigmas: Sequence[float],
    final_sigma: float,
    guidance: Sequence[float],
    order: int,
    solver: str = "dpmpp-midpoint",
    model: ModelSpec | None = None,
    lower_order_final: bool = False,
    statistics: StatisticsSpec | None = None,
) -> Schedule:
    """A schedule whose order is `order` wherever solver, past and landing allow it.

    `lower_order_final` lowers it over the last steps too, as diffusers does: to the number of steps
    that are left. UniPC gets its corrector on every step but the last, as its authors run it. Under
    statistics a step of another guidance scale than theirs has the degenerate data form.
    """
    last = len(sigmas) - 1
    steps = []
    for i, (sigma, w) in enumerate(zip(sigmas, guidance, strict=True)):
        most = 1 if i == last and final_sigma == 0 else 2 if solver == "heun" else i + 1
        corrector = solver in WITH_CORRECTOR and i < last
        left = last + 1 - i if lower_order_final else most
        form = "data" if statistics and w != statistics.guidance_scale else None
        steps.append(Step(sigma, w, min(order, most, left, SOLVERS[solver]), corrector, form))
    return Schedule(tuple(steps), final_sigma, solver, model, statistics=statistics)


def is_whole(schedule: Schedule, noise: NoiseSchedule) -> bool:
    """Whether the network is called at whole training timesteps, to a twentieth of one."""
    times = [noise.timestep(step.sigma) for step in schedule.steps if step.calls]
    return all(abs(t - round(t)) <= 0.05 for t in times)


def whole_timesteps(schedule: Schedule, noise: Noise, *, spread: bool = False) -> Schedule:
    """The schedule with its levels at the nearest whole training timesteps.

    Some tools tell the network no others. The final sigma stays, since the network is not called
    there, but for Heun's second call. With `spread` steps that would fall on one timestep get the
    next ones, so that any schedule has a nearest one.

    Raises:
        UserError: a flow model, which has no whole timesteps; or, without `spread`, two levels
            that would fall on one timestep.
    """
    if not isinstance(noise, NoiseSchedule):
        raise UserError("a flow model has no whole timesteps: it is told sigma itself")
    times = [noise.timestep(step.sigma) for step in schedule.steps]
    whole = _falling(times)
    for i, (time, moved) in enumerate(zip(times, whole, strict=True)):
        if round(time) != moved and not spread:
            raise UserError(
                f"steps {i - 1} and {i} would both be at the whole timestep {round(time)}"
            )
    steps = [replace(s, sigma=noise.sigma(t)) for s, t in zip(schedule.steps, whole, strict=True)]
    final, last = schedule.final_sigma, whole[-1]
    if final and schedule.solver == "heun":
        final = noise.sigma(round(noise.timestep(final)))
    if final >= steps[-1].sigma:
        if not spread:
            raise UserError(f"the final sigma {final:g} would not be below the last step's")
        final = noise.sigma(last - 0.5) if last else noise.sigma_min / 2
    golden = schedule.golden_noise
    if raw := schedule.raw_noise:
        golden = replace(raw, sigma=noise.sigma(round(noise.timestep(raw.sigma))))
    return replace(schedule, steps=tuple(steps), final_sigma=final, golden_noise=golden)


def _falling(times: Sequence[float]) -> list[int]:
    """The nearest whole numbers from 0 on, each at least one below that before it."""
    whole = [round(t) for t in times]
    for i in range(1, len(whole)):
        whole[i] = min(whole[i], whole[i - 1] - 1)
    return [max(t, len(whole) - 1 - i) for i, t in enumerate(whole)]
