"""A schedule as a table, as a picture, and as what differs between two."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from math import inf, isinf
from pathlib import Path
from typing import Any

from stepsampler.cli.options import cost_of
from stepsampler.schedule import PURE_NOISE, Schedule
from stepsampler.solvers import levels, shares
from stepsampler.support.checks import ScheduleError
from stepsampler.support.files import replacing
from stepsampler.support.scales import ALONE, sentence


def describe(plan: Schedule) -> str:
    """A table of the steps: timestep, sigma, lambda and its step h, guidance, order, the rest.

    Timesteps are those of the model that the schedule names, where its noise levels are known.
    """
    from stepsampler.noise import noise_of

    noise, at = noise_of(plan), levels(plan)
    lambdas = [at.log_snr(i) for i in range(plan.num_steps + 1)]
    lines = [
        f"{cost_of(plan)}, solver {plan.solver}" + _heading(plan),
        f"{'step':>4} {'t':>7} {'sigma':>10} {'lands on':>10} {'lambda':>8} {'h':>7} "
        f"{'guidance':>9} {'order':>5}",
    ]
    for i, step in enumerate(plan.steps):
        t = "-" if noise is None else f"{noise.network_time(step.sigma * step.time_scale):.2f}"
        guidance = "off" if step.guidance_scale == 1 else f"{step.guidance_scale:.3g}"
        h = lambdas[i + 1] - lambdas[i]
        lines.append(
            f"{i:>4} {t:>7} {step.sigma:>10.4f} {plan.sigmas[i + 1]:>10.4f} "
            f"{_finite(lambdas[i]):>8} {_finite(h):>7} {guidance:>9} {step.order:>5} "
            f"{_extras(plan, i)}".rstrip()
        )
    family, scales = plan.model.family if plan.model else None, _scales(plan)
    said = scales or family in ALONE  # which guides where w is 1, too
    told = sentence(family, plan.guidance, max(scales, default=1.0)) if said else None
    lines += [f"guidance: {told}"] if told else []
    origin, note = _origin(plan.provenance), plan.provenance.get("note")
    lines += [_printable(origin)] if origin else []
    lines += [_printable(f"note: {note}")] if isinstance(note, str) else []
    return "\n".join(lines)


def _scales(plan: Schedule) -> list[float]:
    return [s.guidance_scale for s in plan.steps if s.guidance_scale != 1]


def _printable(text: str) -> str:
    """Without what a terminal would obey: provenance is free text of whoever wrote the file."""
    return "".join(c if c.isprintable() else " " for c in text)


def _origin(provenance: Mapping[str, Any]) -> str:
    """How a run's schedule was found and scored, in a line; empty where the file says nothing."""
    study, source, model = (provenance.get(key) for key in ("study", "source", "model"))
    if not all(isinstance(text, str) for text in (study, source, model)):
        return ""
    value, se = provenance.get("value"), provenance.get("standard_error")
    numbers = all(isinstance(x, int | float) for x in (value, se))
    score = f"; {provenance.get('metric')} {value:.4g} ± {se:.2g}" if numbers else ""
    return f"from the study {study} on the model {model}: {source}{score}"


def _heading(plan: Schedule) -> str:
    golden = plan.raw_noise
    model = plan.model
    noise = ""
    if model and model.sigma_data:
        noise = f", EDM with sigma_data {model.sigma_data:g}"
    elif model and not plan.flow and model.noise and model.noise[-1] > PURE_NOISE:
        noise = ", zero terminal SNR"
    parts = [
        model and f"for {model.family} ({model.prediction_type}{noise})",
        plan.guidance != "classifier-free" and f"{plan.guidance} guidance",
        plan.statistics and f"statistics {plan.statistics}",
        golden and f"golden noise by {golden.start} at sigma {golden.sigma:.4f}",
        plan.npnet and f"golden noise by NPNet {plan.npnet}",
        plan.decode != "x" and f"decodes {plan.decode}",
        plan.boundary is not None and f"second network below sigma {plan.boundary:g}",
    ]
    return "".join(f", {part}" for part in parts if part)


def _finite(number: float) -> str:
    return "inf" if number == inf else "-inf" if isinf(number) else f"{number:.3f}"


