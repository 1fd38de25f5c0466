import base64
import http.server
import json
import logging
import shutil
import socket
import threading
import time
from pathlib import Path

import optuna
import pytest
import torch

from stepsampler.schedule import Schedule, Step
from stepsearch.config import StudyConfig
from stepsearch.engine.store.addresses import without_passwords
from stepsearch.engine.tracking import MlflowTracking
from stepsearch.report.pictures import read_index, save_each

ROW = {"name": "karras", "kind": "baseline", "steps": 1, "passes": 1, "alignment": 0.9, "se": 0.1}
ROW |= {"schedule": json.loads(Schedule((Step(1.0),), 0.0, "ddim").to_json())}
RESULT = {
    "metric": "fd_toy",
    "verdict": "It is better.",
    "search_passes": 7,
    "selection": [ROW | {"fd": 5.0}],
    "test": [
        ROW | {"fd": 4.0, "alignment_se": 0.02, "unseen": {"fd_a+b_1k": {"value": 3, "se": 1}}}
    ],
    "teacher": ROW | {"name": "teacher", "kind": "teacher", "fd": 2.0},
}
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
    tracker.finish(RESULT, None)
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
    first.finish(RESULT, None)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("stepsearch").experiment_id
    (torn,) = client.search_runs([experiment], "tags.`stepsearch.trial` = '1'")
    client.set_terminated(torn.info.run_id, "RUNNING")

    second = MlflowTracking(None, warnings.append)
    second.start(CONFIG, tmp_path)
    second.sync(study)
    (tmp_path / "best.json").write_text("{}")
    second.finish(RESULT | {"verdict": "It is as good."}, None)
    assert warnings == []
    runs = client.search_runs([experiment])
    children = [r for r in runs if "stepsearch.trial" in r.data.tags]
    assert sorted(r.data.tags["stepsearch.trial"] for r in children) == ["0", "1"]
    assert sorted(r.data.metrics["fd"] for r in children) == [2.0, 3.0]
    tested = {r.data.tags.get("stepsearch.contender"): r for r in runs}
    karras, teacher = tested["karras"], tested["teacher"]
    assert karras.data.metrics == {
        "steps": 1,
        "passes": 1,
        "fd_selection": 5.0,
        "fd_selection_se": 0.1,
        "alignment_selection": 0.9,
        "fd_test": 4.0,
        "fd_test_se": 0.1,
        "alignment_test": 0.9,
        "alignment_test_se": 0.02,
        "fd_a_b_1k": 3.0,
        "fd_a_b_1k_se": 1.0,
    }
    assert len(client.get_metric_history(karras.info.run_id, "fd_test")) == 1
    assert teacher.data.metrics["fd_teacher"] == 2.0
    assert client.list_artifacts(karras.info.run_id)[0].path == "schedule.json"
    (parent,) = [r for r in runs if "stepsearch.run" in r.data.tags]
    assert len(runs) == 5
    assert parent.data.metrics == {
        "test_fd": 4.0,
        "test_fd_se": 0.1,
        "test_alignment": 0.9,
        "search_passes": 7.0,
    }
    assert parent.data.params["space.num_steps"] == "3"
    tags = parent.data.tags
    assert tags["stepsearch.verdict"] == tags["mlflow.note.content"] == "It is as good."
    assert (tags["stepsearch.model"], tags["stepsearch.passes"]) == ("tiny", "6")
    assert parent.info.status == "FINISHED"


def test_a_trial_has_its_errors_its_origin_and_its_own_time(tmp_path):
    from mlflow import MlflowClient

    study = optuna.create_study()
    trial = study.ask()
    left_out = [2.9, 3.0, 3.1]
    known = {"schedule": "{}", "alignment": 0.9, "alignment_se": 0.03, "images": 8, "passes": 6}
    known |= {"left_out": left_out, "origin": "karras", "seconds": float("nan")}
    for key, value in known.items():
        trial.set_user_attr(key, value)
    study.tell(trial, 3.0)
    tracker = MlflowTracking(None, print)
    tracker.start(CONFIG, tmp_path)
    tracker.sync(study)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("stepsearch").experiment_id
    (run,) = client.search_runs([experiment], "tags.`stepsearch.trial` = '0'")
    # a block jackknife: the root of (b - 1) / b times the sum of squares around the mean
    assert run.data.metrics.pop("fd_se") == pytest.approx((2 / 3 * 0.02) ** 0.5)
    assert run.data.metrics == {
        "fd": 3.0,
        "alignment": 0.9,
        "alignment_se": 0.03,
        "images": 8.0,
        "passes": 6.0,
    }
    assert run.data.tags["stepsearch.origin"] == "karras"
    (frozen,) = study.trials
    assert run.info.start_time == int(frozen.datetime_start.timestamp() * 1000)
    assert run.info.end_time == int(frozen.datetime_complete.timestamp() * 1000)


def test_pictures_are_in_the_image_grid_by_prompt_and_schedule_once(tmp_path):
    """MLflow's grid takes what `log_image` wrote under a key: a row for each key, a column for
    each run; it looks at runs with the tag `mlflow.loggedImages`."""
    from mlflow import MlflowClient

    prompts, seeds = ("a shoe", "schön, a/b: " + "x" * 99), (20_000_000, 20_000_001)
    images = [torch.full((3, 8, 8), k, dtype=torch.uint8) for k in range(2)]
    rows = [("karras", "baseline", images), ("of another run", "found", images)]
    save_each(rows, tmp_path, seeds, prompts)
    for _ in range(2):
        tracker = MlflowTracking(None, pytest.fail)
        tracker.start(CONFIG, tmp_path)
        tracker.finish(RESULT, read_index(tmp_path))
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("stepsearch").experiment_id
    (run,) = client.search_runs([experiment], "tags.`mlflow.loggedImages` = 'True'")
    assert run.data.tags["stepsearch.contender"] == "karras"
    files = sorted(Path(f.path).name for f in client.list_artifacts(run.info.run_id, "images"))
    keys = [file.partition("+step+0+")[0] for file in files]
    assert keys[:2] == ["00 a shoe seed 20000000"] * 2  # and the small one for the grid
    assert keys[2] == keys[3]
    assert keys[2].startswith("01 sch n a b xxx")
    assert keys[2].endswith("x seed 20000001")


