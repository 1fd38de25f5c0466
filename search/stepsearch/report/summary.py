"""What a run leaves behind: table, schedule file and result file."""

import json
from dataclasses import replace
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any

from rich.table import Table

from stepsampler.errors import percent
from stepsampler.schedule import Schedule
from stepsearch.config import StudyConfig
from stepsearch.engine.result import Result
from stepsearch.metrics.distance import Score, score, score_mean
from stepsearch.metrics.evaluator import TEST, objective_name, seeds_of
from stepsearch.metrics.protocol import Row
from stepsearch.paths import write_whole
from stepsearch.rivals.baselines import Candidate


def table(result: Result, config: StudyConfig) -> Table:
    """The test table; differences are paired over the same seeds."""
    evaluation = config.evaluation
    metric = objective_name(evaluation, result.subject.reference, evaluation.test_images)
    view = Table(title=f"test: {metric}, seeds that neither search nor selection saw")
    parts = [part.name for part in result.subject.reference.parts]
    against = ("minus found ± se",) if result.found else ()
    columns = (
        "schedule",
        "steps",
        "passes",
        f"{evaluation.word} ± se",
        *against,
        *parts,
        "alignment",
    )
    for i, name in enumerate(columns):
        # of what does not fit, names wrap and numbers stay whole
        view.add_column(name, justify="left" if i == 0 else "right", overflow="fold", no_wrap=i > 0)
    for row in result.test:
        less = [""] if result.found else []
        if result.found and row is not result.found:
            difference, se = row.score.minus(result.found.score)
            less = [f"{difference:+.3f} ± {se:.3f}"]
        view.add_row(
            row.candidate.name,
            str(row.candidate.schedule.num_steps),
            str(row.candidate.schedule.passes),
            f"{row.score.value:.3f} ± {row.score.se:.3f}",
            *less,
            *(f"{part.value:.2f}" for part in _parts(result, row).values()),
            _percent(row),
            style=None if row.candidate.kind in ("found", "front", "baseline") else "dim",
        )
    return view


def unseen_table(result: Result) -> Table | None:
    """The same images under the rulers that the search did not see; None without any."""
    if not result.unseen:
        return None
    view = Table(title="the same test images, by what the search did not see")
    view.add_column("schedule", overflow="fold")
    for name in result.unseen:
        view.add_column(f"{name} ± se", justify="right", overflow="fold", no_wrap=True)
    for i, row in enumerate(result.test):
        values = (
            f"{scores[i].value:.2f} ± {scores[i].se:.2f}" for scores in result.unseen.values()
        )
        view.add_row(row.candidate.name, *values)
    return view


def _parts(result: Result, row: Row[Candidate]) -> dict[str, Score]:
    """Of a row of the test: its distance under each of several extractors."""
    reference = result.subject.reference
    if not reference.parts:
        return {}
    found = reference.test.split(row.measurement.features)
    names = (part.metric for part in reference.parts)
    return {name: score(*part) for name, part in zip(names, found, strict=True)}


def verdict(result: Result, config: StudyConfig) -> str:
    """The outcome in a few sentences, claiming no more than the test shows."""
    said = [_outcome(result, config), *_front(result), *_alignment(result, config), *_gap(result)]
    return " ".join([*said, *_unseen(result, config)])


def _outcome(result: Result, config: StudyConfig) -> str:
    if result.found is None:
        if any(row.candidate.kind == "found" for row in result.selection):
            return (
                "On the test seeds the found schedule's images are not finite, so the best "
                f"baseline is exported: {result.winner.name}."
            )
        return (
            "No trial but those of baselines kept the teacher's alignment, so the best baseline is "
            f"exported: {result.winner.name}."
        )
    if result.winner.kind != "found":
        return (
            "On the selection seeds no found schedule beats the best baseline, which is "
            f"exported: {result.winner.name}."
        )
    passes = config.space.passes
    tested = result.of_kind("baseline")
    if len(result.beaten) == len(tested):
        return (
            f"Within the same budget, {passes} passes, the found schedule beats the best "
            f"{len(tested)} of {len(result.screened)} baselines, guided and unguided, by more than "
            "two standard errors of the paired difference."
        )
    missed = "; ".join(_named(row, result, config) for row in tested if row not in result.beaten)
    # first of the found one itself, or only the others would seem to show less
    ours = f"The found schedule{_too_little(result.found, result, config)}"
    return f"{ours} is exported, but the test does not show that it beats: {missed}."


def _named(row: Row[Candidate], result: Result, config: StudyConfig) -> str:
    return f"{row.candidate.name}{_too_little(row, result, config)}"


def _too_little(row: Row[Candidate], result: Result, config: StudyConfig) -> str:
    """Said behind its name: by its alignment the search may not choose it; "" where it may."""
    asked, least = row.measurement.alignment, _teacher(result).measurement.alignment
    if least - asked > config.search.alignment_drop:
        return f" (alignment {percent(asked)}, less than the study allows)"
    return ""


def _teacher(result: Result) -> Row[Candidate]:
    """On the test seeds, if it is tested."""
    tested = result.of_kind("teacher")
    return tested[0] if tested else result.teacher


def _alignment(result: Result, config: StudyConfig) -> list[str]:
    tested, teacher = result.of_kind("teacher"), _teacher(result)
    if not result.found or not isfinite(teacher.measurement.alignment):
        return []
    where = "there" if tested else f"on {len(teacher.measurement.features)} others"
    said = [
        f"Alignment: found {_percent(result.found)} on the test seeds; the teacher, "
        f"{teacher.candidate.schedule.num_steps} steps, {_percent(teacher)} {where}."
    ]
    if _too_little(result.found, result, config):
        said.append("That drop is larger than the study allows; on the selection seeds it was not.")
    return said