def _extras(plan: Schedule, i: int) -> str:
    step = plan.steps[i]
    second, free_u = step.sigma < (plan.boundary or 0.0), step.free_u
    weights = f"weights {_numbers(step.weights)}" if step.weights else ""
    if step.weights and _numbers(rule := of_rule(plan, i)) != _numbers(step.weights):
        weights += f" ({plan.solver}: {_numbers(rule)})"
    parts = [
        step.analytic is not None and f"analytic {step.analytic:g}",
        step.corrector and "corrector",
        step.prediction,
        step.gain != 1 and f"gain {step.gain:g}",
        weights,
        step.time_scale != 1 and f"time of sigma * {step.time_scale:g}",
        step.churn and f"churn {step.churn:g}",
        step.guidance_reuse and "reuses guidance",
        step.repeats and f"repeats {step.repeats}",
        step.x0_reuse and "reuses x0",
        step.guidance_rescale and f"rescale {step.guidance_rescale:g}",
        second and "second network",
        free_u and f"Free-U {free_u.b1:g} {free_u.b2:g} {free_u.s1:g} {free_u.s2:g}",
    ]
    return ", ".join(part for part in parts if part)


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def of_rule(plan: Schedule, i: int) -> list[float]:
    """What the solver of a schedule would take of the predictions in a step that has weights.

    Of the step's order, or of the highest below it that the solver has there.
    """
    step = plan.steps[i]
    form = None if step.prediction == "derivative" else step.prediction
    for order in range(step.order, 0, -1):
        steps = list(plan.steps)
        steps[i] = replace(step, weights=None, prediction=form, order=order)
        with suppress(ScheduleError):
            return shares(replace(plan, steps=tuple(steps)), i)
    return []


def differences(a: Schedule, b: Schedule) -> list[str]:
    """What is sampled otherwise under `b` than under `a`, a line each; nothing if all is equal.

    The provenance is not compared: no solver reads it.
    """
    apart = ("steps", "provenance")
    lines = _differing("", a, b, apart)
    for i in range(max(a.num_steps, b.num_steps)):
        if i >= min(a.num_steps, b.num_steps):
            lines.append(f"step {i}: only in the {'first' if i < a.num_steps else 'second'}")
        else:
            lines += _differing(f"step {i}: ", a.steps[i], b.steps[i], ())
    return lines


def _differing(place: str, a: Any, b: Any, apart: tuple[str, ...]) -> list[str]:
    pairs = [(f.name, getattr(a, f.name), getattr(b, f.name)) for f in fields(a)]
    return [
        f"{place}{name} {_value(ours)} -> {_value(theirs)}"
        for name, ours, theirs in pairs
        if name not in apart and ours != theirs
    ]


def _value(value: Any) -> str:
    return str(value) if isinstance(value, float) else repr(value)


def draw(plan: Schedule, path: Path) -> None:
    """Write a picture of sigma and guidance over the steps; its format by the suffix.

    Where steps have gains, these too; and weights, with those of the solver's rule as rings.

    Raises:
        ValueError: a suffix that matplotlib does not know.
    """
    from matplotlib.figure import Figure

    own = [i for i in range(plan.num_steps) if plan.steps[i].weights]
    gains = [step.gain for step in plan.steps]
    gained = any(gain != 1 for gain in gains)
    heights = (2, 1, *([1] * gained), *([1.5] * bool(own)))
    figure = Figure(figsize=(6, 1 + sum(heights)), layout="constrained")
    above, below, *more = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    steps = range(plan.num_steps)
    above.plot(range(plan.num_steps + 1), plan.sigmas, marker="o", markersize=4)
    smallest = min(s for s in plan.sigmas if s > 0)
    above.set_yscale("symlog", linthresh=smallest)  # a last sigma of 0 lies on the axis
    above.set_ylim(bottom=0)
    above.set_ylabel("sigma")
    above.set_title(f"{cost_of(plan)}, {plan.solver}", fontsize=10)
    scales = [step.guidance_scale if step.calls else 0.0 for step in plan.steps]
    below.bar(steps, scales, color=["tab:gray" if w == 1 else "tab:orange" for w in scales])
    below.set_ylabel("guidance")
    if gained:
        more[0].plot(steps, gains, "o", markersize=4)
        more[0].axhline(1, color="tab:gray", linewidth=0.5)
        more[0].set_ylabel("gain")
    if own:
        _draw_weights(plan, own, more[-1])
    (more or [below])[-1].set_xlabel("step")
    below.xaxis.get_major_locator().set_params(integer=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lower().lstrip(".") or "png", dpi=120)


def _draw_weights(plan: Schedule, steps: Sequence[int], axes: Any) -> None:
    """Of each of the steps its weights, newest prediction first, beside those of the rule."""
    own = {i: plan.steps[i].weights or () for i in steps}
    rules = {i: of_rule(plan, i) for i in steps}
    most = max(len(weights) for weights in own.values())
    for age in range(most):
        name = "newest prediction" if age == 0 else f"{age} before"
        taken = [(i, w[age]) for i, w in own.items() if len(w) > age]
        (points,) = axes.plot(*zip(*taken, strict=True), "o", markersize=5, label=name)
        ruled = [(i, w[age]) for i, w in rules.items() if len(w) > age]
        if ruled:
            colour = points.get_color()
            axes.plot(*zip(*ruled, strict=True), "o", markersize=9, color=colour, fillstyle="none")
    axes.axhline(0, color="tab:gray", linewidth=0.5)
    axes.set_ylabel("weights (rings: rule)")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
