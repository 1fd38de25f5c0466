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


RUNGS = """
## A better first rung?

Made by `scripts/bench/evaluation/study_rungs.py`: {count} schedules of {steps} steps, {images}
images each on common seeds, model in {dtype}. tau is Kendall's, of a ranking by a block of n
images with FD of all images outside it ({images} - n): mean over the draws, ± its spread. "Own
seeds" has schedules on different blocks, "known grids" those at the teacher's guidance alone, on
common seeds. The last columns are the spread of the difference of two schedules over the blocks,
both on the same or each on its own; that of the judge is in nats, all others in units of FD. The
control variate is the best known grid ({bases}), which is not ranked itself: taken
off is beta times (its FD_n on the same seeds - its FD of {further:,} images on other seeds).

On common seeds and at equal n, beta 1 takes the same constant from all schedules: the ranking and
the spread of differences are those of FD by itself.

| extractor | n | draws | statistic | tau | own seeds | known grids | spread, common | own |
|---|---|---|---|---|---|---|---|---|
"""

LADDERS = """
Along a ladder, on common seeds: FD of n images predicted from the first of them, for every
schedule but the baseline. "Mean shift" takes off the mean difference of all others, which is what
the search does with its finished trials; "baseline" that of the baseline alone, beta 1.

| extractor | from | to | prediction | bias | root mean square error |
|---|---|---|---|---|---|
"""


def write(rows: list[dict], errors: list[dict], settings: dict, folder: Path) -> None:
    """ranking.json, ranking.md and ranking.png."""
    data = {**settings, "rows": rows, "paired": errors}
    text = json.dumps(data, indent=1, allow_nan=False)
    write_whole(folder / "ranking.json", lambda p: p.write_text(text + "\n"))
    rewrite(folder)
    _plot(rows, folder / "ranking.png")


def rewrite(folder: Path) -> None:
    """ranking.md, of what is there: ranking.json and ranking-rungs.json."""
    made = {"ranking.json": _ranking, "ranking-rungs.json": _rungs}
    parts = [
        of(json.loads((folder / name).read_text()))
        for name, of in made.items()
        if (folder / name).exists()
    ]
    write_whole(folder / "ranking.md", lambda p: p.write_text("".join(parts)))


def _ranking(data: dict) -> str:
    heads = (
        "extractor | steps | statistic | among | schedules | seeds | n | draws | truth n | tau "
        "| of the best ten | top-5 regret | regret | passes a schedule"
    )
    lines = [ABOUT.format(**data), f"| {heads} |", "|---" * (heads.count("|") + 1) + "|"]
    lines += [
        f"| {r['extractor']} | {r['steps']} | {r['statistic']} | {r['among']} | {r['schedules']} "
        f"| {r['seeds']} | {r['n']:,} | {r['draws']} | {r['truth_images']:,} | {_tau(r)} "
        f"| {_number(r['tau_best_ten'])} | {_number(r['top5_regret'])} | {_number(r['regret'])} "
        f"| {r['passes']:,} |"
        for r in data["rows"]
    ]
    table = "\n".join(lines) + "\n" + PAIRED
    for r in data["paired"]:
        mark = "conservative" if r["conservative"] else ""
        table += (
            f"| {r['extractor']} | {r['steps']} | {r['n']:,} | {r['draws']} | {r['pairs']} "
            f"| {percent(r['covered'], '.0')} | {r['error_over_spread']:.2f} | {mark} |\n"
        )
    return table


def _rungs(data: dict) -> str:
    bases = "; ".join(f"{name}: {grid}" for name, grid in data["baselines"].items())
    table = RUNGS.format(**data, count=len(data["schedules"]), bases=bases)
    table += "".join(
        f"| {r['extractor']} | {r['n']} | {r['draws']} | {r['statistic']} | {_tau(r)} "
        f"| {r['tau_own']:.2f} | {r['tau_known']:.2f} "
        f"| {r['sd_common']:.2f} | {r['sd_own']:.2f} |\n"
        for r in data["rows"]
    )
    return (
        table
        + LADDERS
        + "".join(
            f"| {r['extractor']} | {r['few']} | {r['many']} | {r['how']} "
            f"| {percent(r['bias'], '+.1')} | {percent(r['rms'], '.1')} |\n"
            for r in data["ladders"]
        )
    )


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