def _front(result: Result) -> list[str]:
    count = len(result.of_kind("front"))
    if not count:
        return []
    return [f"{count} more on the front of FD and alignment, as of the selection, are in front/."]


def _unseen(result: Result, config: StudyConfig) -> list[str]:
    """What the rulers say that the search did not see, of those that cost the same."""
    agree = [name for name, other in result.overtaken.items() if other is None]
    said = [
        f"Under {name}, which the search did not see, no baseline is ahead beyond the noise."
        for name in agree
    ]
    if len(agree) > 1:
        names = ", ".join(agree)
        said = [
            f"Under {names}, which the search did not see, no baseline is ahead beyond the noise."
        ]
    for name, other in result.overtaken.items():
        if other is not None:
            row, ahead, se = other
            said.append(
                f"{name}, which the search did not see, disagrees: under it "
                f"{_named(row, result, config)} is first, by {ahead:.2f} ± {se:.2f}."
            )
    return said


def _gap(result: Result) -> list[str]:
    closed = result.gap_closed
    if closed is None:
        return []
    return [
        f"It closes {percent(closed, '.0')} of the gap between the best baseline and the teacher."
    ]


def write(result: Result, config: StudyConfig, folder: Path) -> None:
    """Write best.json, front/ and result.json."""
    exported(result, config, result.winner).save(folder / "best.json")
    for old in (folder / "front").glob("*.json"):
        old.unlink()  # of a run with a smaller budget
    for row in result.of_kind("front"):
        file = folder / "front" / f"trial-{row.candidate.trial}.json"
        exported(result, config, row.candidate).save(file)
    text = json.dumps(as_data(result, config), indent=1, allow_nan=False)
    write_whole(folder / "result.json", lambda p: p.write_text(text, encoding="utf-8"))


def exported(result: Result, config: StudyConfig, candidate: Candidate) -> Schedule:
    """A schedule of the test with its provenance."""
    row = next(row for row in result.test if row.candidate is candidate)
    n = config.evaluation.test_images
    provenance = {
        "study": config.name,
        "source": candidate.name,
        "trial": candidate.trial,
        "algorithm": config.search.algorithm,
        "algorithm_seed": config.search.seed,
        "model": config.model.id,
        **config.model.additions,  # what else it was loaded with, and what it was told not to show
        **({"negative_prompt": told} if (told := config.evaluation.negative_prompt) else {}),
        "metric": objective_name(config.evaluation, result.subject.reference, n),
        "value": row.score.value,
        "standard_error": row.score.se,
        "alignment": _known(row.measurement.alignment),
        "test_seeds": [seeds_of(TEST, n).start, seeds_of(TEST, n).stop - 1],
        "search_passes": result.search_passes,
        "versions": {p: version(p) for p in ("stepsearch", "torch", "diffusers", "optuna")},
    }
    return replace(candidate.schedule, model=result.subject.spec, provenance=provenance)


def as_data(result: Result, config: StudyConfig) -> dict[str, Any]:
    """The whole result as plain data."""

    def plain(row: Row[Candidate]) -> dict[str, Any]:
        data: dict[str, Any] = {
            "name": row.candidate.name,
            "kind": row.candidate.kind,
            "trial": row.candidate.trial,
            "steps": row.candidate.schedule.num_steps,
            "passes": row.candidate.schedule.passes,
            "n": len(row.measurement.features),
            "fd": row.score.value,
            "se": row.score.se,
            "alignment": _known(row.measurement.alignment),
        }
        place = next((i for i, other in enumerate(result.test) if row is other), -1)
        tested = place >= 0
        if result.found and tested:
            data["minus_found"], data["minus_found_se"] = row.score.minus(result.found.score)
        if tested:
            data["alignment_se"] = _known(score_mean(row.measurement.aligned).se)
            for name, part in _parts(result, row).items():
                data[name] = {"fd": part.value, "se": part.se}
                if result.found:
                    less, se = part.minus(_parts(result, result.found)[name])
                    data[name] |= {"minus_found": less, "minus_found_se": se}
            data["unseen"] = {}
            for name, scores in result.unseen.items():
                data["unseen"][name] = {"value": scores[place].value, "se": scores[place].se}
                if result.found:
                    less, se = scores[place].minus(scores[result.test.index(result.found)])
                    data["unseen"][name] |= {"minus_found": less, "minus_found_se": se}
        data["schedule"] = json.loads(row.candidate.schedule.to_json())
        return data

    return {
        "study": config.model_dump(),
        "metric": result.subject.reference.metric,
        "verdict": verdict(result, config),
        "beaten": [row.candidate.name for row in result.beaten],
        "gap_closed": result.gap_closed,
        "test": [plain(row) for row in result.test],
        "selection": [plain(row) for row in result.selection],
        "teacher": plain(result.teacher),
        "screened": [
            {"name": c.name, "passes": c.schedule.passes, "n": n, "fd": _known(fd)}
            for c, n, fd in sorted(result.screened, key=lambda entry: (-entry[1], entry[2]))
        ],
        "trials": result.trials,
        "pruned": result.pruned,
        "failed": result.failed,
        "stopped": result.stopped,
        "search_passes": result.search_passes,
        "passes": result.passes,
    }


def _known(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if isfinite(value) else None


def _percent(row: Row[Candidate]) -> str:
    share = row.measurement.alignment
    return percent(share) if isfinite(share) else ""
