"""Who listens to a run: nobody, or MLflow as an idempotent mirror of the Optuna study.

Only the parent process writes, so the database is created once. The search runs and ends well with
tracking off, down or deleted half-way: the first error is reported and ends the mirroring.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import optuna

from stepsearch.config import StudyConfig
from stepsearch.engine.mirror.records import Mirror
from stepsearch.engine.mirror.stores import Store
from stepsearch.engine.store.addresses import passwords_of, without_passwords

HALF = 500  # characters of a warning


class Tracker(Protocol):
    """Listens to a run."""

    def start(self, config: StudyConfig, folder: Path) -> None: ...

    def sync(self, study: optuna.Study) -> None: ...

    def finish(self, result: Mapping[str, Any], pictures: Mapping[str, Any] | None) -> None: ...


class NoTracking:
    """Tracking is off."""

    def start(self, config: StudyConfig, folder: Path) -> None:
        pass

    def sync(self, study: optuna.Study) -> None:
        pass

    def finish(self, result: Mapping[str, Any], pictures: Mapping[str, Any] | None) -> None:
        pass


class MlflowTracking:
    """The records of `mirror`, which end nothing where MLflow fails.

    `warn` receives one sentence then. It never holds a password of `uri`.
    """

    def __init__(self, uri: str | None, warn: Callable[[str], None]) -> None:
        self._uri, self._warn, self._alive = uri, warn, True
        self._mirror: Mirror | None = None

    def start(self, config: StudyConfig, folder: Path) -> None:
        """Find the parent run of this run, or begin it."""

        def begin() -> None:
            self._mirror = Mirror(Store(self._uri, folder))
            self._mirror.open(config)

        self._try(begin)

    def reach(self, folder: Path) -> None:
        """Only look whether the store answers."""
        self._try(lambda: Store(self._uri, folder).connect().search_experiments(max_results=1))

    def sync(self, study: optuna.Study) -> None:
        """Every trial that is finished by now."""
        if (mirror := self._mirror) is not None:
            self._try(lambda: mirror.trials(study))

    def finish(self, result: Mapping[str, Any], pictures: Mapping[str, Any] | None) -> None:
        """With what a run has ended: its result, and what its pictures show."""
        if (mirror := self._mirror) is not None:
            self._try(lambda: mirror.ended(result, pictures))

    def _try(self, action: Callable[[], object]) -> None:
        if not self._alive:
            return
        try:
            action()
        except Exception as error:  # whatever MLflow raises must not end a search
            self._alive = False
            self._warn(
                f"MLflow tracking stops here, the search goes on: {reason_of(error, self._uri)}"
            )


def reason_of(error: Exception, uri: str | None) -> str:
    """The first line of what a store has to say, without a password; both ends of a long one."""
    said = str(error).strip().splitlines() or [type(error).__name__]
    reason = without_passwords(said[0], passwords_of(uri or ""))
    return reason if len(reason) <= 2 * HALF else f"{reason[:HALF]} … {reason[-HALF:]}"
