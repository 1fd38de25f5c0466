"""A schedule as a notebook shows it: sigma against step on a log axis, guidance, and the numbers.

Plain HTML and SVG by the standard library, in the colours of the page around it.
"""

from html import escape
from math import log
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepsampler.schedule import Schedule

WIDTH, HEIGHT, EDGE = 360.0, 140.0, 12.0  # pixels
MOST = 12  # steps whose numbers are shown; of more there is the picture alone
CELL = "padding:0 .8em;text-align:right"


def html(plan: "Schedule") -> str:
    """A picture with a caption, and a table of the steps."""
    source = plan.provenance.get("source")
    name = f"{escape(str(source))}: " if source else ""
    end = f"{plan.final_sigma:g}"
    head = f"{name}{plan.num_steps} steps, {plan.passes} passes, {escape(plan.solver)}, to {end}"
    rows = ""
    if plan.num_steps <= MOST:
        cells = [("step", "sigma", "guidance", "order")]
        cells += [
            (f"{k}", f"{s.sigma:.4g}", f"{s.guidance_scale:.4g}", f"{s.order}")
            for k, s in enumerate(plan.steps, 1)
        ]
        lines = ("".join(f'<td style="{CELL}">{c}</td>' for c in line) for line in cells)
        rows = "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
    return f"<div><p>{head}</p>{_picture(plan)}{rows}</div>"


def _picture(plan: "Schedule") -> str:
    """Sigma as a line with dots, guidance scales as bars behind it."""
    levels = [log(step.sigma) for step in plan.steps]
    levels += [log(plan.final_sigma)] if plan.final_sigma > 0 else []
    low, high = min(levels), max(levels)
    most = max(step.guidance_scale for step in plan.steps) or 1.0
    each = (WIDTH - 2 * EDGE) / max(1, len(levels) - 1)
    across = [EDGE + k * each for k in range(len(levels))]
    span = HEIGHT - 2 * EDGE
    down = [EDGE + span * (high - v) / ((high - low) or 1.0) for v in levels]
    wide = min(18.0, 0.6 * each)
    bars = "".join(
        f'<rect x="{x - wide / 2:.1f}" y="{HEIGHT - EDGE - h:.1f}" width="{wide:.1f}" '
        f'height="{h:.1f}" fill="currentColor" opacity="0.2"/>'
        for x, h in (
            (across[k], 0.5 * span * step.guidance_scale / most)
            for k, step in enumerate(plan.steps)
        )
    )
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="currentColor"/>'
        for x, y in zip(across, down, strict=True)
    )
    said = f"Sigma of {plan.num_steps} steps on a log axis as a line, guidance scales as bars"
    return (
        f'<svg role="img" aria-label="{said}" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" '
        f'width="{WIDTH:g}" height="{HEIGHT:g}"><title>{said}</title>{bars}'
        f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="1.5"/>'
        f"{dots}</svg>"
    )
