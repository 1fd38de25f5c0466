"""MLflow stores in which people have worked: what is theirs stays, and the mirror goes on."""

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from stepsearch.cli.app import app
from stepsearch.config import StudyConfig
from stepsearch.engine.tracking import MlflowTracking

CONFIG = StudyConfig.model_validate({"name": "toy", "space": {"num_steps": 3, "passes": 6}})


def mirrored(folder, uri=None):
    folder.mkdir(exist_ok=True)
    warnings = []
    tracker = MlflowTracking(uri, warnings.append)
    tracker.start(CONFIG, folder)
    row = {"name": "x", "kind": "found", "steps": 1, "passes": 1, "fd": 1.0, "se": 0.1}
    row |= {"alignment": None}
    result = {"metric": "fd", "verdict": "", "search_passes": 7, "selection": []}
    tracker.finish(result | {"test": [row], "teacher": row}, None)
    return warnings


def parents(client):
    ids = [e.experiment_id for e in client.search_experiments()]
    return [r for r in client.search_runs(ids) if "stepsearch.run" in r.data.tags]


def test_runs_that_somebody_else_put_below_ours_stay_as_they_are(tmp_path):
    assert mirrored(tmp_path) == []
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (parent,) = parents(client)
    experiment = parent.info.experiment_id
    tags = {"mlflow.parentRunId": parent.info.run_id}
    notes = [client.create_run(experiment, tags=tags).info.run_id for _ in range(2)]
    client.set_terminated(notes[1], "FINISHED")
    assert mirrored(tmp_path) == []
    for run in notes:
        assert client.get_run(run).info.lifecycle_stage == "active"
    assert len(parents(client)) == 1


def test_a_deleted_experiment_ends_no_mirror(tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for _ in range(3):
        assert mirrored(tmp_path) == []
        (parent,) = parents(client)  # of experiments that are there
        assert parent.data.metrics["test_fd"] == 1.0
        client.delete_experiment(parent.info.experiment_id)


@pytest.mark.parametrize("length", [300, 5000])
def test_a_warning_keeps_its_reason(length):
    warnings = []
    tracker = MlflowTracking(None, warnings.append)

    def fail(*_):
        raise OSError(f"a request {'x' * length} failed: connection refused")

    tracker._try(fail)
    assert warnings[0].endswith("failed: connection refused")
    assert len(warnings[0]) < 1100


@pytest.mark.parametrize("store", ["", " ", "off", "NONE", "Local", "mlflow.db", "mlruns"])
def test_a_store_that_is_no_address_is_refused_before_anything_begins(tmp_path, monkeypatch, store):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.toml").write_text("[space]\nnum_steps = 3\npasses = 6\n")
    said = CliRunner().invoke(app, ["run", "x.toml", "--tracking", store])
    assert "--tracking must be local, none or an address" in str(said.exception)
    assert not (tmp_path / "runs").exists()
