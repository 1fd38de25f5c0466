"""What `bench_peers.py` writes: every number, tables in markdown, and a plot."""

import json
from pathlib import Path

from stepsearch.paths import write_whole


def write(found: dict, path: Path) -> None:
    """path.json, path.md and path.png of what is there so far."""
    text = json.dumps(found, indent=1)
    write_whole(path.with_suffix(".json"), lambda p: p.write_text(text + "\n"))
    lines = [
        "# Rivals and our search at equal passes",
        "",
        "Made by `scripts/bench_peers.py` on the bundled model. Rows of the tests are on fresh "
        "seeds; differences to the first row are paired, with 95 % intervals. The search saw the "
        "first of the two extractors only.",
    ]
    for rows in sorted(found["steps"], key=lambda rows: rows["steps"]):
        title = f"{rows['steps']} guided steps, {rows['passes']} passes, n = {rows['n']:,}"
        lines += ["", f"## {title}", "", *_test(rows)]
        if "screening" in rows:
            lines += ["", *_screening(rows["screening"])]
            costs = [
                f"{name}: {cost['passes']:,} passes, {cost['seconds']:.0f} s"
                for name, cost in rows["costs"].items()
            ]
            lines += ["", "Placements that had to be computed: " + "; ".join(costs) + "."]
    if "long" in found:
        lines += ["", f"## More passes, n = {found['long']['n']:,}", "", *_test(found["long"])]
    table = "\n".join(lines) + "\n"
    write_whole(path.with_suffix(".md"), lambda p: p.write_text(table))
    _plot(found, path.with_suffix(".png"))


def _metrics(rows: dict) -> list[str]:
    return [name for name in rows["contenders"][0]["scores"] if name != "alignment"]


def _test(rows: dict) -> list[str]:
    metrics = _metrics(rows)
    paired = {(d["contender"], d["metric"]): d["interval_95"] for d in rows["differences"]}
    heads = [x for metric in metrics for x in (metric, "minus the first, 95 %")]
    lines = [
        "| schedule | steps | passes | "
        + " | ".join(heads)
        + " | alignment | search: passes | minutes |",
        "|---|" + "---|" * (len(heads) + 5),
    ]
    for row in rows["contenders"]:
        cells = [row["name"], str(row["steps"]), f"{row['passes']:g}"]
        for metric in metrics:
            score = row["scores"][metric]
            error = score["standard_error"]
            cells.append(f"{score['value']:.2f}" + (f" ± {error:.2f}" if error else ""))
            interval = paired.get((row["name"], metric))
            cells.append("" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}")
        cells.append(f"{row['scores']['alignment']['value']:.1%}")
        spent = row["search_passes"]
        cells += [f"{spent:,}", f"{row['minutes']:.0f}"] if spent else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _screening(rows: list[dict]) -> list[str]:
    """The best form of each placement, guided and not, on the search seeds."""
    places = dict.fromkeys(row["placement"] for row in rows)
    lines = [f"Screening, FD at n = {rows[0]['n']}:", "", "| guided | FD | unguided | FD |"]
    lines.append("|---|---|---|---|")
    for place in places:
        cells = []
        for guided in (True, False):
            found = [r for r in rows if (r["placement"], r["guided"]) == (place, guided)]
            cells += [found[0]["name"], f"{found[0]['fd']:.2f}"] if found else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _plot(found: dict, path: Path) -> None:
    """FD against passes, a panel an extractor: the first row, and the best of the others."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    parts = sorted(found["steps"], key=lambda rows: rows["steps"])
    metrics = _metrics(parts[0])
    figure, axes = plt.subplots(1, len(metrics), figsize=(5 * len(metrics), 4), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        lines: dict[str, list[tuple[int, float, float]]] = {}
        for rows in parts:
            values = {row["name"]: row["scores"][metric] for row in rows["contenders"]}
            first, *others = values
            points = {first: values[first]}
            if "screening" in rows:
                screened = [name for name in others if not name.endswith("-like")]
                points["best placement"] = min(
                    (values[name] for name in screened), key=lambda score: score["value"]
                )
            points |= {name: values[name] for name in others if name not in points}
            for name, score in points.items():
                if name in (first, "best placement") or name.endswith("-like"):
                    error = score["standard_error"] or 0.0
                    lines.setdefault(name, []).append((rows["passes"], score["value"], error))
        for name, line in lines.items():
            x, y, error = zip(*line, strict=True)
            axis.errorbar(x, y, error, marker="o", capsize=3, label=name)
        for row in found.get("long", {"contenders": []})["contenders"]:
            axis.axhline(row["scores"][metric]["value"], ls=":", color="grey")
            axis.annotate(row["name"], (x[0], row["scores"][metric]["value"]), fontsize=7)
        axis.set(xlabel="network passes an image", ylabel=metric)
        axis.legend(fontsize=8)
    figure.tight_layout()
    write_whole(path, lambda p: figure.savefig(p, format="png", dpi=110))
    plt.close(figure)
