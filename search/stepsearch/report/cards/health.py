"""What a sceptic would ask of the numbers: PASS, LOOK or FAIL, and what to do."""

from collections.abc import Callable, Iterator
from math import isfinite, log
from typing import Any

from optuna.distributions import FloatDistribution
from scipy.stats import spearmanr

from stepsampler.errors import counted, percent
from stepsearch.config.parts import SEEDS
from stepsearch.engine.study import failed, pruned, usable
from stepsearch.paths import read_json
from stepsearch.report.cards import Card, Data, NotYet
from stepsearch.report.sources import Source, Value

PASS, LOOK, FAIL, OPEN = "PASS", "LOOK", "FAIL", "OPEN"
EDGE = 0.02  # share of an interval that is its edge
FEW = 200  # images in the test below which nothing can be claimed
AGREES = 0.7  # rank correlation of a rung with the whole
PAIRS = 8  # trials from which it says anything
LATE = 0.25  # share of the trials at the end; a record among them means that more may come
JITTER = "jitter.json"


def data(source: Source) -> Data:
    """`checks`: each with `name`, `state`, `sentence` and what to `do`."""
    found = checks(source)
    if not found:
        raise NotYet(f"{source.state} There is nothing to check yet.")
    return {"checks": found}


def checks(source: Source) -> list[dict[str, str]]:
    """All that apply to what there is."""
    every = _OF_EVALUATION if source.evaluation else _OF_RUN
    found = []
    for name, check in every.items():
        for state, sentence, do in check(source):
            found.append({"name": name, "state": state, "sentence": sentence, "do": do})
    return found


Said = Iterator[tuple[str, str, str]]


def _images(source: Source) -> Said:
    if not source.contenders:
        return
    n = source.contenders[0].n
    if n < FEW:
        yield (
            FAIL,
            f"The test has {counted(n, 'image')}, too few to claim anything.",
            (f"Take at least {FEW}; 1,000 or more tell small differences."),
        )
    else:
        yield PASS, f"The test has {counted(n, 'image')} of each contender.", ""


def _noise(source: Source) -> Said:
    base = source.base
    if base is None or not source.metrics:
        if source.contenders and not source.evaluation:
            yield (
                LOOK,
                "No found schedule is in the test: the best known one is exported.",
                ("Search longer, or widen the box."),
            )
        return
    metric = source.metrics[0]
    rivals = [c for c in source.contenders if c.kind in ("baseline", "contender")]
    known = [(c, c.minus[metric]) for c in rivals if metric in c.minus and c.minus[metric].se]
    if not known:
        return
    near, less = min(known, key=lambda pair: pair[1].value)
    errors = less.value / (less.se or 1.0)
    what = f"The best other one, {near.name}, is {less.value:+.3g} ± {less.se:.2g} from it"
    if errors > 2:
        yield PASS, f"{what}: {errors:.1f} standard errors.", ""
    elif errors > -2:
        yield LOOK, f"{what}, which is within the noise.", "More test images tell them apart."
    else:
        yield FAIL, f"{what}: it is better.", "Take that one, or search longer."


def _extractors(source: Source) -> Said:
    if not source.contenders or not source.metrics:
        return
    metrics = source.metrics
    others = [c for c in source.contenders if c.kind in ("baseline", "contender") and c.minus]
    measured = [m for m in metrics if any(m in c.minus for c in others)]
    if len(metrics) == 1:
        do = "Measure under another: stepsearch evaluate … --extractor lite0."
        yield LOOK, f"Only {metrics[0]} was measured, which the search may have learnt.", do
        return
    against = [
        f"{c.name} under {m}"
        for c in others
        for m in measured[1:]
        if m in c.minus and metrics[0] in c.minus
        if _side(c.minus[m]) * _side(c.minus[metrics[0]]) < 0
    ]
    if against:
        more = f" and {len(against) - 3} more" if len(against) > 3 else ""
        said = "; ".join(against[:3]) + more
        yield LOOK, f"Extractors disagree on {said}.", "Look at the pictures; search under both."
    elif measured[1:]:
        yield PASS, f"None of {', '.join(measured)} contradicts another on who is better.", ""


def _side(less: Value) -> int:
    """1 or -1 where a difference is beyond two of its errors, else 0."""
    return (less.value > 2 * (less.se or 0)) - (less.value < -2 * (less.se or 0))


def _alignment(source: Source) -> Said:
    base = source.base
    teacher = next((c for c in source.contenders if c.kind == "teacher"), None)
    if base is None or base.alignment is None or not teacher or teacher.alignment is None:
        return
    assert source.config is not None
    most = source.config.search.alignment_drop
    drop = teacher.alignment.value - base.alignment.value
    what = (
        f"Found {percent(base.alignment.value)}, teacher {percent(teacher.alignment.value)} "
        f"(on {counted(teacher.n, 'image')}); the study allows {percent(most)} less."
    )
    if drop <= most:
        yield PASS, what, ""
    else:
        yield LOOK, what, "Images show less of what is asked: raise guidance, or allow less drop."