def mirrored(uri, folder, study=None):
    """A run with a picture; returns what was warned of."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "grid.png").write_bytes(b"x")
    warnings = []
    tracker = MlflowTracking(uri, warnings.append)
    tracker.start(CONFIG, folder)
    if study:
        tracker.sync(study)
    tracker.finish(RESULT, None)
    return warnings


def pictures(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("mlartifacts/**/grid.png"))


def old_store(uri, run):
    """As an earlier version made it: everybody's artifacts in the folder of the first run."""
    from mlflow import MlflowClient

    location = (run / "mlartifacts").as_uri()
    MlflowClient(uri).create_experiment("stepsearch", artifact_location=location)


@pytest.mark.parametrize("old", [False, True])
def test_runs_that_share_a_store_keep_their_files_apart_and_in_no_run_of_another(tmp_path, old):
    uri = f"sqlite:///{tmp_path / 'team.db'}"
    if old:
        old_store(uri, tmp_path / "first")
    for name in ("first", "second"):
        assert mirrored(uri, tmp_path / name) == []
    assert not pictures(tmp_path / "first")
    assert not pictures(tmp_path / "second")
    assert len({Path(p).parts[1] for p in pictures(tmp_path)}) == 2  # by the run


def test_an_experiment_whose_files_its_owner_has_placed_is_used_as_it_is(tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'team.db'}"
    place = (tmp_path / "bucket").as_uri()
    MlflowClient(uri).create_experiment("stepsearch", artifact_location=place)
    assert mirrored(uri, tmp_path / "run") == []
    assert len(list((tmp_path / "bucket").rglob("grid.png"))) == 1


def test_a_copy_of_a_run_writes_into_itself(tmp_path, study):
    mirrored(None, tmp_path / "one", study)
    before = sorted(tmp_path.glob("one/mlartifacts/**/*"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert mirrored(None, tmp_path / "two", study) == []
    assert sorted(tmp_path.glob("one/mlartifacts/**/*")) == before
    assert len(pictures(tmp_path / "two")) == 2  # the copied one, and its own


def test_two_runs_of_the_same_path_on_different_machines_are_two(tmp_path, study):
    """As in containers that all work in /workspace."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'team.db'}"
    for _ in range(2):
        assert mirrored(uri, tmp_path / "run", study) == []
        shutil.rmtree(tmp_path / "run")
    client = MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "stepsearch"]
    runs = client.search_runs([experiment.experiment_id])
    assert len([r for r in runs if "stepsearch.run" in r.data.tags]) == 2
    assert len([r for r in runs if "stepsearch.trial" in r.data.tags]) == 4


@pytest.mark.parametrize("name", ["a'b", "a?b", "a%20b", 'a b"#`;ü日本'])
def test_the_runs_folder_may_have_any_name(tmp_path, name):
    for _ in range(2):
        assert mirrored(None, tmp_path / name) == []
    assert len(pictures(tmp_path)) == 1  # found again
    assert [p.name for p in tmp_path.iterdir()] == [name]  # no other folder, no other database
    assert (tmp_path / name / "mlflow.db").exists()


@pytest.mark.parametrize("word", ["geheim", "ge%40heim", "ge@heim", "ge/heim"])
def test_no_message_holds_a_password(tmp_path, word, caplog, capfd, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with caplog.at_level(logging.DEBUG):
        (news,) = mirrored(f"http://user:{word}@127.0.0.1:{port}", tmp_path)
    said = news + caplog.text + "".join(capfd.readouterr())
    assert news.startswith("MLflow tracking stops here, the search goes on: ")
    assert "heim" not in said
    assert "ge%40" not in said


@pytest.mark.parametrize(
    "uri",
    [
        "foo://user:geheim@host/db",
        "postgresql://user:geheim@127.0.0.1:9/db",
        "mysql+pymysql://user:geheim@127.0.0.1:9/db?password=geheim",
    ],
)
def test_no_message_about_a_database_holds_its_password(tmp_path, uri, capfd):
    (news,) = mirrored(uri, tmp_path)
    assert "geheim" not in news + "".join(capfd.readouterr())


def test_passwords_in_a_text_that_is_not_ours():
    text = "no http://me:pw@host/x?a=1&password=pw nor postgresql://me:p@w@host, 'pwd=pw'"
    assert "pw" not in without_passwords(text).replace("pwd", "")
    assert without_passwords("http://host/x, me@host") == "http://host/x, me@host"


def test_a_password_still_reaches_the_server(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers["Authorization"])
            self.send_error(401)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (news,) = mirrored(f"http://me:ge%40heim@127.0.0.1:{server.server_port}", tmp_path)
    server.shutdown()
    assert seen[0] == "Basic " + base64.b64encode(b"me:ge@heim").decode()
    assert "401" in news


def test_a_database_that_is_away_is_given_up_in_seconds_and_one_sentence(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    began = time.monotonic()
    (news,) = mirrored(f"sqlite:///{tmp_path}/file/x.db", tmp_path / "run")
    assert time.monotonic() - began < 30
    assert "retried" not in "".join(capfd.readouterr())
    assert news.startswith("MLflow tracking stops here")
