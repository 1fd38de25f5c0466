"""The MLflow store of a run: where it is, whether it answers, and which experiment is ours."""

import hashlib
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from stepsearch.engine.mirror.tables import create_tables
from stepsearch.engine.store.addresses import passwords_of, without_passwords

ARTIFACTS = "mlartifacts"
EXPERIMENT = "stepsearch"
DATABASE_PATIENCE = 5  # seconds
EXPERIMENTS = 9  # names to try, where others are deleted or keep their files in a run

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # no news of its tables between ours
# The search waits for these requests: MLflow's own 7 retries of 120 s would stop it for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


class Store:
    """The store at `uri`, or the database in the run's folder. No message holds its password."""

    def __init__(self, uri: str | None, folder: Path) -> None:
        self.folder, self.secrets = folder.absolute(), passwords_of(uri or "")
        self._given = uri
        self.uri = uri or _sqlite(self.folder / "mlflow.db")

    def connect(self) -> Any:
        """An `MlflowClient`; raises whatever MLflow does where the store does not answer."""
        logging.getLogger("urllib3").addFilter(self._filter)
        from mlflow import MlflowClient

        for logger in ("mlflow", "alembic", "sqlalchemy"):
            for handler in logging.getLogger(logger).handlers:
                handler.addFilter(self._filter)
        if urlsplit(self.uri).scheme in ("http", "https"):
            self.uri = _with_credentials_aside(self.uri)
        elif "://" in self.uri:
            create_tables(self.uri)
            _check_database(self.uri)
        return MlflowClient(tracking_uri=self.uri)

    def sweep(self) -> None:
        """Remove the empty folder that MLflow makes for an address with %3F or the like in it."""
        path = Path(_sqlite(self.folder).removeprefix("sqlite:///"))
        if self._given is None and path != self.folder:
            with suppress(OSError):
                os.removedirs(path)

    def _filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = without_passwords(record.getMessage(), self.secrets), ()
        record.exc_info = record.exc_text = None
        return True

    def experiment(self, client: Any) -> str:
        """Where this run belongs; its artifacts are never in the folder of another run.

        MLflow keeps the place of artifacts with the experiment, from its first run on. A store in
        the run's folder has them there, a database file beside it, others where they keep theirs.
        A deleted one takes no runs, and keeps its name.
        """
        location: str | None = None
        if self._given is None:
            location = (self.folder / ARTIFACTS).as_uri()
        elif self._given.startswith("sqlite:///"):
            file = Path(unquote(self._given.removeprefix("sqlite:///").partition("?")[0]))
            location = (file.absolute().parent / ARTIFACTS).as_uri()
        own = hashlib.sha256((location or "").encode()).hexdigest()[:8]
        more = [f"{EXPERIMENT}-{own}-{k}" for k in range(2, EXPERIMENTS)]
        for name in (EXPERIMENT, f"{EXPERIMENT}-{own}", *more):
            found = client.get_experiment_by_name(name)
            if found is None:
                from mlflow.exceptions import MlflowException

                try:
                    return str(client.create_experiment(name, artifact_location=location))
                except MlflowException:  # another run was faster
                    found = client.get_experiment_by_name(name)
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
