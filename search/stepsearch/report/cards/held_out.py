"""The table of the test, sortable; and the same as Markdown and LaTeX."""

from typing import Any

from stepsampler.errors import percent
from stepsearch.compare.figures import with_error
from stepsearch.report.cards import Card, Data, NotYet
from stepsearch.report.sources import Contender, Source, half_width

LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
)


def data(source: Source) -> Data:
    """`rows` of plain numbers, and both texts."""
    if not source.contenders:
        raise NotYet(f"{source.state} The table is of the test, with which a run ends.")
    base = source.base
    made = source.schedule.provenance if source.schedule else {}
    exported = None if source.evaluation else made.get("source")
    rows = [{**_row(c, source), "exported": c.name == exported} for c in source.contenders]
    metrics = list(source.metrics)
    seconds = any(row["seconds"] is not None for row in rows)
    aligned = any(row["alignment"] is not None for row in rows)
    paired = any("minus" in score for row in rows for score in row["scores"].values())
    cells = [_cells(row, metrics, aligned, paired) for row in rows]
    minus = {"run": "found", "evaluation": "first", "front": "front above"}[source.kind]
    head = ["schedule", "steps", "passes"]
    for name in metrics:
        head += [f"{name} ± se", *([f"minus {minus}, 95 %"] if paired else [])]
    head += ["alignment"] * aligned
    return {
        "base": base and base.name,
        "minus": minus if paired else None,
        "metrics": metrics,
        "unseen": list(source.unseen),
        "rows": rows,
        "has_seconds": seconds,
        "has_alignment": aligned,
        "markdown": _markdown(head, cells),
        "latex": _latex(head, cells),
    }


def _row(c: Contender, source: Source) -> Data:
    scores: dict[str, Any] = {}
    for name, value in c.scores.items():
        scores[name] = {"value": value.value, "se": value.se}
        if (less := c.minus.get(name)) is not None:
            half = half_width(less.se, c.n)
            scores[name]["minus"] = less.value
            if half is not None:
                scores[name]["interval_95"] = [less.value - half, less.value + half]
    each = source.seconds_per_pass
    return {
        "name": c.name,
        "kind": c.kind,
        "base": c is source.base,
        "steps": c.steps,
        "passes": c.passes,
        "n": c.n,
        "scores": scores,
        "alignment": c.alignment and c.alignment.value,
        "alignment_se": c.alignment and c.alignment.se,
        # estimated: no contender's clock is kept, but each trial's is
        "seconds": None if each is None or c.passes is None else each * c.passes,
    }


def _cells(row: Data, metrics: list[str], aligned: bool, paired: bool) -> list[str]:
    found = [row["name"], str(row["steps"] or ""), f"{row['passes']:g}" if row["passes"] else ""]
    for name in metrics:
        score = row["scores"].get(name)
        if score is None:
            found += ["", ""] if paired else [""]
            continue
        found += [_number(score), interval(score)] if paired else [_number(score)]
    if aligned:
        share = row["alignment"]
        found.append("" if share is None else percent(share))
    return found


def _number(score: Data) -> str:
    return with_error(score["value"], float("nan") if score["se"] is None else score["se"])


def interval(score: Data) -> str:
    """The difference with its interval, or nothing."""
    if "minus" not in score:
        return ""
    if "interval_95" not in score:
        return f"{score['minus']:+.3g}"
    low, high = score["interval_95"]
    return f"{score['minus']:+.3g} [{low:+.3g}, {high:+.3g}]"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    safe = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in safe) + "\n"


def _latex(head: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        texts = (c.translate(LATEX).replace("±", r"$\pm$").replace("\n", " ") for c in cells)
        return " & ".join(texts) + r" \\"

    body = "\n".join(line(row) for row in rows)
    columns = "l" + "r" * (len(head) - 1)
    return (
        f"\\begin{{tabular}}{{{columns}}}\n\\hline\n{line(head)}\n\\hline\n{body}\n\\hline\n"
        "\\end{tabular}\n"
    )


CARD = Card("On held-out seeds", "the test in result.json", data)
