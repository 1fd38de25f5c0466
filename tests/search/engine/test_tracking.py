import socket
import time
from pathlib import Path

import optuna
import pytest

from stepsampler.schedule import Schedule, Step
from stepsearch.config import StudyConfig
from stepsearch.engine.tracking import MlflowTracking

CONFIG = StudyConfig.model_validate({"name": "toy", "space": {"num_steps": 3, "passes": 6}})


@pytest.fixture
def study():
    study = optuna.create_study()
    for value in (3.0, 2.0):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.set_user_attr("schedule", "{}")
        trial.set_user_attr("alignment", 0.9)
        study.tell(trial, value)
    return study


def test_a_broken_store_is_reported_once_and_ends_nothing(tmp_path, study):
    warnings = []
    (tmp_path / "file").write_text("")
    tracker = MlflowTracking(f"sqlite:///{tmp_path}/file/x.db", warnings.append)
    tracker.start(CONFIG, tmp_path)
    tracker.sync(study)
    tracker.finish({"test_fd": 1.0}, [])
    assert len(warnings) == 1
    assert warnings[0].startswith("MLflow tracking stops here, the search goes on: ")


def test_a_server_that_is_not_there_is_given_up_in_seconds(tmp_path, study):
    warnings = []
    with socket.create_server(("127.0.0.1", 0)) as free:  # its port is closed afterwards
        port = free.getsockname()[1]
    started = time.monotonic()
    tracker = MlflowTracking(f"http://127.0.0.1:{port}", warnings.append)
    tracker.start(CONFIG, tmp_path)
    tracker.sync(study)
    assert time.monotonic() - started < 60  # of which importing MLflow takes most
    assert len(warnings) == 1
    assert warnings[0].startswith("MLflow tracking stops here, the search goes on: ")


def test_a_second_mirror_adds_nothing_and_a_torn_run_is_written_again(tmp_path, study):
    from mlflow import MlflowClient

    warnings = []
    first = MlflowTracking(None, warnings.append)
    first.start(CONFIG, tmp_path)
    first.sync(study)
    schedule = Schedule((Step(1.0),), 0.0, "ddim")
    first.contender("karras", schedule, {"fd_selection": 5.0})
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("stepsearch").experiment_id
    (torn,) = client.search_runs([experiment], "tags.`stepsearch.trial` = '1'")
    client.set_terminated(torn.info.run_id, "RUNNING")

    second = MlflowTracking(None, warnings.append)
    second.start(CONFIG, tmp_path)
    second.sync(study)
    second.contender("karras", schedule, {"fd_test": 4.0})
    second.finish({"test_fd": 1.5}, [Path(__file__)])
    assert warnings == []
    runs = client.search_runs([experiment])
    children = [r for r in runs if "stepsearch.trial" in r.data.tags]
    assert sorted(r.data.tags["stepsearch.trial"] for r in children) == ["0", "1"]
    assert sorted(r.data.metrics["fd"] for r in children) == [2.0, 3.0]
    (karras,) = [r for r in runs if "stepsearch.contender" in r.data.tags]
    assert karras.data.metrics == {"fd_selection": 5.0, "fd_test": 4.0}
    assert client.list_artifacts(karras.info.run_id)[0].path == "schedule.json"
    (parent,) = [r for r in runs if r not in children and r.info.run_id != karras.info.run_id]
    assert parent.data.metrics["test_fd"] == 1.5
    assert parent.data.params["space.num_steps"] == "3"
