"""What `study_ranking.py` writes: every number, a table in markdown, and a plot."""

import json
from pathlib import Path

from ranking.analysis import HALVES, KNOWN, STATISTICS
from stepsampler.errors import percent
from stepsearch.paths import write_whole

ABOUT = """\
# How far a small subset ranks schedules: the table

Made by `scripts/bench/evaluation/study_ranking.py`, model in {dtype}. Subsets are disjoint blocks
of n images of each schedule, as many as "draws" says; the truth is FD on other seeds, the same
images for all, and on real images that no statistic has seen. "Common": all schedules are ranked
on the same block. "Own": tau is over the pairs of schedules that lie on different blocks. "Among
the teacher's guidance" are the known grids, the only ones whose distance to the teacher is fair;
the teacher's 100 passes an image, which all schedules share, are not among the passes. tau is the
mean over the draws, ± its spread from draw to draw; regrets are in units of the true FD: how much
worse than the best of all are the best of the five that the statistic likes most, and its
favourite. "One half of the truth" ranks by FD of one half of the truth's images what the other
half says is true: so far does the truth agree with itself (grey in the plot). Blocks of n that
are no whole turns of the 270 prompts differ in the prompts, too.
"""


PAIRED = """
## Errors of paired differences

Differences in FD of each schedule to the best one, on disjoint blocks of n images of the truth:
the share of their 95 % intervals that hold the mean of all blocks, and the error by the block
jackknife over the spread from block to block. With no more images than features the error is
marked conservative.

| extractor | steps | n | blocks | pairs | covered | error / spread | |
|---|---|---|---|---|---|---|---|
"""


def write(rows: list[dict], errors: list[dict], settings: dict, folder: Path) -> None:
    """ranking.json, ranking.md and ranking.png."""
    data = {**settings, "rows": rows, "paired": errors}
    text = json.dumps(data, indent=1, allow_nan=False)
    write_whole(folder / "ranking.json", lambda p: p.write_text(text + "\n"))
    heads = (
        "extractor | steps | statistic | among | schedules | seeds | n | draws | truth n | tau "
        "| of the best ten | top-5 regret | regret | passes a schedule"
    )
    lines = [ABOUT.format(**settings), f"| {heads} |", "|---" * (heads.count("|") + 1) + "|"]
    lines += [
        f"| {r['extractor']} | {r['steps']} | {r['statistic']} | {r['among']} | {r['schedules']} "
        f"| {r['seeds']} | {r['n']:,} | {r['draws']} | {r['truth_images']:,} | {_tau(r)} "
        f"| {_number(r['tau_best_ten'])} | {_number(r['top5_regret'])} | {_number(r['regret'])} "
        f"| {r['passes']:,} |"
        for r in rows
    ]
    table = "\n".join(lines) + "\n" + PAIRED
    for r in errors:
        mark = "conservative" if r["conservative"] else ""
        table += (
            f"| {r['extractor']} | {r['steps']} | {r['n']:,} | {r['draws']} | {r['pairs']} "
            f"| {percent(r['covered'], '.0')} | {r['error_over_spread']:.2f} | {mark} |\n"
        )
    write_whole(folder / "ranking.md", lambda p: p.write_text(table))
    _plot(rows, folder / "ranking.png")


def _tau(row: dict) -> str:
    spread = "" if row["tau_sd"] is None else f" ± {row['tau_sd']:.2f}"
    return _number(row["tau"]) + spread


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _plot(rows: list[dict], path: Path) -> None:
    """Tau against n: a column for each extractor and number of steps, a line for each statistic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = sorted({(r["extractor"], r["steps"]) for r in rows}, reverse=True)
    sizes = sorted({r["n"] for r in rows if r["statistic"] != HALVES})
    lowest = min(r["tau"] for r in rows if r["tau"] is not None)
    groups = [g for g in ("all", KNOWN) if any(r["among"] == g for r in rows)]
    size = (4.2 * len(columns), 3.8 * len(groups))
    figure, axes = plt.subplots(
        len(groups), len(columns), figsize=size, squeeze=False, sharey=True, sharex=True
    )
    for group, line in zip(groups, axes, strict=True):
        for (extractor, steps), axis in zip(columns, line, strict=True):
            here = [
                r
                for r in rows
                if (r["extractor"], r["steps"], r["among"]) == (extractor, steps, group)
            ]
            for row in here:
                if row["statistic"] == HALVES:
                    axis.axhline(row["tau"], color="grey", lw=0.8, ls="--")
            for k, kind in enumerate(STATISTICS):
                for seeds, style in (("common", "-"), ("own", ":")):
                    mine = [r for r in here if (r["statistic"], r["seeds"]) == (kind, seeds)]
                    points = [(r["n"], r["tau"]) for r in mine if r["tau"] is not None]
                    if points:
                        label = kind if seeds == "common" else None
                        x, y = zip(*points, strict=True)
                        axis.plot(x, y, style, color=f"C{k}", label=label, marker=".")
            count = here[0]["schedules"] if here else 0
            title = f"{extractor}, {steps} steps, {count} schedules"
            axis.set(title=title, xscale="log", xlabel="images", ylim=(lowest - 0.03, 1))
            axis.set_xticks(sizes, [f"{n:,}" for n in sizes])
            axis.minorticks_off()
        line[0].set_ylabel("Kendall's tau with the truth (dotted: own seeds)")
        line[0].legend(fontsize=7)
    figure.tight_layout()
    write_whole(path, lambda p: figure.savefig(p, format="png", dpi=110))
    plt.close(figure)
