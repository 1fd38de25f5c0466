"""What a run's folder says of the run: its settings, and the plan that all its workers share.

Both are with the trials as well, so that those of other settings are never taken for the run's own,
whatever was copied, edited or lost beside it, and so that a worker elsewhere needs no file of ours.
"""

import json
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from pydantic import ValidationError

from stepsampler.errors import UserError, note
from stepsampler.models import Model
from stepsampler.schedule import BY_STATISTICS
from stepsearch.config import StudyConfig
from stepsearch.config.measuring import SearchConfig
from stepsearch.engine.store.addresses import passwords_of, without_passwords
from stepsearch.engine.store.journal import JOURNAL
from stepsearch.paths import read_json, write_whole
from stepsearch.space.box import SearchSpace

STUDY, PLAN, STORAGE = "study.json", "plan.json", "storage.json"
BEST, RESULT = "best.json", "result.json"  # with which a run ends, in this order
# Attributes of the study, in the journal or the database
SETTINGS, IDENTITY, PLANNED = "settings", "identity", "plan"
# May change between the parts of a run: the budget, and what the run does not look at.
FREE = {
    ("search", "trials"),
    ("search", "minutes"),
    ("search", "patience"),
    ("search", "patterns"),
    ("search", "polish"),
    ("search", "polish_iterations"),
    ("search", "polish_gain"),
    ("model", "kind"),
    ("evaluation", "rulers"),
}


def without_use(config: StudyConfig, storage: str | None = None) -> str | None:
    """Why the run must not make statistics that the study has it make, or None."""
    if not config.statistics.files:
        return None
    if not config.by_statistics:
        return (
            f"statistics.guidance_scales: nothing goes by them, as {BY_STATISTICS} is among the "
            "solvers of neither space nor baselines"
        )
    if config.model.code is not None:
        return "statistics.guidance_scales: there are none of a model that a function returns"
    if storage is not None:
        return (
            "statistics.guidance_scales: workers elsewhere would lack the files: make them with "
            "`stepsample statistics`, and name them in model.statistics on every machine"
        )
    return None


def check_use(config: StudyConfig, storage: str | None) -> None:
    """Raise UserError where there is a reason (`without_use`)."""
    if why := without_use(config, storage):
        raise UserError(why)


def claim_folder(folder: Path, config: StudyConfig, trials: optuna.Study | None = None) -> None:
    """Write the settings into the run's folder, or check that they are those of its start.

    What is `FREE` may change; anything else would mix scores that cannot be compared. `trials` is
    the study of the folder's journal, which also remembers them.

    Raises:
        UserError: names the first setting that differs.
    """
    path, now = folder / STUDY, config.model_dump(mode="json")
    known = _remembered(trials, SETTINGS)
    if path.exists():
        try:
            known = claimed(folder).model_dump(mode="json")
        except _DamagedError as error:
            note(f"{error}; it is written again")
    for key, before, value in differences(_whole(known or {}), now):
        _refuse(folder, key, before, value)
    write_whole(path, lambda p: p.write_text(config.model_dump_json(indent=1)))


def _whole(settings: dict[str, Any]) -> dict[str, Any]:
    """With the defaults of keys that are newer than the run, whose trials were made without them;
    as they are where a newer build wrote them."""
    try:
        return StudyConfig.model_validate_json(json.dumps(settings)).model_dump(mode="json")
    except ValidationError:
        return settings


def differences(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    free: Container[tuple[str, str]] = frozenset(FREE),
) -> list[tuple[str, Any, Any]]:
    """Settings that may not change and did, with both values. What only one side has is left out:
    another version wrote it."""
    return [
        (f"{section}.{key}", before[section][key], value)
        for section, values in now.items()
        if isinstance(values, Mapping) and isinstance(before.get(section), Mapping)
        for key, value in values.items()
        if (section, key) not in free and before[section].get(key, value) != value
    ]


def sign(study: optuna.Study, config: StudyConfig, identity: str) -> None:
    """Let the journal remember of what its trials are."""
    for key, value in ((SETTINGS, config.model_dump(mode="json")), (IDENTITY, identity)):
        if study.user_attrs.get(key) != value:
            study.set_user_attr(key, value)


def remember_storage(folder: Path, address: str | None) -> None:
    """Write down where the trials of a run are, without passwords, or check that it is the same.

    Raises:
        UserError: they are elsewhere, so that this run would begin anew.
    """
    path = folder / STORAGE
    here = None if address is None else without_passwords(address, passwords_of(address))
    if not path.exists():
        if address is None:
            return
        if (folder / JOURNAL).exists():
            raise UserError(
                f"{folder}: its trials are in its {JOURNAL}, not in {here}; go on without "
                "--storage, or give another folder with --run"
            )
    elif (known := _read(path).get("storage")) != here:
        raise UserError(
            f"{folder}: its trials are in {known}; give that with --storage, not {here}"
        )
    write_whole(path, lambda p: p.write_text(json.dumps({"storage": here})))


@contextmanager
def trials_in(address: str | None, folder: Path) -> Iterator[None]:
    """`remember_storage` for a run, which forgets it again where it is refused before its search
    began: a mistyped address must not stay the folder's own.

    Raises:
        UserError: as `remember_storage` does.
    """
    new = not (folder / STORAGE).exists()
    remember_storage(folder, address)
    try:
        yield
    except UserError:
        if new and not (folder / PLAN).exists():
            (folder / STORAGE).unlink(missing_ok=True)
        raise


def publish(study: optuna.Study, folder: Path) -> None:
    """Let workers begin that wait for a plan."""
    study.set_user_attr(PLANNED, _read(folder / PLAN))


