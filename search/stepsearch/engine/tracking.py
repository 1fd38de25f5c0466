"""MLflow as an idempotent mirror of the Optuna study.

Only the parent process writes, so the database is created once. The search runs and ends well with
tracking off, down or deleted half-way: the first error is reported and ends the mirroring.
"""

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

import optuna

from stepsampler.schedule import Schedule
from stepsearch.config import StudyConfig
from stepsearch.engine.store.addresses import passwords_of, without_passwords
from stepsearch.paths import write_whole

ARTIFACTS = "mlartifacts"
EXPERIMENT = "stepsearch"
DATABASE_PATIENCE = 5  # seconds
HALF = 500  # characters of a warning
EXPERIMENTS = 9  # names to try, where others are deleted or keep their files in a run

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
    `warn` receives one sentence when MLflow fails. It never holds a password of `uri`.
    """

    def __init__(self, uri: str | None, warn: Callable[[str], None]) -> None:
        self._uri, self._warn, self._alive = uri, warn, True
        self._secrets = passwords_of(uri or "")
        self._client: Any = None
        self._parent = self._experiment = ""
        self._mirrored: set[int] = set()
        self._contenders: dict[str, str] = {}

    def start(self, config: StudyConfig, folder: Path) -> None:
        self._try(lambda: self._start(config, folder))

    def reach(self, folder: Path) -> None:
        """Only look whether the store answers."""

        def ask() -> None:
            self._connect(folder)
            self._client.search_experiments(max_results=1)

        self._try(ask)

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
            news = f"MLflow tracking stops here, the search goes on: {reason[0]}"
            news = without_passwords(news, self._secrets)
            if len(news) > 2 * HALF:  # what went wrong stands at an end of long ones
                news = f"{news[:HALF]} … {news[-HALF:]}"
            self._warn(news)

    def _start(self, config: StudyConfig, folder: Path) -> None:
        logging.getLogger("urllib3").addFilter(self._filter)
        self._connect(folder)
        client = self._client
        self._experiment = self._find_experiment(folder)
        self._sweep(folder)
        name = f"{config.name}-{config.search.algorithm}-{config.search.seed}"
        key = _key(folder)
        known = client.search_runs([self._experiment], f"tags.`stepsearch.run` = '{key}'")
        if known:
            self._parent, logged = known[0].info.run_id, known[0].data.params
        else:
            tags = {
                "stepsearch.run": key,
                "stepsearch.folder": str(folder.absolute()),
                "mlflow.runName": name,
            }
            self._parent, logged = client.create_run(self._experiment, tags=tags).info.run_id, {}
        self._log_settings(config, logged)
        children = client.search_runs(
            [self._experiment], f"tags.`mlflow.parentRunId` = '{self._parent}'", max_results=10000
        )
        for run in children:
            if "stepsearch.contender" in run.data.tags:
                self._contenders[run.data.tags["stepsearch.contender"]] = run.info.run_id
            elif "stepsearch.trial" not in run.data.tags:
                continue  # somebody's own notes, evaluations, …
            elif run.info.status == "FINISHED":
                self._mirrored.add(int(run.data.tags["stepsearch.trial"]))
            else:  # it was cut off: written again from the start
                client.delete_run(run.info.run_id)

    def _connect(self, folder: Path) -> None:
        from mlflow import MlflowClient

        for logger in ("mlflow", "alembic", "sqlalchemy"):
            for handler in logging.getLogger(logger).handlers:
                handler.addFilter(self._filter)
        uri = self._uri or _sqlite(folder.absolute() / "mlflow.db")
        if urlsplit(uri).scheme in ("http", "https"):
            uri = _with_credentials_aside(uri)
        elif "://" in uri:
            _check_database(uri)
        self._client = MlflowClient(tracking_uri=uri)

    def _sweep(self, folder: Path) -> None:
        """Remove the empty folder that MLflow makes for an address with %3F or the like in it."""
        path = Path(_sqlite(folder.absolute()).removeprefix("sqlite:///"))
        if self._uri is None and path != folder.absolute():
            with suppress(OSError):
                os.removedirs(path)

    def _filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = without_passwords(record.getMessage(), self._secrets), ()
        record.exc_info = record.exc_text = None
        return True

    def _find_experiment(self, folder: Path) -> str:
        """Where this run belongs; its artifacts are never in the folder of another run.

        MLflow keeps the place of artifacts with the experiment, from its first run on. A store in
        the run's folder has them there, a database file beside it, others where they keep theirs.
        A deleted one takes no runs, and keeps its name.
        """
        location: str | None = None
        if self._uri is None:
            location = (folder.absolute() / ARTIFACTS).as_uri()
        elif self._uri.startswith("sqlite:///"):
            file = Path(unquote(self._uri.removeprefix("sqlite:///").partition("?")[0]))
            location = (file.absolute().parent / ARTIFACTS).as_uri()
        own = hashlib.sha256((location or "").encode()).hexdigest()[:8]
        more = [f"{EXPERIMENT}-{own}-{k}" for k in range(2, EXPERIMENTS)]
        for name in (EXPERIMENT, f"{EXPERIMENT}-{own}", *more):
            found = self._client.get_experiment_by_name(name)
            if found is None:
                from mlflow.exceptions import MlflowException

                try:
                    return str(self._client.create_experiment(name, artifact_location=location))
                except MlflowException:  # another run was faster
                    found = self._client.get_experiment_by_name(name)
                    if found is None:
                        raise
            place = str(found.artifact_location)
            of_a_run = place.startswith(("file:", "/")) and place.endswith(f"/{ARTIFACTS}")
            if found.lifecycle_stage == "active" and (place == location or not of_a_run):
                return str(found.experiment_id)
        raise ValueError(
            f"all its experiments from {EXPERIMENT} to {name} are deleted or keep their files "
            "elsewhere; `mlflow experiments restore` brings one back"
        )

    def _log_settings(self, config: StudyConfig, logged: dict[str, str]) -> None:
        from mlflow.entities import Param

        params = [
            Param(f"{section}.{field}", str(value))
            for section, values in config.model_dump().items()
            if isinstance(values, dict)
            for field, value in values.items()
            if f"{section}.{field}" not in logged
        ]
        for start in range(0, len(params), 100):  # MLflow takes no more at once
            self._client.log_batch(self._parent, params=params[start : start + 100])

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


def _with_credentials_aside(uri: str) -> str:
    """The address without user and password, which MLflow takes from the environment as well."""
    parts = urlsplit(uri)
    try:
        _ = parts.port
    except ValueError:
        raise ValueError(
            "its address is not valid; / ? # and : of a user or password must be %2F %3F %23 %3A"
        ) from None
    if parts.username is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _sqlite(path: Path) -> str:
    """The address of a database file, whatever characters its path has."""
    from sqlalchemy import URL

    return URL.create("sqlite", database=str(path)).render_as_string()


def _check_database(uri: str) -> None:
    """Raise where a database does not answer: MLflow tries ten times, for minutes, and says so."""
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        address = make_url(uri)
        address.get_dialect()
    except (ArgumentError, NoSuchModuleError, ImportError):
        return  # a store of another kind: MLflow knows
    if address.drivername == "sqlite" and address.database:
        Path(address.database).absolute().parent.mkdir(parents=True, exist_ok=True)
    limited = address.get_backend_name() in ("postgresql", "mysql")
    wait = {"connect_timeout": DATABASE_PATIENCE} if limited else {}
    engine = create_engine(address, connect_args=wait)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _key(folder: Path) -> str:
    """What tells a run from all others, also from one of the same path elsewhere and from a copy.

    A digest: MLflow's filters know no way to write a quotation mark.
    """
    path = folder / "tracking.json"
    if not path.exists():
        write_whole(path, lambda p: p.write_text(json.dumps({"run": secrets.token_hex(16)})))
    word = json.loads(path.read_text())["run"]
    return hashlib.sha256(f"{word} {folder.absolute()}".encode()).hexdigest()
