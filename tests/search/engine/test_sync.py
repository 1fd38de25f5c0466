"""`stepsearch sync`: MLflow has afterwards what a run with tracking writes at once."""

import json
import shutil

from mlflow import MlflowClient
from reporting import begun, command, session_of, toy_run

from stepsearch.engine.mirror.records import _sheet
from stepsearch.report.page import PAGE, write_page
from stepsearch.report.sources import of_run


def records(folder):
    """Name, parent's or not, numbers and files of every run."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("stepsearch").experiment_id
    found = {}
    for run in client.search_runs([experiment]):
        assert run.info.run_name not in found
        parent = "mlflow.parentRunId" not in run.data.tags
        files = {f.path for f in client.list_artifacts(run.info.run_id)}
        found[run.info.run_name] = (parent, run.data.metrics, files, run.info.status)
    return found


def test_a_run_without_tracking_is_written_afterwards_as_one_with_it(tmp_path, monkeypatch):
    run, told = tmp_path / "run", tmp_path / "told"
    session_of(run, monkeypatch, show="nothing", tracking="local")
    shutil.copytree(run, told, ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    assert "trials" in (done := command("sync", told)).stdout, done.output
    assert records(told) == records(run)
    assert records(told)["toy-random-0"][0]
    assert records(told)["toy-random-0"][2] >= {"best.json", "result.json", PAGE}
    assert command("sync", told).exit_code == 0
    assert records(told) == records(run)  # nothing is doubled


def test_a_run_that_has_not_ended_has_its_trials_and_goes_on(tmp_path):
    begun(tmp_path)
    done = command("sync", tmp_path)
    assert done.stdout.endswith("in MLflow are 0 trials and 0 schedules; the run is not finished\n")
    assert records(tmp_path)["toy-random-0"][3] == "RUNNING"
    toy_run(tmp_path)
    write_page(of_run(tmp_path), tmp_path / PAGE)
    assert command("sync", tmp_path).exit_code == 0
    assert records(tmp_path)["toy-random-0"][3] == "FINISHED"


def test_a_store_that_does_not_answer_is_one_sentence(tmp_path):
    begun(tmp_path)
    (tmp_path / "file").write_text("")
    said = command("sync", tmp_path, "--tracking", f"sqlite:///{tmp_path}/file/x.db")
    assert str(said.exception).startswith("MLflow: ")
    nothing = command("sync", tmp_path, "--tracking", "none")
    assert str(nothing.exception) == "--tracking none: there is nothing to write to"


def test_a_picture_that_is_gone_is_named_and_the_rest_is_written(tmp_path):
    name = toy_run(tmp_path).test[0].candidate.name
    index = tmp_path / "pictures" / "pictures.json"
    data = json.loads(index.read_text())
    data["rows"][0]["name"] = name  # a schedule that MLflow has
    index.write_text(json.dumps(data))
    gone = tmp_path / "pictures" / "0-0.png"
    gone.unlink()
    done = command("sync", tmp_path)
    assert done.exit_code == 1, done.exception
    assert f"{gone} cannot be read, and MLflow goes without it" in done.stderr
    assert records(tmp_path)["toy-random-0"][3] == "FINISHED"


def test_files_that_are_not_whole_are_named_and_not_taken_for_a_fault_of_mlflow(tmp_path):
    toy_run(tmp_path)
    index = tmp_path / "pictures" / "pictures.json"
    data = json.loads(index.read_text())
    index.write_text(json.dumps({**data, "prompts": data["prompts"][:1]}))
    assert command("sync", tmp_path).exit_code == 0
    path = tmp_path / "result.json"
    result = json.loads(path.read_text())
    del result["selection"]
    path.write_text(json.dumps(result))
    assert str(command("sync", tmp_path).exception) == f"{path} is not whole: KeyError('selection')"
    path = tmp_path / "tracking.json"
    path.write_text('{"run')
    assert str(command("sync", tmp_path).exception).startswith(f"{path} is damaged: ")


def test_a_trials_picture_is_of_this_run_wherever_it_was_and_no_other_file(tmp_path):
    cache, other = tmp_path / "run" / "cache", tmp_path / "other.png"
    cache.mkdir(parents=True)
    for path in (cache / "x.png", other):
        path.write_bytes(b"picture")
    (cache / "link.png").symlink_to(other)
    run = tmp_path / "run"
    for noted in (cache / "x.png", "/where/it/was/cache/x.png"):
        assert _sheet(run, str(noted)) == (cache / "x.png").resolve()
    for noted in (None, 3, "", str(other), "../../other.png", "/a/link.png", "/a/gone.png", ".."):
        assert _sheet(run, noted) is None