def adopt_settings(study: optuna.Study, folder: Path, config: StudyConfig) -> StudyConfig:
    """The settings of a run that others lead, written into this machine's folder of it.

    They are those of `study`, also in what is `FREE`: the budget is one for all.

    Raises:
        UserError: `config` or the folder is of another run.
    """
    known = study.user_attrs[SETTINGS]
    for key, before, value in differences(_whole(known), config.model_dump(mode="json")):
        raise UserError(
            f"the run {folder.resolve().name} was started with {key} = {before!r}, here it is "
            f"{value!r}; --quick, --seed and --set of a worker are those of its run"
        )
    now = StudyConfig.model_validate_json(json.dumps(known))
    claim_folder(folder, now)
    check_identity(folder, study.user_attrs[IDENTITY])
    return now


def adopt_plan(study: optuna.Study, folder: Path) -> None:
    """Write the plan of a database's study into this machine's folder of the run."""
    plan = study.user_attrs[PLANNED]
    check_identity(folder, plan["identity"])
    write_whole(folder / PLAN, lambda p: p.write_text(json.dumps(plan)))


def _remembered(study: optuna.Study | None, key: str) -> Any:
    """Of the trials in a journal, where there are any; older journals know nothing."""
    if study is None or not study.get_trials(deepcopy=False):
        return None
    return study.user_attrs.get(key)


def claimed(folder: Path) -> StudyConfig:
    """The settings of the run in a folder.

    Raises:
        UserError: no run has started here, or one of another version; or the file is damaged.
    """
    path = folder / STUDY
    if not path.exists():
        raise UserError(f"{folder}: no run has started here; start it with stepsearch run")
    data = _read(path)
    try:
        return StudyConfig.model_validate_json(json.dumps(data)).naming_own(folder)
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{path}: another version of stepsearch wrote it: {key}") from error


class _DamagedError(UserError):
    """A file of the run that was cut short; `run` writes it again."""


def _read(path: Path) -> dict[str, Any]:
    try:
        data = read_json(path)
    except ValueError as error:
        raise _DamagedError(f"{path} is damaged: {error}") from error
    if not isinstance(data, dict):
        raise _DamagedError(f"{path} is damaged: it holds no object")
    return data


def has_ended(folder: Path, config: StudyConfig) -> bool:
    """Whether the run in a folder came to its end with this very budget."""
    if not (folder / BEST).exists():
        return False
    try:
        known = _read(folder / RESULT)["study"]["search"]
        before = {**SearchConfig().model_dump(), **known}  # keys that are newer than the run
        now = config.model_dump()["search"]
        return all(before[key] == now[key] for section, key in FREE if section == "search")
    except (OSError, UserError, LookupError, TypeError):
        return False


def is_damaged(result: Path) -> bool:
    """Whether a `result.json` is there that cannot be read, so that no one knows of an end."""
    try:
        _read(result)
    except FileNotFoundError:
        return False
    except (OSError, UserError):
        return True
    return False


def make_plan(
    folder: Path,
    identity: str,
    grid: str,
    alignment_floor: float,
    placements: Mapping[int, list[float]] | None = None,
) -> None:
    """Write what every worker of the search needs, or check that it is the same as before.

    Raises:
        UserError: model, reference or prompts have changed since the folder's first trial.
    """
    check_identity(folder, identity)
    plan: dict[str, Any] = {"identity": identity, "grid": grid, "alignment_floor": alignment_floor}
    plan["placements"] = [sigmas for _, sigmas in sorted((placements or {}).items())]
    write_whole(folder / PLAN, lambda p: p.write_text(json.dumps(plan)))


def check_identity(folder: Path, identity: str, trials: optuna.Study | None = None) -> None:
    """Raise UserError if the folder's search, where there is one, was of something else."""
    known = _remembered(trials, IDENTITY)
    if (folder / PLAN).exists():
        try:
            known = identity_of(folder)
        except _DamagedError as error:
            note(f"{error}; it is written again")
    if known not in (None, identity):
        _refuse(folder, "model, reference and prompts", known, identity)


def planned_space(folder: Path, config: StudyConfig, model: Model) -> SearchSpace:
    """The box of the folder's search, around the grid with which it began."""
    placements = {len(sigmas) - 1: sigmas for sigmas in _plan(folder, "placements")}
    grid = _plan(folder, "grid")
    own = model.experts.boundary
    known = [found.spec for found in model.statistics]
    return SearchSpace(
        config.space, model.noise, model.spec, grid, model.guidance, placements, own, known
    )


def alignment_floor(folder: Path) -> float:
    """The alignment below which a trial is not feasible; NaN where alignment is unknown."""
    return float(_plan(folder, "alignment_floor"))


def identity_of(folder: Path) -> str:
    """The digest of a run's model, reference and prompts.

    Raises:
        UserError: the search has not started, or the file that says so is damaged.
    """
    return str(_plan(folder, "identity"))


def _plan(folder: Path, key: str) -> Any:
    path = folder / PLAN
    if not path.exists():
        raise UserError(f"{folder}: the search has not started here yet")
    data = _read(path)
    if key not in data and key != "placements":  # those of older runs are by formula alone
        raise _DamagedError(f"{path} is damaged: it has no {key!r}")
    return data.get(key, [])


def _refuse(folder: Path, what: str, before: object, now: object) -> None:
    raise UserError(
        f"{folder} was started with {what} = {before!r}, now it is {now!r}; "
        "give another folder with --run, or remove this one"
    )
