"""`stepsearch evaluate`: contenders under one harness -> a table, and a file with every number."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from stepsampler.errors import UserError, counted, percent
from stepsearch.compare.contenders import Contender, OnSchedule
from stepsearch.compare.figures import FORMAT, with_error
from stepsearch.compare.harness import CLIP, Harness
from stepsearch.metrics.distance import PARTS, Score, score_infinity, score_kernel, score_mean
from stepsearch.metrics.evaluator import Metric, short
from stepsearch.metrics.manifold import LEAST, score_precision_recall
from stepsearch.metrics.protocol import (
    Progress,
    Seeds,
    check_held_out,
    held_out,
    measure_all,
    score_all,
)
from stepsearch.metrics.reference import Reference
from stepsearch.metrics.sliced import Sliced
from stepsearch.paths import read_json, write_whole

DISTANCES = ("fd", "fd-infinity", "kid", "prc")


@dataclass(frozen=True)
class Result:
    """Scores by their names, contender by contender; the first is the one to compare with."""

    n: int
    seeds: range
    entries: list[dict[str, Any]]  # as in the file
    scores: list[dict[str, Score]]  # of the same contenders
    left_out: Sequence[str] = ()  # a sentence for each whose images are not finite


def compare(
    contenders: Sequence[Contender],
    harness: Harness,
    seeds: Seeds,
    distances: Sequence[str] = ("fd",),
    progress: Progress = lambda done, total: None,
) -> Result:
    """Score contenders on the same seeds; those whose images are not finite are left out.

    Raises:
        UserError: there are no others, a distance that the statistics do not allow, or an unknown
            name.
    """
    started = harness.clock.now()
    n, batch = len(seeds.range), harness.batch_size
    check(distances, n, [metric.reference for metric in harness.metrics])
    if seeds.part == "test":
        check_held_out(seeds.range.start)
    contenders, left_out = harness.finite(contenders, seeds.range, progress)
    scores: list[dict[str, Score]] = [{} for _ in contenders]
    notes: list[list[str]] = [[] for _ in contenders]
    for metric in harness.metrics:
        measure = partial(harness.measure, metric)
        if seeds.part == "test":
            first = seeds.range.start
            rows = held_out(contenders, n, batch, metric.reference, measure, first_seed=first)
        else:
            moments = metric.reference.search
            rows = score_all(contenders, seeds.range, batch, moments, measure)
        for row, found, said in zip(rows, scores, notes, strict=True):
            features = row.measurement.features
            found |= _scores(metric, features, row.score, distances, seeds.part)
            if features.std(0).max() <= 1e-5 * np.abs(features).max():
                said.append("all images are the same: their covariance is zero")
            if np.isfinite(row.measurement.aligned).all():
                found["alignment"] = score_mean(row.measurement.aligned)
    if harness.clip:
        places = [i for i, contender in enumerate(contenders) if contender.captioned]
        shown = [contenders[i] for i in places]
        measured = measure_all(shown, seeds.range, batch, partial(harness.measure, CLIP), progress)
        for i, found_clip in zip(places, measured, strict=True):
            clip = score_mean(found_clip.features[:, 0])
            scores[i][f"clip_score_{harness.clip_digest(contenders[i], seeds.range)}"] = clip
    entries = [
        {
            "name": c.name,
            "identity": c.identity,
            "steps": c.steps,
            "passes": c.passes,
            # What a paired difference needs to be equal; files show what they show.
            "prompts": harness.prompts_digest if c.prompted else None,
            "alignment": harness.judge.digest if harness.judge and c.prompted else None,
            "notes": sorted({*said, *_file_note(c)}),
            "scores": {name: _plain(score) for name, score in found.items()},
            "schedule": json.loads(c.schedule.to_json()) if isinstance(c, OnSchedule) else None,
        }
        for c, found, said in zip(contenders, scores, notes, strict=True)
    ]
    harness.clock.total += harness.clock.now() - started
    return Result(n, seeds.range, entries, scores, left_out)


def check(distances: Sequence[str], n: int, references: Sequence[Reference] = ()) -> None:
    """Refuse before the first image what could not be measured of n of them.

    Raises:
        UserError: an unknown name, a distance that n or the statistics do not allow, or two
            metrics of one name.
    """
    for distance in distances:
        if distance not in DISTANCES:
            raise UserError(f"--distance must be one of {', '.join(DISTANCES)}, got {distance!r}")
        least = {"fd-infinity": 2 * PARTS[-1], "prc": LEAST}.get(distance, 2)
        if n < least:
            raise UserError(f"--distance {distance} needs at least {least} images, got {n}")
    names = [reference.metric for reference in references]
    for reference in references:
        if names.count(reference.metric) > 1:
            raise UserError(
                f"--extractor: two of them would both be called {reference.metric}; score them one "
                "after the other"
            )
        for distance in {"fd-infinity", "kid", "prc"} & set(distances):
            if isinstance(reference.search, Sliced):
                raise UserError(
                    f"--distance {distance} is of features with an FD; the extractor "
                    f"{reference.extractor} is a distance of its own"
                )
            if reference.parts:
                raise UserError(
                    f"--distance {distance} is of one extractor: give those of "
                    f"{reference.extractor} one by one"
                )
            if distance == "fd-infinity":
                continue
            if reference.sample is None:
                raise UserError(
                    f"{distance} needs features of real images; the statistics of "
                    f"{reference.extractor} have only moments: take fd, or give a folder of images "
                    "as the reference"
                )
            if distance == "prc" and len(reference.sample) < LEAST:
                raise UserError(
                    f"--distance prc needs at least {LEAST} real images, the reference has "
                    f"{len(reference.sample)}"
                )


def _scores(
    metric: Metric,
    features: NDArray[np.float32],
    fd: Score,
    distances: Sequence[str],
    part: str,
) -> dict[str, Score]:
    reference = metric.reference
    moments = reference.test if part == "test" else reference.search
    n, sample = short(len(features)), reference.sample
    found = {}
    for distance in distances:
        if distance == "fd":
            found[f"{reference.metric}_{n}"] = fd
        elif distance == "fd-infinity":
            prefix, _, rest = reference.metric.partition("_")
            found[f"{prefix}inf_{rest}_{n}"] = score_infinity(features, moments)
        else:
            assert sample is not None  # `check` saw to it
            if distance == "prc":
                both = score_precision_recall(features, sample)
                for name, score in zip(("precision", "recall"), both, strict=True):
                    found[f"{name}_{reference.name}_{n}"] = score
            else:
                found[f"kid_{reference.name}_{n}"] = score_kernel(features, sample)
    return found


def _file_note(contender: Contender) -> list[str]:
    files = getattr(contender, "files", None)
    return [files.note] if files is not None and files.note else []


def _plain(score: Score) -> dict[str, Any]:
    return {
        "value": score.value,
        "standard_error": score.se if isfinite(score.se) else None,
        "conservative": score.conservative,
        "left_out": score.left_out.tolist(),
    }


def differences(result: Result) -> list[dict[str, Any]]:
    """Of each contender to the first, paired image by image, with 95 % intervals."""
    return [
        {
            "contender": result.entries[i]["name"],
            "minus": result.entries[0]["name"],
            "metric": name,
            "difference": difference,
            "standard_error": se,
            "interval_95": [difference - half, difference + half],
            "conservative": result.scores[i][name].conservative,
        }
        for (i, name), (difference, se, half) in _paired(result).items()
    ]


def _paired(result: Result) -> dict[tuple[int, str], tuple[float, float, float]]:
    """(place, metric) -> difference to the first, its standard error, half of its interval."""
    found = {}
    for i, scores in enumerate(result.scores[1:], 1):
        for name, score in scores.items():
            base = result.scores[0].get(name)
            if base is not None and len(score.left_out) > 1:
                difference, se = score.minus(base)
                found[i, name] = difference, se, score.quantile * se
    return found


def identity(harness: Harness, seeds: range, settings: dict[str, Any]) -> dict[str, Any]:
    """What the numbers depend on, contenders apart. `settings`: range, fit, exif, size, names."""
    return {
        "format": FORMAT,
        "n": len(seeds),
        "seeds": [seeds.start, seeds.stop - 1],
        "batch_size": harness.batch_size,
        **settings,
        "metrics": [_identity(metric) for metric in harness.metrics],
        "alignment": None if harness.judge is None else harness.judge.digest,
    }


def as_data(result: Result, harness: Harness, settings: dict[str, Any]) -> dict[str, Any]:
    """The whole result as plain data, with the identity of every number."""
    return {
        **identity(harness, result.seeds, settings),
        "contenders": result.entries,
        "left_out": list(result.left_out),
        "differences": differences(result),
        "versions": {p: version(p) for p in ("stepsearch", "torch", "diffusers", "numpy")},
    }


def _identity(metric: Metric) -> dict[str, Any]:
    reference = metric.reference
    return {
        "name": reference.metric,
        "extractor": metric.extractor.name,
        "extractor_digest": metric.extractor.digest,
        "resizing": metric.extractor.resizing,
        "reference_fingerprint": reference.fingerprint,
        "reference_images": reference.test.n or None,
        "sample": None if reference.sample is None else _digest(reference.sample),
        "note": reference.note,
    }


def _digest(array: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def read_earlier(path: Path, now: dict[str, Any]) -> dict[str, Any]:
    """An earlier evaluation, which must have the `identity` of this one.

    Raises:
        UserError: another n, other seeds, range, metrics or preparation; or no such file.
    """
    try:
        earlier = read_json(path)
        kind = earlier.get("format")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a result of stepsearch evaluate ({error})") from error
    if kind != FORMAT:
        raise UserError(f"{path}: the format must be {FORMAT!r}, got {kind!r}")
    for key in ("n", "seeds", "range", "fit", "size"):
        _same(path, key, earlier.get(key), now[key])
    _same(path, "exif", earlier.get("exif", now["exif"]), now["exif"])  # not in older results
    try:
        names = [[metric["name"] for metric in data["metrics"]] for data in (earlier, now)]
        _same(path, "metrics", *map(", ".join, names))
        for theirs, ours in zip(earlier["metrics"], now["metrics"], strict=True):
            for key in ours.keys() - {"note"}:  # which has the place of the real images
                _same(path, f"{ours['name']}: {key}", theirs.get(key), ours[key])
        _scores_of(earlier)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a whole result of stepsearch evaluate ({error!r})") from error
    return earlier  # type: ignore[no-any-return]


def join(result: Result, earlier: dict[str, Any], path: Path) -> Result:
    """Add the contenders of an earlier evaluation; a name that is taken gets that of the file.

    Prompts and the judge of alignment count only where both sides have contenders that use them.

    Raises:
        UserError: other prompts or another judge.
    """
    for key in ("prompts", "alignment"):
        theirs, ours = (
            {row[key] for row in rows if row.get(key)}
            for rows in (earlier["contenders"], result.entries)
        )
        if theirs and ours:
            _same(path, key, ", ".join(sorted(theirs)), ", ".join(sorted(ours)))
    entries, taken = [], {entry["name"] for entry in result.entries}
    for entry in earlier["contenders"]:
        name = entry["name"]
        names = (name, f"{name} ({path.stem})", f"{name} ({path})")
        entries.append({**entry, "name": next((n for n in names if n not in taken), names[-1])})
    scores = result.scores + _scores_of(earlier)
    return Result(result.n, result.seeds, result.entries + entries, scores, result.left_out)


def _scores_of(earlier: dict[str, Any]) -> list[dict[str, Score]]:
    return [
        {
            name: Score(float(s["value"]), np.array(s["left_out"], float), bool(s["conservative"]))
            for name, s in entry["scores"].items()
        }
        for entry in earlier["contenders"]
    ]


def _same(path: Path, key: str, theirs: Any, ours: Any) -> None:
    if theirs != ours:
        raise UserError(
            f"{path}: its {key} differ, so its scores do not compare: {theirs} there, {ours} here"
        )


def save(data: dict[str, Any], path: Path) -> None:
    text = json.dumps(data, indent=1, allow_nan=False)
    write_whole(path, lambda p: p.write_text(text + "\n", encoding="utf-8"))


def table(result: Result) -> Table:
    """A line for each score; differences to the first contender are paired over the seeds.

    Files have neither steps nor seeds: what no contender has is not shown.
    """
    paired = _paired(result)
    rows = []
    for i, (entry, scores) in enumerate(zip(result.entries, result.scores, strict=True)):
        passes = "" if entry["passes"] is None else f"{entry['passes']:g}"
        head = [entry["name"], str(entry["steps"] or ""), passes]
        for name, score in scores.items():
            interval = ""
            if (i, name) in paired:
                d, _, half = paired[i, name]
                interval = f"{d:+.3g} [{d - half:+.3g}, {d + half:+.3g}]"
            rows.append([*head, cell(score, name), interval])
            head = ["", "", ""]
    title = counted(result.n, "image")
    if any(entry["steps"] for entry in result.entries):
        title += f", seeds {result.seeds.start} to {result.seeds.stop - 1}"
    view = Table(title=title)
    names = ("contender", "steps", "passes", "score ± standard error", "minus the first, 95 %")
    columns = [column for column in zip(names, *rows, strict=True) if any(column[1:])]
    for name, *_ in columns:
        # in a narrow terminal lines wrap: nothing is cut off
        side: Literal["left", "right"] = "left" if name == "contender" else "right"
        view.add_column(name, justify=side, overflow="fold")
    for row in zip(*(cells for _, *cells in columns), strict=True):
        view.add_row(*row)
    return view


def cell(score: Score, name: str) -> str:
    """12.3 ± 0.2 (fd_texture128_5k); an asterisk marks a conservative error."""
    if name == "alignment":
        error = f" ± {100 * score.se:.1f}" if isfinite(score.se) else ""
        return f"{percent(score.value)}{error} ({name})"
    return f"{with_error(score.value, score.se)}{'*' if score.conservative else ''} ({name})"


def where_time_went(harness: Harness) -> str:
    """Where the time went, distances and their errors included, as a sentence or two."""
    clock = harness.clock
    if not clock.spent:
        return "profile: everything was recalled from the cache, nothing was measured"
    parts = ", ".join(
        f"{name} {percent(seconds / clock.total)}"
        for name, seconds in sorted(clock.spent.items(), key=lambda item: -item[1])
    )
    return (
        f"profile: {percent(clock.share)} of {clock.total:.1f} s inside networks ({parts}); "
        f"{torch.get_num_threads()} threads"
    )
