"""A run as MLflow shows it: a parent, a child for each trial, and one for each tested schedule.

Whatever is there already is found again by its tags, so that a second call adds nothing.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from stepsampler.errors import UserError, note
from stepsearch.config import StudyConfig
from stepsearch.engine.claim import BEST, RESULT
from stepsearch.engine.mirror.stores import Store
from stepsearch.metrics.distance import Score
from stepsearch.paths import read_json, write_whole

CHILDREN = 10_000  # that are looked up
AT_ONCE = 100  # params that MLflow takes
LONGEST = 4000  # letters of a tag; MLflow refuses 8,000
PROMPT = 60  # letters of a prompt in the name of a picture
WHOLE = "stepsearch.pictures"  # tag of a child that has all its pictures
MEASURED = ("alignment", "alignment_se", "passes", "images", "seconds")
FILES = (BEST, RESULT, "grid.png", "report.html")  # of a finished run, for the parent


class Mirror:
    """The records of the run in a folder. Every method raises what MLflow raises."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._client: Any = None
        self._experiment = self.parent = ""
        self._trials: set[int] = set()
        self._contenders: dict[str, Any] = {}  # MLflow's runs by the names of schedules
        self.whole = True  # until a picture is left out

    def open(self, config: StudyConfig) -> None:
        """Find the records of this run, or begin them."""
        folder = self.store.folder
        self._client = client = self.store.connect()
        self._experiment = self.store.experiment(client)
        self.store.sweep()
        key = _key(folder)
        known = client.search_runs([self._experiment], f"tags.`stepsearch.run` = '{key}'")
        if known:
            self.parent, logged = known[0].info.run_id, known[0].data.params
        else:
            name = f"{config.name}-{config.search.algorithm}-{config.search.seed}"
            tags = {"stepsearch.run": key, "mlflow.runName": name}
            self.parent, logged = client.create_run(self._experiment, tags=tags).info.run_id, {}
        tags = {
            "stepsearch.folder": str(folder),
            "stepsearch.study": config.name,
            "stepsearch.model": config.model.code or config.model.id,
            "stepsearch.passes": str(config.space.passes),
        }
        self._log(self.parent, params=_settings(config, logged), tags=tags)
        children = client.search_runs(
            [self._experiment],
            f"tags.`mlflow.parentRunId` = '{self.parent}'",
            max_results=CHILDREN,
        )
        for run in children:
            if "stepsearch.contender" in run.data.tags:
                self._contenders[run.data.tags["stepsearch.contender"]] = run
            elif "stepsearch.trial" not in run.data.tags:
                continue  # somebody's own notes, evaluations, …
            elif run.info.status == "FINISHED":
                self._trials.add(int(run.data.tags["stepsearch.trial"]))
            else:  # it was cut off: written again from the start
                client.delete_run(run.info.run_id)

    @property
    def counts(self) -> tuple[int, int]:
        """Trials, and schedules of selection and test, that have a child."""
        return len(self._trials), len(self._contenders)

    def trials(self, study: optuna.Study) -> None:
        """A child for each finished trial that has none yet."""
        for trial in study.get_trials(
            deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)
        ):
            if trial.number not in self._trials:
                self._trial(trial)
                self._trials.add(trial.number)

    def _trial(self, trial: FrozenTrial) -> None:
        tags = {
            "mlflow.parentRunId": self.parent,
            "mlflow.runName": f"trial {trial.number}",
            "stepsearch.trial": str(trial.number),
            "stepsearch.state": trial.state.name.lower(),
        }
        known = trial.user_attrs
        if "origin" in known:
            tags["stepsearch.origin"] = known["origin"]
        began, at = _millis(trial.datetime_start), _millis(trial.datetime_complete)
        run = self._client.create_run(self._experiment, start_time=began, tags=tags).info.run_id
        values: dict[str, float | None] = {key: known[key] for key in MEASURED if key in known}
        if trial.state == TrialState.COMPLETE:
            values["fd"] = trial.values[0]
            values["fd_se"] = Score(trial.values[0], np.array(known.get("left_out", ()))).se
        rungs = {n: {"fd_rung": fd} for n, fd in trial.intermediate_values.items()}
        params = {key: f"{value:.6g}" for key, value in trial.params.items()}
        self._log(run, values, params, at=at, steps=rungs)
        if "schedule" in known:
            self._client.log_text(run, known["schedule"], "schedule.json")
        if sheet := _sheet(self.store.folder, known.get("sheet")):
            self._client.log_artifact(run, str(sheet))
        self._client.set_terminated(run, "FINISHED", at)

    def ended(self, result: Mapping[str, Any], pictures: Mapping[str, Any] | None) -> None:
        """What a run ends with: `result` is that of result.json, `pictures` of pictures.json.

        A child for each schedule of selection and test, with its errors and its pictures; and for
        the parent the verdict, the winner's numbers, and the files of the folder.
        """
        rows: dict[str, dict[str, Any]] = {}
        for stage in ("selection", "test"):
            for row in result[stage]:
                rows.setdefault(row["name"], {})[stage] = row
        teacher = result["teacher"]
        rows.setdefault(teacher["name"], {}).setdefault("teacher", teacher)
        for name, known in rows.items():
            self._contender(name, known)
        for row in (pictures or {}).get("rows", ()):
            if row["name"] in self._contenders and pictures is not None:
                self._pictures(self._contenders[row["name"]], row["files"], pictures)
        first = result["test"][0]
        values = {
            "test_fd": first["fd"],
            "test_fd_se": first["se"],
            "test_alignment": first["alignment"],
            "search_passes": result["search_passes"],
        }
        verdict = str(result["verdict"])[:LONGEST]
        tags = {"stepsearch.verdict": verdict, "mlflow.note.content": verdict}
        self._log(self.parent, values, tags={**tags, "stepsearch.metric": str(result["metric"])})
        for file in FILES:
            if (self.store.folder / file).exists():
                self._client.log_artifact(self.parent, str(self.store.folder / file))
        self._client.set_terminated(self.parent, "FINISHED")

    def _contender(self, name: str, rows: Mapping[str, Any]) -> None:
        if name not in self._contenders:
            row = next(iter(rows.values()))
            tags = {
                "mlflow.parentRunId": self.parent,
                "mlflow.runName": name,
                "stepsearch.contender": name,
                "stepsearch.kind": row["kind"],
            }
            self._contenders[name] = self._client.create_run(self._experiment, tags=tags)
        run = self._contenders[name]
        values: dict[str, float | None] = {}
        for stage, row in rows.items():
            if "schedule" in row:
                text = json.dumps(row["schedule"], indent=1)
                self._client.log_text(run.info.run_id, text, "schedule.json")
            values |= {"passes": row["passes"], "steps": row["steps"]}
            for key in ("fd", "alignment"):
                values[f"{key}_{stage}"] = row[key]
                values[f"{key}_{stage}_se"] = row.get("se" if key == "fd" else "alignment_se")
            values |= {key: row[key] for key in ("minus_found", "minus_found_se") if key in row}
            for ruler, score in row.get("unseen", {}).items():
                values |= {ruler: score["value"], f"{ruler}_se": score["se"]}
        before = run.data.metrics
        self._log(run.info.run_id, {k: v for k, v in values.items() if before.get(_plain(k)) != v})
        self._client.set_terminated(run.info.run_id, "FINISHED")

    def _pictures(self, run: Any, files: list[str], told: Mapping[str, Any]) -> None:
        """As MLflow's image grid wants them: a row for each name, a column for each run."""
        if run.data.tags.get(WHOLE):
            return
        from PIL import Image

        for k, file in enumerate(files):
            name = f"{k:02d} {told['prompts'][k][:PROMPT]} seed {told['seeds'][k]}"
            name = re.sub(r"[^A-Za-z0-9_\-.]+", " ", name)  # MLflow takes no others
            path = self.store.folder / "pictures" / file
            try:
                with Image.open(path) as whole:
                    picture = whole.convert("RGB")
            except (OSError, ValueError, SyntaxError) as error:  # all of which Pillow raises
                note(f"{path} cannot be read, and MLflow goes without it: {error}")
                self.whole = False
                continue
            self._client.log_image(run.info.run_id, picture, key=name, step=0)
        self._client.set_tag(run.info.run_id, WHOLE, len(files))

    def _log(
        self,
        run: str,
        values: Mapping[str, float | None] | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        at: int | None = None,
        steps: Mapping[int, Mapping[str, float]] | None = None,
    ) -> None:
        """All of it in few requests; numbers that are not known or not finite are left out."""
        from mlflow.entities import Metric, Param, RunTag

        now = at or _millis(datetime.now())
        found = [(key, value, 0) for key, value in (values or {}).items()]
        found += [(k, v, step) for step, more in (steps or {}).items() for k, v in more.items()]
        metrics = [
            Metric(_plain(key), float(value), now, step)
            for key, value, step in found
            if value is not None and isfinite(value)
        ]
        told = [Param(key, value) for key, value in (params or {}).items()]
        marks = [RunTag(key, str(value)) for key, value in (tags or {}).items()]
        self._client.log_batch(run, metrics, told[:AT_ONCE], marks)
        for start in range(AT_ONCE, len(told), AT_ONCE):
            self._client.log_batch(run, params=told[start : start + AT_ONCE])


