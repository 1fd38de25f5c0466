"""What `stepsearch sync` does: MLflow has of a run what it would have if it had mirrored it."""

import sys
from pathlib import Path
from typing import Any

from stepsampler.errors import UserError, counted
from stepsearch.engine.claim import BEST, RESULT, claimed, has_ended
from stepsearch.engine.mirror.records import Mirror
from stepsearch.engine.mirror.registry import check_name, register
from stepsearch.engine.mirror.stores import Store
from stepsearch.engine.store.locks import only_run
from stepsearch.engine.study import read_study
from stepsearch.engine.tracking import reason_of
from stepsearch.report.pictures import read_index
from stepsearch.report.sources import of_run


def _ended(mirror: Mirror, result: dict[str, Any], folder: Path) -> None:
    try:
        mirror.ended(result, read_index(folder))
    except (AttributeError, LookupError, TypeError) as error:
        raise UserError(f"{folder / RESULT} is not whole: {error!r}") from error


def sync(folder: Path, storage: str | None, uri: str | None, name: str | None) -> bool:
    """Write a run's trials, and what it ended with, to MLflow; register its schedule as `name`.

    Whether nothing had to be left out, which is named on stderr. `uri` is MLflow's address, by
    default the database in the run's folder.

    Raises:
        UserError: no run is there, MLflow does not answer, or the run to register is not finished.
    """
    if name is not None:
        check_name(name)
        if not (folder / BEST).exists():
            raise UserError(f"--register: {folder} has no {BEST}: its run is not finished")
    config = claimed(folder)
    store = Store(uri, folder)
    with only_run(folder):  # one that is under way mirrors itself
        source = of_run(folder)
        study = read_study(folder, config, storage) if storage else source.study
        ended = source.result if has_ended(folder, config) else None
        for problem in source.problems:
            sys.stderr.write(f"{problem}\n")
        try:
            mirror = Mirror(store)
            mirror.open(config)
            if study is not None:
                mirror.trials(study)
            if ended is not None:
                _ended(mirror, ended, folder)
            made = None if name is None else register(name, config, store, mirror.parent)
        except UserError:
            raise
        except Exception as error:  # whatever MLflow raises
            raise UserError(f"MLflow: {reason_of(error, uri)}") from error
    trials, schedules = mirror.counts
    done = f"{counted(trials, 'trial')} and {counted(schedules, 'schedule')}"
    rest = "" if ended else "; the run is not finished"
    sys.stdout.write(f"{folder}: in MLflow are {done}{rest}\n")
    if made is not None:
        number, new = made
        already = "" if new else ": it was registered before"
        sys.stdout.write(f"models:/{name}/{number}{already}\n")
    return mirror.whole
