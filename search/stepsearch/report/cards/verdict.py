"""What was found, in a sentence with its interval; and what may be wrong with it."""

from typing import Any

from stepsampler.errors import counted
from stepsearch.report.cards import Card, Data, NotYet
from stepsearch.report.cards.health import checks
from stepsearch.report.sources import Contender, Source, half_width


def data(source: Source) -> Data:
    """`sentence`, the numbers in it, and `doubts`."""
    if not source.contenders:
        raise NotYet(
            f"{source.state} The verdict is of the test, with which a run ends; the cards below "
            "show what is known so far."
        )
    made = {"run": _of_run, "evaluation": _of_evaluation, "front": _of_front}
    found = made[source.kind](source)
    found["doubts"] = [
        f"{check['sentence']} {check['do']}".strip()
        for check in checks(source)
        if check["state"] in ("LOOK", "FAIL")
    ]
    return found


def _of_run(source: Source) -> Data:
    assert source.result is not None
    assert source.config is not None
    metric = source.metrics[0]
    told: dict[str, Any] = {
        "state": source.state,
        "metric": metric,
        "sentence": str(source.result["verdict"]),
        "passes": source.config.space.passes,
        "n": source.contenders[0].n,
    }
    base = source.base
    if base is None:
        return told
    rivals = [c for c in source.contenders if c.kind == "baseline"]
    told |= {"found": _plain(base, metric), "compared": [c.name for c in rivals]}
    if rivals:
        best = min(rivals, key=lambda c: c.scores[metric].value)
        told |= {"best": _plain(best, metric)}
        told |= _gain(best, metric)
    teacher = next((c for c in source.contenders if c.kind == "teacher"), None)
    if teacher:
        told["teacher"] = _plain(teacher, metric)
    return told


def _of_evaluation(source: Source) -> Data:
    metric = source.metrics[0]
    scored = [c for c in source.contenders if metric in c.scores]
    lowest = min(scored, key=lambda c: c.scores[metric].value)
    told: dict[str, Any] = {
        "state": source.state,
        "metric": metric,
        "n": lowest.n,
        "compared": [c.name for c in source.contenders],
        "found": _plain(lowest, metric),
    }
    if len(scored) == 1:
        told["sentence"] = f"{lowest.name} was measured alone: there is nothing to compare it with."
        return told
    if lowest is source.base:
        rest = [c for c in scored if c is not lowest]
        best = min(rest, key=lambda c: c.scores[metric].value)
        told |= {"best": _plain(best, metric), **_gain(best, metric)}
        head = f"{lowest.name}, the first, has the lowest {metric}; next comes {best.name}."
    else:
        first = source.base
        assert first is not None
        told |= {"best": _plain(first, metric), **_gain(lowest, metric, -1)}
        head = (
            f"Of {counted(len(scored), 'contender')}, {lowest.name} has the lowest {metric}; the "
            f"first is {first.name}."
        )
    low = told.get("interval_95", [None])[0]
    sure = low is not None and low > 0
    told["sentence"] = head + (
        "" if sure else " The difference is within the noise: this does not show which is better."
    )
    return told


def _of_front(source: Source) -> Data:
    metric = source.metrics[0]
    kept = [c for c in source.contenders if c.kind == "front"]
    each = [
        f"{counted(c.passes or 0, 'pass')}: {c.scores[metric].value:.3g} ({c.name})" for c in kept
    ]
    count, are = counted(len(source.contenders), "schedule"), "is" if len(kept) == 1 else "are"
    return {
        "state": source.state,
        "metric": metric,
        "n": source.contenders[0].n,
        "compared": [c.name for c in source.contenders],
        "sentence": f"Of {count}, {len(kept)} {are} on the front. {'; '.join(each)}.",
    }


def _plain(c: Contender, metric: str) -> Data:
    score = c.scores.get(metric)
    return {
        "name": c.name,
        "value": score and score.value,
        "se": score and score.se,
        "passes": c.passes,
        "alignment": c.alignment and c.alignment.value,
    }


def _gain(other: Contender, metric: str, sign: int = 1) -> Data:
    """By how much another one is worse, with its 95 % interval."""
    known = other.minus.get(metric)
    if known is None:
        return {}
    half = half_width(known.se, other.n)
    gain = sign * known.value
    interval = None if half is None else [gain - half, gain + half]
    return {"gain": gain, "gain_se": known.se, **({"interval_95": interval} if interval else {})}


CARD = Card("Verdict", "the test in result.json", data)