def _settings(config: StudyConfig, logged: Mapping[str, str]) -> dict[str, str]:
    """What MLflow has not yet; it refuses to write one again."""
    return {
        f"{section}.{field}": str(value)
        for section, values in config.model_dump().items()
        if isinstance(values, dict)
        for field, value in values.items()
        if f"{section}.{field}" not in logged
    }


def _plain(name: str) -> str:
    """A name that MLflow takes: of several extractors ours has a +."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _millis(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp() * 1000)


def _sheet(folder: Path, noted: object) -> Path | None:
    """A trial's picture: in this run's own cache, wherever the run was when it was noted, and
    whatever other file somebody's journal may name."""
    if not isinstance(noted, str) or not noted:
        return None
    path = (folder / "cache" / Path(noted).name).resolve()
    return path if path.is_file() and path.is_relative_to(folder.resolve()) else None


def _key(folder: Path) -> str:
    """What tells a run from all others, also from one of the same path elsewhere and from a copy.

    A digest: MLflow's filters know no way to write a quotation mark.
    """
    path = folder / "tracking.json"
    if not path.exists():
        write_whole(path, lambda p: p.write_text(json.dumps({"run": secrets.token_hex(16)})))
    try:
        word = read_json(path)["run"]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} is damaged: {error}; without it the run gets new records in MLflow"
        ) from error
    return hashlib.sha256(f"{word} {folder.absolute()}".encode()).hexdigest()
