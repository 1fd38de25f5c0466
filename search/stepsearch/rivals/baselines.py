"""Every well-known schedule at the study's budget."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from stepsampler.errors import UserError, counted
from stepsampler.grids import AYS, GRIDS, from_sigmas, guide, is_guided, make_schedule
from stepsampler.noise import Noise, NoiseSchedule
from stepsampler.presets import Preset, names, preset
from stepsampler.schedule import BY_STATISTICS, SOLVERS, ModelSpec, Schedule, StatisticsSpec
from stepsampler.support.checks import ScheduleError
from stepsearch.config import StudyConfig
from stepsearch.config.baselines import ALL
from stepsearch.config.parts import RIVALS

CLASSIFIER_FREE = "classifier-free"

Kind = Literal["found", "front", "baseline", "long", "teacher"]


@dataclass(frozen=True)
class Candidate:
    """A schedule with the name under which tables show it.

    "front" are those that were found too and are better than the found one in alignment or FD.
    Only baselines spend the study's budget; "long" rows and the teacher spend more.
    """

    name: str
    schedule: Schedule
    kind: Kind
    grid: str = ""  # of `grids`, where its placement has a formula for any number of steps
    trial: int | None = None
    plain: str = ""  # the name of what it is with another gain


Placements = dict[tuple[str, int], list[float]]  # (rival, number of steps) -> falling sigmas


def wanted(config: StudyConfig, guidance: str = CLASSIFIER_FREE) -> dict[tuple[str, int], float]:
    """(rival, number of steps) of every placement that a study needs -> its guidance scale.

    That is the teacher's, or 1 where all the passes go into unguided steps. Where guidance costs
    nothing, guided steps are as many, and the unguided ones get their placement.
    """
    space, scale = config.space, config.teacher_scale
    names: tuple[str, ...] = config.baselines.rivals
    found = [(name, n) for name in names for n, _ in shapes(config, guidance)]
    if space.baseline in RIVALS:
        found += [(space.baseline, n) for n in range(space.num_steps, space.most_steps + 1)]
    unguided = space.passes if guidance == CLASSIFIER_FREE else None
    return {(name, n): 1.0 if n == unguided else scale for name, n in found}


def shapes(config: StudyConfig, guidance: str) -> list[tuple[int, float]]:
    """(steps, guidance scale) of a baseline: all that the budget pays for in one way each.

    A scale of 1 among those of the study may be the unguided one: there each comes once.
    """
    passes = config.space.passes
    guided = min(config.space.num_steps, passes // 2) if guidance == CLASSIFIER_FREE else passes
    if config.evaluation.guidance_scales:
        return [(guided, w) for w in constant_scales(config)]
    found = [*((guided, w) for w in constant_scales(config)), (passes, 1.0)]
    return list(dict.fromkeys(found))


def constant_scales(config: StudyConfig) -> tuple[float, ...]:
    """Of baselines; in a study over guidance scales all of them come to the same."""
    if config.space.guidance == "off":
        return ()
    return config.evaluation.guidance_scales[:1] or config.baselines.guidance_scales


def baselines(
    config: StudyConfig,
    noise: Noise,
    model: ModelSpec,
    rivals: Placements,
    guidance: str = CLASSIFIER_FREE,
    statistics: Sequence[StatisticsSpec] = (),
) -> list[Candidate]:
    """Each placement, solver, order and gain, guided with `num_steps` or unguided with all passes.

    Where guidance is distilled and costs nothing, guided ones have all the passes too. Align Your
    Steps is left out for flow models, which do not have its sigmas. dpm-v3 comes at the guidance
    scales of which the model has statistics.
    """
    grids = [grid for grid in GRIDS if grid not in AYS or isinstance(noise, NoiseSchedule)]
    found = []
    for solver, order, n, w in kinds(config, guidance, statistics):
        rule = "" if solver == "dpmpp-midpoint" else f"{solver}, "
        named = _of_scale(w, statistics) if solver == BY_STATISTICS else None
        shape = f"{rule}order {order}, " + (f"w {w:g}" if w != 1 else f"{n} unguided steps")
        for grid in (*grids, *config.baselines.rivals):
            *sigmas, final = GRIDS[grid](n, noise) if grid in GRIDS else rivals[grid, n]
            plan = from_sigmas(sigmas, final, [w] * n, order, solver, model, statistics=named)
            plan = replace(plan, guidance=guidance)
            formula = grid if grid in GRIDS else ""
            found.append(Candidate(f"{grid}, {shape}", plan, "baseline", formula))
    return gained(found, config.baselines.gains)


def kinds(
    config: StudyConfig, guidance: str, statistics: Sequence[StatisticsSpec]
) -> list[tuple[str, int, int, float]]:
    """(solver, order, steps, guidance scale) that each placement comes with."""
    return [
        (solver, order, n, w)
        for solver in config.baselines.solvers
        for order in config.baselines.orders
        if order <= SOLVERS[solver]
        for n, w in shapes(config, guidance)
        if solver != BY_STATISTICS or _of_scale(w, statistics)
    ]


def _of_scale(w: float, statistics: Sequence[StatisticsSpec]) -> StatisticsSpec | None:
    return next((known for known in statistics if known.guidance_scale == w), None)


def check_statistics(
    config: StudyConfig, guidance: str, statistics: Sequence[StatisticsSpec]
) -> None:
    """Refuse a solver of the baselines that goes by statistics which the model has not.

    Raises:
        UserError: says which guidance scales they could be of.
    """
    wanted = shapes(config, guidance)
    if BY_STATISTICS not in config.baselines.solvers:
        return
    if not any(_of_scale(w, statistics) for _, w in wanted):
        scales = ", ".join(f"{w:g}" for w in dict.fromkeys(w for _, w in wanted))
        raise UserError(
            f"baselines.solvers: {BY_STATISTICS} goes by statistics of a guidance scale of the "
            f"baselines, {scales}; {told(statistics)}"
        )


def told(statistics: Sequence[StatisticsSpec]) -> str:
    """Half a sentence: which the model has, or how to have some."""
    if statistics:
        return f"the model's are {'; '.join(map(str, statistics))}"
    return (
        "[model] statistics names none: `stepsample statistics` makes them, or the run those of "
        "statistics.guidance_scales"
    )


def whole(
    config: StudyConfig,
    schedules: Mapping[tuple[str, int], Schedule],
    guidance: str = CLASSIFIER_FREE,
) -> list[Candidate]:
    """Those of rivals with all that they say, solver and order too, at each scale of the study."""
    found = []
    for n, w in shapes(config, guidance):
        shape = f"w {w:g}" if w != 1 else f"{n} unguided steps"
        for name in config.baselines.rivals:
            if (name, n) in schedules:
                plan = guide(schedules[name, n], w)
                found.append(Candidate(f"{name} with its times, {shape}", plan, "baseline"))
    return gained(found, config.baselines.gains)


def gained(candidates: Sequence[Candidate], gains: Sequence[float]) -> list[Candidate]:
    """Each with each of the gains, times what its steps have; 1 leaves it as it is."""
    found = []
    for candidate, gain in product(candidates, gains):
        if gain == 1:
            found.append(candidate)
            continue
        plan = candidate.schedule
        steps = tuple(replace(step, gain=gain * step.gain) for step in plan.steps)
        name = f"{candidate.name}, gain {gain:g}"
        plan = replace(plan, steps=steps)
        found.append(replace(candidate, name=name, schedule=plan, plain=candidate.name))
    return found


def published(
    config: StudyConfig,
    model: ModelSpec,
    guidance: str = CLASSIFIER_FREE,
    two: bool = False,
    statistics: Sequence[StatisticsSpec] = (),
) -> list[Candidate]:
    """The presets that the study names, each as it was published, or with the study's gains.

    `two`: the model has two networks. A pattern takes those that fit the model and have exactly the
    study's passes, but none of which the file holds an approximation only, and those for distilled
    models only in a study without guidance, as these are; "*" may take none.

    Raises:
        UserError: an unknown name, one that does not fit, or a pattern that nothing fits.
    """
    found: dict[str, Candidate] = {}
    for wanted in config.baselines.presets:
        pattern = any(sign in wanted for sign in "*?[")
        fitting = 0
        for name in fnmatch.filter(names(), wanted) if pattern else [wanted]:
            try:
                known = preset(name, statistics)
            except ScheduleError as error:
                raise UserError(f"baselines.presets: {error}") from error
            over_scales = bool(config.evaluation.guidance_scales)
            problem = _misfit(known, config.space.passes, model, guidance, two, over_scales)
            if problem and not pattern:
                raise UserError(f"baselines.presets: {name} {problem}")
            distilled = known.distilled and config.space.guidance != "off"
            if problem or (pattern and (known.approximate or distilled)):
                continue
            fitting += 1
            title = f"{name}, approximate" if known.approximate else name
            found[name] = Candidate(title, known.schedule, "baseline")
        if not fitting and wanted != ALL:
            raise UserError(
                f"baselines.presets: none of {wanted} is for {model.family} "
                f"({model.prediction_type}) with {config.space.passes} passes"
            )
    return gained(list(found.values()), config.baselines.gains)


def _misfit(
    known: Preset, passes: int, model: ModelSpec, guidance: str, two: bool, over_scales: bool
) -> str | None:
    """Why a preset is no baseline of a study, or None."""
    schedule = known.schedule
    if schedule.model is None:
        return "is for no model of this sampler"
    difference = schedule.model.mismatch(model)
    if difference:
        return f"is for {difference}"
    if schedule.guidance != guidance:
        return f"has {schedule.guidance} guidance, but the model's is {guidance}"
    if schedule.boundary is not None and not two:
        return "is for two networks, the model has one"
    if over_scales and not any(map(is_guided, schedule.steps)):
        return "has no guided step, but the study is one over guidance scales"
    if schedule.passes != passes:
        return f"has {schedule.passes} passes, but the study's budget is {passes}"
    return None


def long_baselines(
    config: StudyConfig, noise: Noise, model: ModelSpec, guidance: str = CLASSIFIER_FREE
) -> list[Candidate]:
    """DPM-Solver++(2M) on evenly spaced timesteps, with more steps than the budget pays for."""
    unguided = () if config.evaluation.guidance_scales else (1.0,)
    found = [
        Candidate(
            f"DPM++(2M), {counted(n, 'step')}, w {w:g}",
            _evenly(n, w, noise, model, guidance),
            "long",
        )
        for n in config.baselines.long_steps
        for w in dict.fromkeys((*unguided, *constant_scales(config)))
    ]
    return gained(found, config.baselines.gains)


def teacher(
    config: StudyConfig, noise: Noise, model: ModelSpec, guidance: str = CLASSIFIER_FREE
) -> Candidate:
    """Many steps of DPM-Solver++(2M) on evenly spaced timesteps."""
    w = config.teacher_scale
    plan = _evenly(config.teacher.steps, w, noise, model, guidance)
    return Candidate(f"teacher, w {w:g}", plan, "teacher")


def _evenly(n: int, w: float, noise: Noise, model: ModelSpec, guidance: str) -> Schedule:
    plan = make_schedule("linspace", n, noise, order=2, guidance_scale=w, model=model)
    return replace(plan, guidance=guidance)
