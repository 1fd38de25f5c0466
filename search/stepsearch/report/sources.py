"""What there is to report on: a run, finished or not, or an evaluation, read without trust.

A file that is damaged or of another version is named among the `problems`; the rest is shown.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial

from stepsampler.errors import UserError, counted
from stepsampler.schedule import Schedule, load
from stepsearch.compare.figures import FORMAT
from stepsearch.config import StudyConfig
from stepsearch.engine.claim import BEST, RESULT, STUDY, claimed, has_ended
from stepsearch.engine.study import distance_of, finished, read_study, usable
from stepsearch.metrics.distance import BLOCKS, count_blocks
from stepsearch.metrics.evaluator import short
from stepsearch.paths import find_runs, read_json

DAMAGED = (ArithmeticError, AttributeError, LookupError, OSError, TypeError, UserError, ValueError)


@dataclass(frozen=True)
class Value:
    """A number with its standard error, where that is known."""

    value: float
    se: float | None = None


@dataclass(frozen=True)
class Contender:
    """A line of the table. Differences are those to the base, paired over the seeds."""

    name: str
    kind: str  # found, front, baseline, long, teacher; of an evaluation "contender"
    steps: int | None
    passes: float | None
    n: int  # images
    scores: dict[str, Value]  # by metric
    minus: dict[str, Value] = field(default_factory=dict)
    alignment: Value | None = None
    schedule: Schedule | None = None


@dataclass(frozen=True)
class Source:
    """All that the cards draw on; what is None is not there (yet)."""

    title: str
    state: str  # a sentence: how far it is
    contenders: tuple[Contender, ...] = ()
    metrics: tuple[str, ...] = ()  # the first one is that of the search
    base: Contender | None = None  # the found one, or the first: to which differences are
    folder: Path | None = None
    pictures: Path | None = None  # in which the folder of pictures lies
    config: StudyConfig | None = None
    study: Study | None = None
    result: dict[str, Any] | None = None  # result.json, or the file of an evaluation
    schedule: Schedule | None = None  # to use: the exported one, or the best so far
    problems: tuple[str, ...] = ()
    front: dict[str, Any] | None = None  # of several runs: who is on it
    unseen: tuple[str, ...] = ()  # of the metrics, those that nothing was chosen by

    @property
    def kind(self) -> str:
        """A run, an evaluation, or a front of runs."""
        return "front" if self.front else "evaluation" if self.config is None else "run"

    @property
    def evaluation(self) -> bool:
        """Whether there is no study, only contenders."""
        return self.config is None

    @property
    def trials(self) -> list[FrozenTrial]:
        """Finished ones, by number."""
        return [] if self.study is None else finished(self.study)

    @property
    def seconds_per_pass(self) -> float | None:
        """Of one image, feature included: the median over the trials' own clocks."""
        return seconds_of_a_pass(self.trials)


def seconds_of_a_pass(trials: Sequence[FrozenTrial], spared: bool = False) -> float | None:
    """The median over the clocks of measured trials; None without any.

    Of those that were made: an image alone takes all of them. With `spared`, of those that count,
    some of which trials are spared (`LatentModel.remembering`): so fast is a search.
    """
    took = [
        seconds / made
        for t in trials
        if (seconds := t.user_attrs.get("seconds"))
        and (counted := t.user_attrs.get("images", 0) * t.user_attrs.get("passes", 0))
        and (made := counted if spared else counted - t.user_attrs.get("saved", 0))
    ]
    return median(took) if took else None


def open_source(given: Path) -> Source:
    """A run by its folder or study file, or the result file of `stepsearch evaluate`.

    Raises:
        UserError: nothing of the kind is there.
    """
    if given.suffix == ".json" and not given.is_dir():
        return of_evaluation(_evaluation(given), given.stem)
    return of_run(find_runs(given, STUDY)[0])


def of_run(folder: Path) -> Source:
    """The run in a folder, however far it is.

    Raises:
        UserError: no run has started here, or its settings cannot be read.
    """
    config = claimed(folder)
    problems: list[str] = []
    study, result, exported = None, None, None
    try:
        study = read_study(folder, config)
    except (*DAMAGED, AssertionError) as error:  # Optuna's, of a record that it does not know
        problems.append(_named(folder / "journal.log", error))
    if (folder / RESULT).exists():
        try:
            result = read_json(folder / RESULT)
            if not isinstance(result, dict):
                raise ValueError("it holds no object")
        except DAMAGED as error:
            problems.append(_named(folder / RESULT, error))
            result = None
    if (folder / BEST).exists():
        try:
            exported = load(folder / BEST)
        except DAMAGED as error:
            problems.append(_named(folder / BEST, error))
    contenders, metrics, unseen = _tested(result, config, problems)
    base = next((c for c in contenders if c.kind == "found"), None)
    try:
        ranked = usable(study) if study else []
        schedule = exported or (
            Schedule.from_json(ranked[0].user_attrs["schedule"]) if ranked else None
        )
        state = _state(folder, config, result, ranked)
    except DAMAGED as error:
        problems.append(_named(folder / "journal.log", error))
        study, schedule, state = None, exported, "Its journal cannot be read."
    return Source(
        config.name,
        state,
        contenders,
        metrics,
        base,
        folder,
        folder,
        config,
        study,
        result,
        schedule,
        tuple(dict.fromkeys(problems)),
        unseen=unseen,
    )


