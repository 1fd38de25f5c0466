"""MLflow as an idempotent mirror of the Optuna study.

Only the parent process writes, so the database is created once. The search runs and ends well with
tracking off, down or deleted half-way: the first error is reported and ends the mirroring.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import optuna

from stepsampler.schedule import Schedule
from stepsearch.config import StudyConfig

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # no news of its tables between ours
# The search waits for these requests: MLflow's own 7 retries of 120 s would stop it for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


class Tracker(Protocol):
    """Listens to a run."""

    def start(self, config: StudyConfig, folder: Path) -> None: ...

    def sync(self, study: optuna.Study) -> None: ...

    def contender(self, name: str, schedule: Schedule, metrics: dict[str, float]) -> None: ...

    def finish(self, metrics: dict[str, float], files: list[Path]) -> None: ...


class NoTracking:
    """Tracking is off."""

    def start(self, config: StudyConfig, folder: Path) -> None:
        pass

    def sync(self, study: optuna.Study) -> None:
        pass

    def contender(self, name: str, schedule: Schedule, metrics: dict[str, float]) -> None:
        pass

    def finish(self, metrics: dict[str, float], files: list[Path]) -> None:
        pass


class MlflowTracking:
    """One parent run per study, one child run per finished trial and per contender of the end.

    Children are found again by the tag `stepsearch.trial` or `stepsearch.contender`, so a second
    sync adds nothing.
    `warn` receives one sentence when MLflow fails.
    """

    def __init__(self, uri: str | None, warn: Callable[[str], None]) -> None:
        self._uri, self._warn, self._alive = uri, warn, True
        self._client: Any = None
        self._parent = self._experiment = ""
        self._mirrored: set[int] = set()
        self._contenders: dict[str, str] = {}

    def start(self, config: StudyConfig, folder: Path) -> None:
        self._try(lambda: self._start(config, folder))

    def sync(self, study: optuna.Study) -> None:
        self._try(lambda: self._sync(study))

    def contender(self, name: str, schedule: Schedule, metrics: dict[str, float]) -> None:
        """A baseline, finalist or teacher with what was measured on fresh seeds."""
        self._try(lambda: self._contender(name, schedule, metrics))

    def finish(self, metrics: dict[str, float], files: list[Path]) -> None:
        self._try(lambda: self._finish(metrics, files))

    def _try(self, action: Callable[[], None]) -> None:
        if not self._alive:
            return
        try:
            action()
        except Exception as error:  # whatever MLflow raises must not end a search
            self._alive = False
            reason = str(error).strip().splitlines() or [type(error).__name__]
            self._warn(f"MLflow tracking stops here, the search goes on: {reason[0][:200]}")

    def _start(self, config: StudyConfig, folder: Path) -> None:
        from mlflow import MlflowClient

        uri = self._uri or f"sqlite:///{folder.absolute() / 'mlflow.db'}"
        self._client = client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name("stepsearch")
        self._experiment = (
            experiment.experiment_id
            if experiment
            else client.create_experiment(
                "stepsearch", artifact_location=(folder.absolute() / "mlartifacts").as_uri()
            )
        )
        name = f"{config.name}-{config.search.algorithm}-{config.search.seed}"
        key = f"{name} {folder.absolute()}"
        known = client.search_runs([self._experiment], f"tags.`stepsearch.study` = '{key}'")
        if known:
            self._parent = known[0].info.run_id
        else:
            tags = {"stepsearch.study": key, "mlflow.runName": name}
            self._parent = client.create_run(self._experiment, tags=tags).info.run_id
            for section, values in config.model_dump().items():
                if isinstance(values, dict):
                    for field, value in values.items():
                        client.log_param(self._parent, f"{section}.{field}", value)
        children = client.search_runs(
            [self._experiment], f"tags.`mlflow.parentRunId` = '{self._parent}'", max_results=10000
        )
        for run in children:
            if "stepsearch.contender" in run.data.tags:
                self._contenders[run.data.tags["stepsearch.contender"]] = run.info.run_id
            elif run.info.status == "FINISHED":
                self._mirrored.add(int(run.data.tags["stepsearch.trial"]))
            else:  # it was cut off: written again from the start
                client.delete_run(run.info.run_id)

    def _sync(self, study: optuna.Study) -> None:
        from mlflow.entities import Metric, Param

        complete, pruned = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED
        for trial in study.get_trials(deepcopy=False, states=(complete, pruned)):
            if trial.number in self._mirrored:
                continue
            tags = {
                "mlflow.parentRunId": self._parent,
                "mlflow.runName": f"trial {trial.number}",
                "stepsearch.trial": str(trial.number),
            }
            run = self._client.create_run(self._experiment, tags=tags).info.run_id
            at = int(trial.datetime_complete.timestamp() * 1000) if trial.datetime_complete else 0
            values = {
                **trial.user_attrs,
                **({"fd": trial.values[0]} if trial.state == complete else {}),
            }
            metrics = [
                Metric(key, float(values[key]), at, 0)
                for key in ("fd", "alignment", "passes", "seconds")
                if key in values
            ]
            metrics += [Metric("fd_rung", fd, at, n) for n, fd in trial.intermediate_values.items()]
            params = [Param(key, f"{value:.6g}") for key, value in trial.params.items()]
            self._client.log_batch(run, metrics, params)
            if "schedule" in trial.user_attrs:
                self._client.log_text(run, trial.user_attrs["schedule"], "schedule.json")
            sheet = trial.user_attrs.get("sheet")
            if sheet and Path(sheet).exists():
                self._client.log_artifact(run, sheet)
            self._client.set_terminated(run, "FINISHED")
            self._mirrored.add(trial.number)

    def _contender(self, name: str, schedule: Schedule, metrics: dict[str, float]) -> None:
        if name not in self._contenders:
            tags = {
                "mlflow.parentRunId": self._parent,
                "mlflow.runName": name,
                "stepsearch.contender": name,
            }
            run = self._client.create_run(self._experiment, tags=tags).info.run_id
            self._client.log_text(run, schedule.to_json(), "schedule.json")
            self._contenders[name] = run
        for key, value in metrics.items():
            self._client.log_metric(self._contenders[name], key, value)
        self._client.set_terminated(self._contenders[name], "FINISHED")

    def _finish(self, metrics: dict[str, float], files: list[Path]) -> None:
        for key, value in metrics.items():
            self._client.log_metric(self._parent, key, value)
        for file in files:
            self._client.log_artifact(self._parent, str(file))
        self._client.set_terminated(self._parent, "FINISHED")
