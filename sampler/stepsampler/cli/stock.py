"""What stock pipelines do, as a table, and beside another one or a schedule."""

from dataclasses import replace
from math import isclose, isnan
from typing import TYPE_CHECKING, NamedTuple

from stepsampler.errors import UserError
from stepsampler.presets import names, open_schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepsampler.models.stock.run import StockRun
    from stepsampler.schedule import Schedule
    from stepsampler.support.options import ModelOptions

WASTED = 0.03  # share of noise, of a latent of deviation 1, below which a step changes little
WHOLE = 0.01  # of a timestep
CLOSE = 1e-4  # relative; sigmas nearer than that are the same


class Row(NamedTuple):
    """What a step is compared by; `timestep` of up to 1000, None where it is not known."""

    sigma: float
    timestep: float | None
    guidance: float
    passes: int


def is_schedule(name: str) -> bool:
    return name.endswith(".json") or name in names()


def describe_run(run: "StockRun") -> str:
    """A table of the steps, and what is odd about them."""
    scale = "no guidance scale"
    if run.scale is not None:
        scale = f"{run.scale_name} {run.scale:g}"
        ours = "distilled" if run.distilled else f"w = {run.scale + run.less:g}"
        scale += f" by default ({ours})"
    lines = [
        f"{run.pipeline} with {run.scheduler}: {len(run.steps)} steps, {run.passes} passes per "
        f"image, {scale}",
        f"{'step':>4} {'timestep':>9} {'told':>9} {'sigma':>10} {'lands on':>10} {'guidance':>9} "
        f"{'passes':>6}",
    ]
    for i, step in enumerate(run.steps):
        exact = "-" if step.exact is None else f"{step.exact:.2f}"
        w = run.guidance(step)
        guidance = "off" if w == 1 else f"{w:.3g}"
        lines.append(
            f"{i:>4} {exact:>9} {step.told:>9.6g} {step.sigma:>10.4f} {step.lands_on:>10.4f} "
            f"{guidance:>9} {step.passes:>6}"
        )
    return "\n".join([*lines, *_remarks(run)])


def _remarks(run: "StockRun") -> list[str]:
    """What one would not expect of such a table."""
    found = []
    first, last = run.steps[0], run.steps[-1]
    apart = [abs(s.at - s.exact) for s in run.steps if s.exact is not None]
    if apart and max(apart) > 1:
        found.append(
            f"the network is told other times than those of the sigmas, up to {max(apart):.0f} off"
        )
    elif apart and max(apart) > WHOLE:
        found.append(
            f"timesteps are rounded, and up to {max(apart):.2f} beside those of the sigmas"
        )
    if run.sigma_max is not None and first.sigma < run.sigma_max * 0.99:
        found.append(
            f"starts at sigma {first.sigma:.4g}; the model's highest is {run.sigma_max:.4g}"
        )
    if any(isnan(step.sigma) for step in run.steps):
        found.append("a sigma is not a number")
    share = last.sigma if run.flow else last.sigma / (1 + last.sigma**2) ** 0.5
    if share < WASTED and len(run.steps) > 1:
        found.append(
            f"the last step begins with {100 * share:.2g} % of noise: its passes are nearly wasted"
        )
    if last.lands_on > 0:
        found.append(f"ends at sigma {last.lands_on:.4g}: that noise is left in the image")
    if run.scale_name == "true_cfg_scale" and run.scale not in (None, 1.0) and not run.distilled:
        found.append("true_cfg_scale guides only beside a negative prompt, which is not given here")
    if run.projected is not None:
        found.append(
            f"from step {run.projected} on the pipeline's guider projects a sum of all "
            "differences, with a scale of its own: that is no w"
        )
    if run.beside:
        named = ", ".join(f"{key} {value:g}" for key, value in run.beside)
        found.append(f"by default it guides by more than w: {named}")
    return [f"note: {line}" for line in found]


def rows(name: str, steps: int, loading: "ModelOptions") -> list[Row]:
    """Of a schedule (a file or preset) or of MODEL or MODEL:SCHEDULER in `steps` steps, loaded as
    the options say."""
    if is_schedule(name):
        return _of_schedule(open_schedule(name))
    from stepsampler.models.stock.run import stock_run

    model, scheduler = name, None
    head, colon, tail = name.rpartition(":")
    if colon and tail.endswith("Scheduler"):
        model, scheduler = head, tail
    run = stock_run(replace(loading, id=model), steps, scheduler)
    return [Row(s.sigma, s.at, run.guidance(s), s.passes) for s in run.steps]


def _of_schedule(plan: "Schedule") -> list[Row]:
    from stepsampler.noise import noise_of

    noise = noise_of(plan)
    return [
        Row(
            step.sigma,
            None if noise is None else noise.network_time(step.sigma),
            step.guidance_scale,
            plan.passes_of(step),
        )
        for step in plan.steps
    ]


def compare(a: list[Row], b: list[Row]) -> list[str]:
    """A line for each step and value that differs."""
    lines = [
        f"step {i}: {name} {_number(mine)} -> {_number(other)}"
        for i, pair in enumerate(zip(a, b, strict=False))
        for name, mine, other in zip(Row._fields, *pair, strict=True)
        if not _same(name, mine, other)
    ]
    more, where = (a, "first") if len(a) > len(b) else (b, "second")
    return [
        *lines,
        *(f"step {i}: only in the {where}" for i in range(min(len(a), len(b)), len(more))),
    ]


def _same(name: str, a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    if name == "timestep":
        return abs(a - b) <= WHOLE
    return a == b or isclose(a, b, rel_tol=CLOSE)


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.6g}"


def check_options(steps: int | None, schedule: str, others: "Sequence[str]") -> None:
    """Refuse other options, which only go with --steps, and --steps with a schedule.

    Raises:
        UserError: names it.
    """
    if steps is None and others:
        raise UserError(f"{others[0]} goes with a model and --steps")
    if steps is not None and is_schedule(schedule):
        raise UserError(f"--steps goes with a model, and {schedule} is a schedule")