def _named(path: Path, error: Exception) -> str:
    said = str(error)
    return said if said.startswith(str(path)) else f"{path.name} cannot be read: {said or error!r}"


def _state(
    folder: Path, config: StudyConfig, result: dict[str, Any] | None, ranked: list[FrozenTrial]
) -> str:
    if result and has_ended(folder, config):
        return "The run is finished."
    done = f"{len(ranked)} of {counted(config.search.trials, 'trial')} are measured"
    so_far = f"; the best so far has {distance_of(ranked[0]):.3f}" if ranked else ""
    again = " The test below is of its earlier end." if result else ""
    return f"The run is not finished: {done}{so_far}.{again}"


def _tested(
    result: dict[str, Any] | None, config: StudyConfig, problems: list[str]
) -> tuple[tuple[Contender, ...], tuple[str, ...], tuple[str, ...]]:
    """The test's lines, the names of the metrics, and of those that the search did not see."""
    if result is None:
        return (), (), ()
    try:
        rows = result["test"]
        metric = str(result["metric"])
        parts, unseen = metric_parts(rows[0]), list(rows[0].get("unseen", ()))
        found = [_row(row, metric, parts) for row in rows]
        if not any(c.kind == "teacher" for c in found):
            teacher = _row(result["teacher"], metric, parts)  # of other seeds, and another n
            found.append(replace(teacher, scores={}, minus={}))
        names = [f"{metric}_{short(int(rows[0]['n']))}", *parts, *unseen]
        return tuple(found), tuple(names), tuple(unseen)
    except DAMAGED as error:
        problems.append(f"{RESULT} is not whole: {error!r}")
        return (), (), ()


def metric_parts(row: dict[str, Any]) -> list[str]:
    """Names of the extractors that a line of the test was measured under beside their mean."""
    return [key for key, value in row.items() if isinstance(value, dict) and "fd" in value]


def _row(row: dict[str, Any], metric: str, parts: list[str]) -> Contender:
    n = int(row["n"])
    scores = {f"{metric}_{short(n)}": Value(float(row["fd"]), row["se"])}
    scores |= {p: Value(float(row[p]["fd"]), row[p]["se"]) for p in parts if p in row}
    minus = {}
    if row.get("minus_found") is not None and row["kind"] != "found":
        minus[f"{metric}_{short(n)}"] = Value(row["minus_found"], row["minus_found_se"])
    for part in parts:
        if part in row and row[part].get("minus_found") is not None and row["kind"] != "found":
            minus[part] = Value(row[part]["minus_found"], row[part]["minus_found_se"])
    for name, score in row.get("unseen", {}).items():
        scores[name] = Value(float(score["value"]), score["se"])
        if score.get("minus_found") is not None and row["kind"] != "found":
            minus[name] = Value(score["minus_found"], score["minus_found_se"])
    share = row.get("alignment")
    plan = row.get("schedule")
    return Contender(
        str(row["name"]),
        str(row["kind"]),
        int(row["steps"]),
        float(row["passes"]),
        n,
        scores,
        minus,
        None if share is None else Value(float(share), row.get("alignment_se")),
        None if plan is None else Schedule.from_json(json.dumps(plan)),
    )


def _evaluation(path: Path) -> dict[str, Any]:
    try:
        data = read_json(path)
        kind = data.get("format")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a result of stepsearch evaluate ({error})") from error
    if kind != FORMAT:
        raise UserError(f"{path}: the format must be {FORMAT!r}, got {kind!r}")
    return data  # type: ignore[no-any-return]


def of_evaluation(data: dict[str, Any], title: str, pictures: Path | None = None) -> Source:
    """What `stepsearch evaluate` measured, and the folder in which its pictures lie.

    Raises:
        UserError: the data are not whole.
    """
    try:
        differences: dict[str, dict[str, Value]] = {}
        for d in data["differences"]:
            of = differences.setdefault(d["contender"], {})
            of[d["metric"]] = Value(float(d["difference"]), d["standard_error"])
        found = []
        for entry in data["contenders"]:
            scores = {
                name: Value(float(s["value"]), s["standard_error"])
                for name, s in entry["scores"].items()
            }
            minus = differences.get(entry["name"], {})
            plan = entry.get("schedule")
            found.append(
                Contender(
                    entry["name"],
                    "contender",
                    entry["steps"],
                    entry["passes"],
                    int(data["n"]),
                    {k: v for k, v in scores.items() if k != "alignment"},
                    {k: v for k, v in minus.items() if k != "alignment"},
                    scores.get("alignment"),
                    None if plan is None else Schedule.from_json(json.dumps(plan)),
                )
            )
        metrics = list(dict.fromkeys(name for c in found for name in c.scores))
        left = data["left_out"]
    except DAMAGED as error:
        raise UserError(f"not a whole result of stepsearch evaluate ({error!r})") from error
    return Source(
        title,
        f"{counted(len(found), 'contender')} on {counted(int(data['n']), 'image')} each.",
        tuple(found),
        tuple(metrics),
        found[0] if found else None,
        pictures=pictures,
        result=data,
        schedule=found[0].schedule if found else None,
        problems=tuple(f"left out: {sentence}" for sentence in left),
    )


def half_width(se: float | None, n: int) -> float | None:
    """Half of a 95 % interval by Student's t over the blocks of the jackknife."""
    from scipy.stats import t

    blocks = count_blocks(n, BLOCKS)
    if se is None or not isfinite(se) or blocks < 2:
        return None
    return float(t.ppf(0.975, blocks - 1)) * se
