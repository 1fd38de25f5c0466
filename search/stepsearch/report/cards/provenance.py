"""What it was made with and what it cost, and how to make it again."""

import hashlib
import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from stepsampler.errors import UserError
from stepsearch.engine.claim import identity_of
from stepsearch.engine.study import searched
from stepsearch.metrics.evaluator import SEARCH, SELECTION, TEST
from stepsearch.report.cards import Card, Data
from stepsearch.report.sources import Source


def data(source: Source) -> Data:
    """`facts`, `passes` by stage, `commands` and the `settings` that differ from the defaults."""
    if source.front is not None:
        return _of_front(source.front)
    if source.config is None:
        return _of_evaluation(source)
    config, evaluation = source.config, source.config.evaluation
    made = dict(source.schedule.provenance) if source.schedule else {}
    assert source.folder is not None
    facts: dict[str, Any] = {"model": config.model.id, **config.model.additions}
    with suppress(UserError):  # the search has not started
        facts["digest of model, reference and prompts"] = identity_of(source.folder)
    best = source.folder / "best.json"
    if best.exists():
        facts["digest of best.json"] = hashlib.sha256(best.read_bytes()).hexdigest()[:16]
    facts["reference"], facts["prompts"] = evaluation.reference, evaluation.prompts
    facts["extractor"] = evaluation.extractor
    for name, first, n in (
        ("search", SEARCH, evaluation.images),
        ("selection", SELECTION, evaluation.selection_images),
        ("test", TEST, evaluation.test_images),
    ):
        facts[f"seeds of the {name}"] = f"{first:,} to {first + n - 1:,}"
    facts["algorithm"] = f"{config.search.algorithm}, seed {config.search.seed}"
    if source.study is not None and source.trials:
        facts["hours of the trials"] = f"{searched(source.study) / 3600:.2f}"
    versions = made.get("versions") if isinstance(made.get("versions"), Mapping) else None
    for name, number in (versions or _versions()).items():
        facts[name] = number
    settings = _toml(config.model_dump(exclude_defaults=True, exclude={"name"}))
    file = f"{config.name}.toml"
    return {
        "facts": facts,
        "passes": dict(source.result.get("passes", {})) if source.result else {},
        "settings": settings,
        "commands": [
            f"stepsearch run {file}    # the file as below",
            f"stepsearch report {source.folder} -o report.html",
        ],
        "file": file,
    }


def _of_front(front: Data) -> Data:
    facts: dict[str, Any] = {}
    for run in front["runs"]:
        name = run["folder"]
        facts |= {f"{name}: {k}": v for k, v in run.items() if k not in ("folder", "versions")}
        facts |= {f"{name}: {k}": v for k, v in (run["versions"] or {}).items()}
    folders = " ".join(run["folder"] for run in front["runs"])
    commands = [f"stepsearch front {folders} -o front.html"]
    return {"facts": facts, "passes": {}, "settings": "", "commands": commands, "file": ""}


def _of_evaluation(source: Source) -> Data:
    told = source.result or {}
    facts: dict[str, Any] = {
        key.replace("_", " "): told[key]
        for key in ("model", "range", "n", "prompts", "reference", "negative_prompt", "batch_size")
        if told.get(key) not in (None, "")
    }
    first, last = told["seeds"]
    facts["seeds"] = f"{first:,} to {last:,}"
    for metric in told["metrics"]:
        facts[f"extractor {metric['extractor']}"] = metric["extractor_digest"]
        facts[f"reference of {metric['extractor']}"] = metric["reference_fingerprint"]
    facts |= told.get("versions") or {}
    return {"facts": facts, "passes": {}, "settings": "", "commands": [], "file": ""}


def _versions() -> dict[str, str]:
    known = {name: version(name) for name in ("stepsearch", "torch", "diffusers", "optuna")}
    return {**known, "python": platform.python_version()}


def _toml(sections: Mapping[str, Any]) -> str:
    """A study's settings as its file has them; JSON's lists, strings and numbers are TOML's too."""
    parts = []
    for name, values in sections.items():
        lines = [
            f"{key} = {json.dumps(v, ensure_ascii=False)}"
            for key, v in _told(values)
            if v is not None
        ]
        if lines:
            parts.append("\n".join([f"[{name}]", *lines]) + "\n")
    return "\n".join(parts)


def _told(values: Any) -> list[tuple[str, Any]]:
    return list(values.items()) if isinstance(values, Mapping) else []


CARD = Card("Provenance", "study.json and the files of the run", data)