def _edges(source: Source) -> Said:
    if source.study is None or not source.trials:
        return
    number = source.base and (source.result or {}).get("test", [{}])[0].get("trial")
    trials = usable(source.study)
    best = next((t for t in trials if t.number == number), trials[0] if trials else None)
    if best is None:
        return
    who = f"Trial {best.number}"
    if best.number != number:  # exported is a baseline, polished or not: no point of the box
        who = f"The best trial, {best.number},"
    at = []
    for name, interval in best.distributions.items():
        if not isinstance(interval, FloatDistribution) or interval.single():
            continue
        low, high, value = interval.low, interval.high, best.params[name]
        share = (value - low) / (high - low)
        if interval.log:
            share = log(value / low) / log(high / low)
        if not EDGE < share < 1 - EDGE:
            at.append(f"{name} = {value:.3g} of {low:g} to {high:g}")
    if at:
        yield (
            LOOK,
            f"{who} lies at the edge of the box: {'; '.join(at)}.",
            ("Widen these intervals, unless an edge means «off»."),
        )
    else:
        yield PASS, f"{who} lies inside the box with all its numbers.", ""


def _rungs(source: Source) -> Said:
    if source.config is None or not source.config.evaluation.rungs or not source.trials:
        return
    for rung in source.config.evaluation.rungs[:-1]:
        pairs = [
            (t.intermediate_values[rung], float(t.values[0]))
            for t in source.trials
            if rung in t.intermediate_values
        ]
        if len(pairs) < PAIRS:
            said = f"{counted(len(pairs), 'trial')} of both"
            yield OPEN, f"{rung} images: {said} are too few to compare with the whole.", ""
            continue
        rank = float(spearmanr(*zip(*pairs, strict=True)).statistic)
        what = f"{rung} images rank {len(pairs)} whole trials as all images do: {rank:.2f}"
        if not isfinite(rank):
            continue
        if rank >= AGREES:
            yield PASS, f"{what}.", ""
        else:
            yield LOOK, f"{what}, among those that were kept.", "Raise the lower rungs."


def _late(source: Source) -> Said:
    if len(source.trials) < PAIRS:
        return
    best = min(source.trials, key=lambda t: float(t.values[0]))
    every = [*source.trials, *(pruned(source.study) if source.study else ())]
    place, count = sum(t.number <= best.number for t in every), len(every)
    if place > (1 - LATE) * count:
        yield LOOK, f"The best trial came as number {place} of {count}.", "More trials may pay."
    else:
        yield PASS, f"The best trial came as number {place} of {count}.", ""


def _failures(source: Source) -> Said:
    if source.study is None:
        return
    lost = failed(source.study)
    if lost:
        reason = lost[-1].user_attrs.get("error", "")
        yield (
            LOOK,
            f"{counted(len(lost), 'trial')} failed. {reason}".strip(),
            ("Failed ones cost passes: narrow the box, or try another model.dtype."),
        )


def _seeds(source: Source) -> Said:
    if source.config is None:
        return
    evaluation = source.config.evaluation
    most = max(evaluation.images, evaluation.selection_images, evaluation.test_images)
    if most > SEEDS:
        yield FAIL, f"Ranges of {most:,} seeds overlap.", f"Take at most {SEEDS:,}."
        return
    yield (
        PASS,
        "Search, selection and test have seeds of their own.",
        (
            "All runs share the test's: whoever chooses among runs by it, should score the choice "
            "again (stepsearch front --images)."
        ),
    )


def _jitter(source: Source) -> Said:
    if source.folder is None or source.schedule is None:
        return
    path = source.folder / JITTER
    if not path.exists():
        yield OPEN, "How sharp the optimum is, is not measured.", "stepsearch report --jitter does."
        return
    known = read_json(path)
    told = ", ".join(
        f"{percent(row['share'], '.0')}: {row['minus']:+.3g} ± {row['minus_se']:.2g}"
        for row in known["rows"]
    )
    what = f"{known['metric']} when every number moves by so much: {told}."
    gain = known.get("gain")
    first = known["rows"][0]
    if gain is not None and first["minus"] > gain / 2:
        yield (
            LOOK,
            f"{what} Half of the gain is gone at {percent(first['share'], '.0')}.",
            ("Give tools all digits."),
        )
    else:
        yield PASS, what, ""


Checks = dict[str, Callable[[Source], Said]]
_OF_RUN: Checks = {
    "images": _images,
    "gain beyond the noise": _noise,
    "other extractors": _extractors,
    "alignment": _alignment,
    "edge of the box": _edges,
    "rungs": _rungs,
    "length of the search": _late,
    "failures": _failures,
    "seeds": _seeds,
    "jitter": _jitter,
}
_OF_EVALUATION: Checks = {
    "images": _images,
    "difference beyond the noise": _noise,
    "other extractors": _extractors,
}


def states(found: list[dict[str, Any]]) -> dict[str, int]:
    """How many there are of each."""
    return {s: sum(c["state"] == s for c in found) for s in (PASS, LOOK, FAIL, OPEN)}


CARD = Card("Health", "the test and the journal", data)
