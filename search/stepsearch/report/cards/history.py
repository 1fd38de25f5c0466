"""What each trial found against what it had cost, and which axes mattered."""

import warnings
from math import isfinite
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from stepsampler.errors import counted
from stepsearch.config import StudyConfig
from stepsearch.engine.ladder import infeasible
from stepsearch.engine.study import distance_of
from stepsearch.report.cards import Card, Data, NotYet
from stepsearch.report.charts import Axis, Series, bars, lines, panels
from stepsearch.report.sources import Source

LEAST = 10  # trials from which importances say anything
SLICES = 6
MOST_POINTS = 400  # of a chart; every so manieth of more, and the best one


def data(source: Source) -> Data:
    """`trials` by number with the passes so far, `importances` and `slices`."""
    if source.evaluation:
        raise NotYet("This is a comparison: nothing was searched.")
    trials = source.trials
    if source.study is None or not trials:
        raise NotYet(f"{source.state} The history begins with the first trial.")
    assert source.config is not None
    shown = trail(source.study, trials, source.config)
    importances, why_not = _importances(source.study, trials)
    names = list(importances) or sorted({name for t in trials for name in t.params})
    pruned = len(source.study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)))
    return {
        "images": source.config.evaluation.images,
        "word": source.config.evaluation.word,
        "trials": shown,
        "pruned": pruned,
        "importances": importances,
        "no_importances": why_not,
        "slices": {
            name: [[t.params[name], distance_of(t)] for t in _thinned(trials) if name in t.params]
            for name in names[:SLICES]
        },
        "sliced": len(_thinned(trials)),
    }


def trail(study: optuna.Study, trials: list[FrozenTrial], config: StudyConfig) -> list[Data]:
    """Each finished trial in turn, with the passes until then and the best value so far."""
    shown, spent, best = [], 0, float("inf")
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    whole = {t.number for t in trials}
    for trial in study.get_trials(deepcopy=False, states=states):
        known = trial.user_attrs
        n = known.get("images", config.evaluation.images)
        spent += known.get("passes", 0) * n
        if trial.number not in whole:
            continue
        value = distance_of(trial)
        if not infeasible(trial):
            best = min(best, value)
        shown.append(
            {
                "number": trial.number,
                "passes": spent,
                "value": value,
                "best": best if isfinite(best) else None,
                "alignment": _known(known.get("alignment")),
                "kept_alignment": not infeasible(trial),
                "origin": known.get("origin"),
            }
        )
    return shown


def _known(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def _importances(
    study: optuna.Study, trials: list[FrozenTrial]
) -> tuple[dict[str, float], str | None]:
    """Share of each parameter in what tells the best tenth of the trials from all of them."""
    if len(trials) < LEAST:
        said = counted(len(trials), "trial")
        return {}, f"{said} are too few for importances; they need {LEAST}."
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(
                study, evaluator=evaluator, target=distance_of
            )
    except (RuntimeError, ValueError) as error:  # such as no parameter in common
        return {}, f"No importances: {error}"
    return {name: float(value) for name, value in found.items()}, None


def _thinned(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    every = -(-len(trials) // MOST_POINTS)
    best = min(trials, key=distance_of)
    return [t for i, t in enumerate(trials) if i % every == 0 or t is best]


def charts(data: Data) -> dict[str, str]:
    """The objective against passes with the best so far; importances; a slice along each axis."""
    trials = data["trials"]
    every = -(-len(trials) // MOST_POINTS)
    some = trials[::every]

    def points(name: str, chosen: list[dict[str, Any]]) -> Series:
        values = [t["value"] for t in chosen]
        return Series(name, [t["passes"] for t in chosen], values, line=False)

    best = [t for t in trials if t["best"] is not None]
    known = [t for t in trials if t["origin"] and t["kept_alignment"]]
    stair = ([t["passes"] for t in best], [t["best"] for t in best])
    series = [
        Series("best so far", *stair, marker=False, steps=True),
        points("a trial", [t for t in some if t["kept_alignment"] and not t["origin"]]),
        points("a known schedule, scored first", known),
        points("lost too much alignment", [t for t in some if not t["kept_alignment"]]),
    ]
    drawn = [s for s in series if len(s.x)]
    y = Axis(f"{data['word']} of {counted(data['images'], 'image')}", log=True)
    found = {"history": lines("history", drawn, Axis("network passes of the search"), y)}
    if data["importances"]:
        named = list(data["importances"].items())[:12]
        found["importances"] = bars("importances", named, "share (PED-ANOVA)")
    if data["slices"]:
        titled = [
            (name, [Series("", [x for x, _ in dots], [v for _, v in dots], line=False)])
            for name, dots in data["slices"].items()
        ]
        found["slices"] = panels("slices", titled, Axis(data["word"], log=True))
    return found


CARD = Card("How it was found", "the trials in the journal", data, charts, of=("run", "evaluation"))
