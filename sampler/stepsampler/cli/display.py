"""A schedule as a table, as a picture, and as what differs between two."""

from collections.abc import Mapping
from dataclasses import fields
from math import inf, isinf
from pathlib import Path
from typing import Any

from stepsampler.cli.options import cost_of
from stepsampler.schedule import PURE_NOISE, Schedule, Step
from stepsampler.solvers import levels
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
            f"{_extras(step, step.sigma < (plan.boundary or 0.0))}".rstrip()
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


def _extras(step: Step, second: bool) -> str:
    free_u = step.free_u
    parts = [
        step.analytic is not None and f"analytic {step.analytic:g}",
        step.corrector and "corrector",
        step.prediction,
        step.gain != 1 and f"gain {step.gain:g}",
        step.weights and f"weights {' '.join(f'{w:.4g}' for w in step.weights)}",
        step.time_scale != 1 and f"time of sigma * {step.time_scale:g}",
        step.churn and f"churn {step.churn:g}",
        step.guidance_reuse and "reuses guidance",
        step.x0_reuse and "reuses x0",
        step.guidance_rescale and f"rescale {step.guidance_rescale:g}",
        second and "second network",
        free_u and f"Free-U {free_u.b1:g} {free_u.b2:g} {free_u.s1:g} {free_u.s2:g}",
    ]
    return ", ".join(part for part in parts if part)


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

    Raises:
        ValueError: a suffix that matplotlib does not know.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
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
    below.set_xlabel("step")
    below.xaxis.get_major_locator().set_params(integer=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lower().lstrip(".") or "png", dpi=120)
