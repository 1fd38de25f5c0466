"""The live view of a run, from the data of `live`: for a terminal, and as one line."""

from collections.abc import Sequence
from datetime import timedelta
from math import log

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stepsampler.errors import counted, percent
from stepsearch.compare.figures import with_error
from stepsearch.report.cards import Data
from stepsearch.report.live.snapshot import AWAY, FINISHED, STOPPED

BLOCKS = "▁▂▃▄▅▆▇█"
EIGHTHS = " ▏▎▍▌▋▊▉█"
WIDTH = 40  # letters of a sparkline
BAR = 10  # letters of a bar in the chart of a schedule
MOST = 12  # steps of such a chart; of more there is a sparkline
SHOWN = 8  # workers


def view(data: Data) -> RenderableType:
    """All of it, some fifteen lines."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    stage = data["stage"]
    if stage:
        head = Table.grid(padding=(0, 2))
        bar = ProgressBar(max(1, stage["total"]), min(stage["done"], stage["total"]), width=24)
        head.add_row(stage["name"], bar, f"{stage['done']} of {stage['total']}")
        grid.add_row("stage", head)
    grid.add_row("trials", Text(trials(data)))
    if data["workers"]:
        grid.add_row("workers", Text("\n".join(_workers(data["workers"]))))
    grid.add_row("passes", Text(_passes(data)))
    if data["best"]:
        grid.add_row("best", Text(_best(data)))
    if data["baseline"]:
        grid.add_row("baseline", Text(_baseline(data)))
    if (tested := data["verdict"]) and "best" in tested:
        pair = (f"{entry['name']}: {_pm(entry)}" for entry in (tested["found"], tested["best"]))
        grid.add_row("test", Text("\n".join(pair)))
    if exported := data["exported"]:
        grid.add_row("exported", Text("\n".join([exported["name"], *chart(exported)])))
    elif data["best"]:
        grid.add_row("schedule", Text("\n".join(chart(data["best"]["schedule"]))))
    best = [value for _, value in data["history"] if value is not None]
    if len(best) > 1:
        ends = f"{best[0]:.4g} → {best[-1]:.4g}"
        grid.add_row("history", Text(f"{sparkline(best)}  {ends}, best after each trial"))
    said = data["verdict"] and data["verdict"]["sentence"]
    return Group(grid, Text(said)) if said else grid


def trials(data: Data) -> str:
    """By state."""
    known = data["trials"]
    more = [f"{known[k]} {k}" for k in ("pruned", "failed") if known[k]]
    more += [f"{known['running']} under way"] if known["running"] else []
    parts = [f"{known['finished']} of {counted(known['budget'], 'trial')} finished", *more]
    return ", ".join(parts)


def line(data: Data) -> str:
    """The view in one line, for a log."""
    stage = data["stage"]
    at = f"{stage['name']}, {stage['done']} of {stage['total']}; " if stage else ""
    best = data["best"]
    so_far = f"; best {_pm(best)}" if best else ""
    left = f"; {_left(data)}" if data["seconds_left"] is not None else ""
    return f"{data['state']}: {at}{trials(data)}{so_far}{left}"


def _workers(known: Sequence[Data]) -> list[str]:
    found = []
    for entry in known[:SHOWN]:
        since = "" if entry["seconds"] is None else f" for {entry['seconds']:.0f} s"
        behind = f", {entry['done']} done" if entry["done"] else ""
        found.append(f"{entry['worker']}: trial {entry['trial']}{since}{behind}")
    more = len(known) - SHOWN
    return found + ([f"and {more} more"] if more > 0 else [])


def _passes(data: Data) -> str:
    passes = data["passes"]
    if data["state"] == FINISHED:
        return f"about {passes['used']:,}"
    told = f"about {passes['used']:,} used, {passes['left']:,} left"
    if data["seconds_per_pass"] is None:
        return told
    each = f"{1000 * data['seconds_per_pass']:.3g} ms a pass"
    return f"{told}, {each}" + (f"; {_left(data)}" if data["seconds_left"] is not None else "")


def _left(data: Data) -> str:
    """Rounded as such an estimate deserves."""
    seconds = data["seconds_left"]
    unit = 60 if seconds >= 90 else 10
    return f"about {timedelta(seconds=max(unit, round(seconds / unit) * unit))} left"


def _pm(entry: Data) -> str:
    return with_error(entry["value"], float("nan") if entry["se"] is None else entry["se"])


def _best(data: Data) -> str:
    best = data["best"]
    share = "" if best["alignment"] is None else f", alignment {percent(best['alignment'])}"
    name = f"{best['name']}: " if best["name"] != f"trial {best['trial']}" else ""
    on = f"on {counted(data['images'], 'image')}"
    cost = counted(best["passes"], "pass")
    return f"trial {best['trial']}: {name}{_pm(best)} {on}{share}, {cost}"


def _baseline(data: Data) -> str:
    known, gain = data["baseline"], data["gain"]
    if gain is None:
        return f"{known['name']}: {_pm(known)}"
    error = data["gain_se"]
    less = with_error(gain, float("nan") if error is None else error)
    return f"{known['name']}: {_pm(known)}; the best is lower by {less}"


def chart(plan: Data) -> list[str]:
    """Sigma, on a log axis, and guidance scale of each step."""
    steps = plan["steps"]
    sigmas = [step["sigma"] for step in steps]
    scales = [step["guidance_scale"] for step in steps]
    final = plan["final_sigma"]
    if len(steps) > MOST:
        return [
            f"sigma    {sparkline([log(s) for s in sigmas])}  {sigmas[0]:.4g} → {sigmas[-1]:.4g}",
            f"guidance {sparkline(scales)}  {min(scales):.3g} to {max(scales):.3g}",
        ]
    low, high = log(min([*sigmas, final or sigmas[-1]])), log(max(sigmas))
    most = max(scales)
    rows = ["step  sigma" + " " * (BAR + 4) + "guidance"]
    for k, (sigma, scale) in enumerate(zip(sigmas, scales, strict=True), 1):
        share = (log(sigma) - low) / (high - low) if high > low else 1.0
        rows.append(
            f"{k:4d}  {sigma:<7.4g}{_bar(share)} {scale:<6.3g}{_bar(scale / most if most else 0)}"
        )
    return [*(row.rstrip() for row in rows), f" end  {final:.4g}"]


def _bar(share: float) -> str:
    eighths = max(1, round(8 * BAR * min(1.0, max(0.0, share))))
    full, rest = divmod(eighths, 8)
    return f"{'█' * full}{EIGHTHS[rest] if rest else ''}".ljust(BAR)


def sparkline(values: Sequence[float]) -> str:
    """At most `WIDTH` letters; of more values, each the last of its part."""
    n = min(len(values), WIDTH)
    some = [values[(k + 1) * len(values) // n - 1] for k in range(n)]
    low, high = min(some), max(some)
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round(top * (v - low) / (high - low)) if high > low else 0] for v in some)


def ending(data: Data) -> str | None:
    """What to do next, if that is to be said."""
    if data["state"] == STOPPED:
        return "nobody runs it now; the same stepsearch run goes on from here"
    if data["state"] == AWAY:
        return "whether it still runs is not known here: another machine began it"
    return None
