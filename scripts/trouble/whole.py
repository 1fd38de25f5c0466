"""What must hold of a run that has ended, whatever happened to it."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from stepsampler import load
from stepsampler.schedule import Schedule
from stepsearch.config import StudyConfig, load_config
from stepsearch.engine.algorithms import ERROR
from stepsearch.engine.study import DEATHS, finished, pruned, read_study
from stepsearch.metrics.distance import score
from stepsearch.metrics.evaluator import SEARCH
from trouble import stub
from trouble.scene import Fault, Scene


def check(scene: Scene) -> dict[str, int]:
    """Raise Fault with the first thing that does not hold; counts of what happened otherwise."""
    config = load_config(scene.study)
    study = read_study(scene.place, config, scene.storage)
    trials = study.get_trials(deepcopy=False)
    ended = [*finished(study), *pruned(study)]
    _states(trials, ended, config)
    _deaths(trials)
    _values(ended, config, scene.folder / "again")
    _export(scene.place)
    _undisturbed(scene)
    if scene.tracking != "none":
        _mirror(scene, ended)
    return {
        "trials": len(trials),
        "retried": sum("retry_of" in t.user_attrs for t in trials),
        "failed": sum(ERROR in t.user_attrs for t in trials),
    }


def _states(trials: list[FrozenTrial], ended: list[FrozenTrial], config: StudyConfig) -> None:
    if len(ended) != config.search.trials:
        raise Fault(f"{len(ended)} trials have ended, the budget is {config.search.trials}")
    if left := [t.number for t in trials if t.state == TrialState.RUNNING]:
        raise Fault(f"trials {left} are running after the end")
    # The budget can be spent before a dead worker's point has had its turn again: it stays queued.
    waiting = [t for t in trials if t.state == TrialState.WAITING]
    if left := [t.number for t in waiting if "retry_of" not in t.user_attrs]:
        raise Fault(f"trials {left} are waiting after the end")
    origins = Counter(t.user_attrs["origin"] for t in ended if "origin" in t.user_attrs)
    if twice := [name for name, count in origins.items() if count > 1]:
        raise Fault(f"measured twice: {twice}")


def _deaths(trials: list[FrozenTrial]) -> None:
    retries = Counter(t.user_attrs["retry_of"] for t in trials if "retry_of" in t.user_attrs)
    if twice := [number for number, count in retries.items() if count > 1]:
        raise Fault(f"trials {twice} were tried again twice")
    for trial in trials:
        if trial.state != TrialState.FAIL or ERROR in trial.user_attrs or not trial.params:
            continue
        deaths = trial.user_attrs.get("deaths", 0) + 1
        if deaths > DEATHS or (deaths < DEATHS) != (trial.number in retries):
            raise Fault(f"trial {trial.number}: {deaths} deaths, retries {retries[trial.number]}")


def _values(ended: list[FrozenTrial], config: StudyConfig, cache: Path) -> None:
    """Each trial has the distance that its schedule has when it is measured once more."""
    evaluator = stub.Stub(config, cache)
    for trial in ended:
        schedule = Schedule.from_json(trial.user_attrs["schedule"])
        n = trial.user_attrs["images"]
        found = evaluator.measure(schedule, range(SEARCH, SEARCH + n))
        again = score(found.features, evaluator.reference.search).value
        if trial.state == TrialState.COMPLETE and not np.isclose(again, trial.values[0]):
            raise Fault(f"trial {trial.number} says {trial.values[0]}, measured again {again}")


def _export(place: Path) -> None:
    schedule = load(place / "best.json")
    source = schedule.provenance["source"]
    result = json.loads((place / "result.json").read_text())
    if source not in {row["name"] for row in result["test"]}:
        raise Fault(f"best.json is {source}, which is not in the test of result.json")
    if result["trials"] != result["study"]["search"]["trials"]:
        raise Fault(f"result.json says {result['trials']} trials")


def _undisturbed(scene: Scene) -> None:
    """A run that begins with these trials and nothing else says the same of them."""
    place = scene.folder / "undisturbed" / scene.name
    place.mkdir(parents=True)
    shutil.copy(scene.place / "journal.log", place)
    stub.nature = scene.nature
    try:
        words = ("--run", str(place), "--workers", "1", "--tracking", "none", "--quiet")
        stub.command("run", str(scene.study), *words)
    except SystemExit as ended:
        if ended.code:
            raise Fault(f"a run of the same trials ended with {ended.code}") from ended
    bare = [_bare(folder / "best.json") for folder in (scene.place, place)]
    if bare[0] != bare[1]:
        raise Fault(f"best.json is {bare[0]}, undisturbed it is {bare[1]}")
    ours, theirs = (
        json.loads((folder / "result.json").read_text()) for folder in (scene.place, place)
    )
    for part in ("test", "selection"):
        if ours.get(part) != theirs.get(part):
            raise Fault(f"result.json: {part} is not that of an undisturbed run")


def _bare(file: Path) -> str:
    schedule = load(file)
    known = {k: schedule.provenance[k] for k in ("source", "trial", "value", "standard_error")}
    return f"{known} {schedule.steps}"


def _mirror(scene: Scene, ended: list[FrozenTrial]) -> None:
    """MLflow has each trial once, with its distance."""
    from mlflow import MlflowClient

    uri = scene.tracking
    if uri == "local":
        uri = f"sqlite:///{scene.place / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=10000)
    parents = {
        r.info.run_id
        for r in runs
        if r.data.tags.get("stepsearch.folder") == str(scene.place.absolute())
    }
    if len(parents) != 1:
        raise Fault(f"MLflow has {len(parents)} runs of this folder")
    mine = [r for r in runs if r.data.tags.get("mlflow.parentRunId") in parents]
    found = sorted(
        int(r.data.tags["stepsearch.trial"]) for r in mine if "stepsearch.trial" in r.data.tags
    )
    wanted = {t.number: t for t in ended}
    if found != sorted(wanted):
        raise Fault(f"MLflow has trials {found}, the storage {sorted(wanted)}")
    for run in mine:
        if run.info.status != "FINISHED":
            raise Fault(f"MLflow: {run.data.tags['mlflow.runName']} is {run.info.status}")
        number = run.data.tags.get("stepsearch.trial")
        trial = wanted.get(int(number)) if number else None
        if trial is None or trial.state != TrialState.COMPLETE:
            continue
        if not np.isclose(run.data.metrics["fd"], trial.values[0]):
            raise Fault(f"MLflow: trial {number} has another distance")


optuna.logging.set_verbosity(optuna.logging.WARNING)
