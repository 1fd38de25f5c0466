"""What the tests say of the targets: gaps to the teacher, the shares closed, equal passes, losses.

All differences are paired image by image. The best rival is the one that is best on the test seeds
themselves, which favours the rivals.
"""

import numpy as np

from stepsearch.metrics.distance import Score

RULE = 4  # standard errors that a gap must have before a share of it says anything
DROP = 0.01  # of alignment that a schedule may lose to the teacher's, as in our search
SAW = "searched with "  # in the name of one of our rows: another extractor
RIVAL_KINDS = ("placement", "learned", "search")


def score(row: dict, metric: str) -> Score:
    known = row["scores"][metric]
    return Score(known["value"], np.array(known["left_out"]), known["conservative"])


def minus(a: dict, b: dict, metric: str) -> tuple[float, float]:
    """Difference of two rows of a test, and its standard error."""
    return score(a, metric).minus(score(b, metric))


def alignment(row: dict) -> float:
    return float(row["scores"]["alignment"]["value"])


def best_rival(
    rows: list[dict], metric: str, kinds: tuple[str, ...] = RIVAL_KINDS, floor: float = 0.0
) -> dict | None:
    """The one of lowest FD, of those whose alignment is not below the floor."""
    found = [row for row in rows if row["kind"] in kinds and alignment(row) >= floor]
    return min(found, key=lambda row: row["scores"][metric]["value"], default=None)


def closed(ours: dict, rival: dict, teacher: dict, metric: str) -> Score:
    """The share of a rival's gap to the teacher that is gone with ours, by the jackknife."""
    a, b, c = (score(row, metric) for row in (rival, ours, teacher))
    return Score((a.value - b.value) / (a.value - c.value), _over(a, b, a, c))


def excess(ours: dict, other: dict, metric: str) -> Score:
    """Ours over another row, less 1."""
    a, b = score(ours, metric), score(other, metric)
    return Score(a.value / b.value - 1, a.left_out / b.left_out - 1)


def _over(a: Score, b: Score, c: Score, d: Score) -> np.ndarray:
    return (a.left_out - b.left_out) / (c.left_out - d.left_out)


def by_what_they_saw(rows: list[dict], first: str) -> dict[str, dict]:
    """Our searches' rows by the extractor they saw: that of the first row, and of `--also`."""
    others = {r["name"].partition(SAW)[2].partition(" (")[0]: r for r in rows if SAW in r["name"]}
    return {first: rows[0], **others}


def targets(rows: list[dict], ours: dict, metric: str, screened: bool = True) -> dict | None:
    """The figures of one of our rows, or None where the test has no rival or no teacher.

    Nothing is met or missed where the rivals were not screened under what our search saw.
    The teacher is the row with the most steps, the other long row is that of the second target.
    """
    long = sorted((r for r in rows if r["kind"] == "long"), key=lambda row: row["steps"])
    rival, plain = best_rival(rows, metric), best_rival(rows, metric, ("placement",))
    if not long or rival is None or plain is None:
        return None
    teacher = long[-1]
    gap, gap_se = minus(rival, teacher, metric)
    shares = [closed(ours, other, teacher, metric) for other in (rival, plain)]
    aligned = best_rival(rows, metric, floor=alignment(teacher) - DROP)
    difference, se = minus(ours, rival, metric)
    applies = gap > RULE * gap_se
    enough = shares[0].value >= 0.3 and shares[1].value >= 0.5
    return {
        "rival": rival["name"],
        "gap": [gap, gap_se],
        "applies": bool(applies),
        "closed": [shares[0].value, shares[0].se],
        "without_search": plain["name"],
        "closed_without_search": [shares[1].value, shares[1].se],
        "minus_rival": [difference, se],
        "aligned": aligned and aligned["name"],
        "minus_aligned": aligned and list(minus(ours, aligned, metric)),
        "minus_shorter": list(minus(ours, long[0], metric)) if len(long) > 1 else None,
        "shorter": long[0]["name"],
        "over_teacher": [excess(ours, teacher, metric).value, excess(ours, teacher, metric).se],
        "teacher": teacher["name"],
        "met": bool(enough if applies else difference <= se) if screened else None,
    }


def races(rows: list[dict], metric: str) -> list[dict]:
    """Ours, whole and after a share of its passes, against each searching rival."""
    mine = [r for r in rows if r["kind"] == "ours" or "of the passes" in r["name"]]
    return [
        {
            "ours": row["name"],
            "rival": rival["name"],
            "share": row["search_passes"] / rival["search_passes"],
            "difference": list(minus(row, rival, metric)),
        }
        for rival in rows
        if rival["kind"] == "search"
        for row in mine
    ]


def losses(tests: dict[str, dict]) -> list[dict]:
    """Ours against the best rival in each test, and how much of the first advantage is left.

    That is None where the first test showed none beyond two standard errors, and the share of the
    gap closed where the rival has none to the row of most steps beyond four.
    """
    found: list[dict] = []
    first: dict[str, tuple[float, float]] = {}
    for place, test in tests.items():
        for metric in metrics(test):
            rows = test["contenders"]
            rival = best_rival(rows, metric)
            if rival is None:
                continue
            difference, se = minus(rows[0], rival, metric)
            long = max((r for r in rows if r["kind"] == "long"), key=lambda r: r["steps"])
            share = closed(rows[0], rival, long, metric)
            gap, gap_se = minus(rival, long, metric)
            before = first.setdefault(metric, (difference, se))
            ahead = before[0] < -2 * before[1]  # or there is no advantage to lose
            found.append(
                {
                    "test": place,
                    "metric": metric,
                    "rival": rival["name"],
                    "difference": [difference, se],
                    "closed": [share.value, share.se] if gap > RULE * gap_se else None,
                    "kept": difference / before[0] if ahead else None,
                }
            )
    return found


def metrics(rows: dict) -> list[str]:
    return [name for name in rows["contenders"][0]["scores"] if name != "alignment"]
