"""The plots of `bench_peers.py`: a panel for each extractor."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from peers.targets import SAW, best_rival, by_what_they_saw, metrics
from stepsearch.paths import write_whole


def draw(parts: list[dict], path: Path) -> None:
    """FD against passes; of an ablation, FD row by row; of a transfer, ours and the best rival."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    first = parts[0]
    names = metrics(first if "contenders" in first else next(iter(first["tests"].values())))
    size = (5.5 * len(names), 4)
    figure, axes = plt.subplots(1, len(names), figsize=size, squeeze=False, layout="constrained")
    for axis, metric in zip(axes[0], names, strict=True):
        if "screening" in first:
            _against_passes(axis, parts, metric)
        else:
            _bars(axis, list(_rows(parts, metric)), metric)
    if "screening" in first:  # below, where it covers no line; the panels have the same lines
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2 * len(names),
            fontsize=7,
        )
    write_whole(path, lambda p: figure.savefig(p, format="png", dpi=110))
    plt.close(figure)


def _against_passes(axis: Any, parts: list[dict], metric: str) -> None:
    """The first row, the best placement, the searching rivals, and rows of many steps.

    Values of different dtypes do not compare: each has lines of its own.
    """
    dtypes = list(dict.fromkeys(rows["settings"]["dtype"] for rows in parts))
    colours: dict[str, str] = {}
    for k, dtype in enumerate(dtypes):
        mine = [rows for rows in parts if rows["settings"]["dtype"] == dtype]
        lines: dict[str, list[tuple[int, float, float]]] = {}
        for rows in mine:
            every = rows["contenders"]
            own = by_what_they_saw(every, next(iter(rows["screening"])))
            points = {f"ours, {SAW}{saw}": row for saw, row in own.items()}
            points["best placement"] = (
                best_rival(every, metric, ("placement", "learned")) or every[0]
            )
            points |= {row["name"]: row for row in every if row["kind"] == "search"}
            for name, row in points.items():
                lines.setdefault(name, []).append((rows["passes"], *_value(row, metric)))
        for name, line in lines.items():
            colour = colours.setdefault(name, f"C{len(colours)}")
            label = name if len(dtypes) == 1 else f"{name}, {dtype}"
            x, y, error = zip(*line, strict=True)
            axis.errorbar(x, y, error, marker="os^"[k], color=colour, capsize=3, label=label)
        first, last = mine[0]["passes"], mine[-1]["passes"]
        for row in mine[0]["contenders"]:
            if row["kind"] == "long":
                value, _ = _value(row, metric)
                axis.hlines(value, first - 0.5, last + 0.5, ls=":", color="grey")
                axis.annotate(f"{row['steps']} steps", (first - 0.5, value), fontsize=7)
    axis.set(xlabel="network passes an image", ylabel=metric)
    axis.margins(0.1)


def _rows(parts: list[dict], metric: str) -> Iterator[tuple[str, float, float]]:
    """(label, FD, its error), from the top down; over search seeds where there are several."""
    for steps in dict.fromkeys(rows["steps"] for rows in parts):
        mine = [rows for rows in parts if rows["steps"] == steps]
        if "tests" in mine[0]:
            for place, test in mine[0]["tests"].items():
                every = test["contenders"]
                for name, row in (("ours", every[0]), ("best rival", best_rival(every, metric))):
                    if row:
                        yield f"{steps} steps, {place}: {name}", *_value(row, metric)
            continue
        for k, row in enumerate(mine[0]["contenders"]):
            found = [_value(rows["contenders"][k], metric) for rows in mine]
            value = float(np.mean([fd for fd, _ in found]))
            error = found[0][1]
            if len(found) > 1:
                error = float(np.std([fd for fd, _ in found], ddof=1) / np.sqrt(len(found)))
            yield f"{steps} steps: {row['name'].partition(' (')[0]}", value, error


def _bars(axis: Any, rows: list[tuple[str, float, float]], metric: str) -> None:
    names, values, errors = zip(*reversed(rows), strict=True)
    axis.barh(names, values, xerr=errors, capsize=3, color="tab:blue", alpha=0.7)
    axis.tick_params(axis="y", labelsize=8)
    axis.set(xlabel=f"{metric} ± standard error")


def _value(row: dict, metric: str) -> tuple[float, float]:
    score = row["scores"][metric]
    return score["value"], score["standard_error"] or 0.0
