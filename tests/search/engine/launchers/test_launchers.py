"""Ray and SLURM place real workers: Ray's on a cluster on this machine, SLURM's as submitit does
where there is no SLURM."""

import importlib.util
import os
import signal
import threading
import time
from datetime import datetime

import pytest
import running
from optuna.trial import TrialState
from sharing import TESTS, SharedToy, ToyPlace, schedule, small
from typer.testing import CliRunner

from stepsampler import UserError
from stepsearch.cli.app import app
from stepsearch.engine import workers
from stepsearch.engine.jobs import board as jobs
from stepsearch.engine.jobs import kinds
from stepsearch.engine.jobs.board import join_board
from stepsearch.engine.join import leading
from stepsearch.engine.launchers import placing
from stepsearch.engine.launchers.placing import Launch, Place, check_launch, launched
from stepsearch.engine.run import run_study
from stepsearch.engine.store import locks
from stepsearch.engine.store.database import open_database
from stepsearch.engine.store.presence import WORKER
from stepsearch.engine.study import finished, read_study
from stepsearch.engine.tracking import NoTracking

OPTIONS = {"ray": {"num_cpus": "1"}, "slurm": {"cluster": "local"}}
MODULES = {"ray": "ray", "slurm": "submitit"}
BOTH = pytest.mark.parametrize("launcher", ["ray", "slurm"])


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.1)
    monkeypatch.setattr(locks, "SILENCE", 2.0)
    monkeypatch.setattr(jobs, "POLL", 0.1)
    monkeypatch.setattr(workers, "LOOK", 0.1)
    monkeypatch.setenv("PYTHONPATH", TESTS["PYTHONPATH"])
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # of 15, they starve on a busy machine
    monkeypatch.setattr(placing, "Place", ToyPlace)


def needs(launcher, monkeypatch):
    pytest.importorskip(MODULES[launcher], reason=f"pip install {MODULES[launcher]}")
    if launcher == "slurm":
        monkeypatch.setattr("stepsearch.engine.launchers.on_slurm.AGAIN", 0.2)


class Led(SharedToy):
    """Does nothing itself; the search is waited for as `Workers` waits for it."""

    def __init__(self, placed, *given):
        super().__init__(*given, serving=0)
        self._placed = placed

    def search(self):
        return [workers.Workers._searched_elsewhere(self, self._placed)]


@BOTH
def test_placed_workers_do_it_all_and_one_that_dies_is_replaced(
    tmp_path, server, name, launcher, monkeypatch
):
    needs(launcher, monkeypatch)
    config, folder = small(), tmp_path / name
    seen, killed = set(), []

    def kill():
        """Every worker that has a job, until one is dead; then nobody."""
        board = None
        while not seen:
            time.sleep(0.1)
            try:
                board = board or join_board(folder, open_database(server.address))
            except KeyError:
                continue
            for trial in board.study.get_trials(states=(TrialState.RUNNING,)):
                host, pid, *_ = trial.user_attrs.get(WORKER, [None, None])
                if pid:
                    seen.add((host, pid))
                    os.kill(int(pid), signal.SIGKILL)
                    killed.append(datetime.now())
                    break

    killer = threading.Thread(target=kill)
    killer.start()
    launch = Launch(launcher, 2, "cpu", OPTIONS[launcher])
    with (
        launched(launch, folder, config, server.address) as placed,
        leading(folder, config, server.address),
    ):
        result = run_study(
            config,
            folder,
            Led(placed, config, folder, server.address),
            NoTracking(),
            lambda *_: placed.check(),
            storage=server.address,
        )
    killer.join()
    alone, _, _ = running.run(tmp_path / "journal", config)
    assert [(c.name, value) for c, _, value in result.screened] == [
        (c.name, value) for c, _, value in alone.screened
    ]
    study = read_study(folder, config, server.address)
    assert len(finished(study)) == 6
    board = join_board(folder, open_database(server.address))
    assert not study.get_trials(states=(TrialState.RUNNING,))
    assert not board.study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    done = board.study.get_trials(states=(TrialState.COMPLETE,)) + finished(study)
    later = [trial for trial in done if trial.datetime_complete > killed[0]]  # before, it may have
    assert not seen & {tuple(trial.user_attrs[WORKER][:2]) for trial in later}
    for path in (tmp_path / name).rglob("*"):  # scripts and logs of the launcher among them
        assert not path.is_file() or server.password.encode() not in path.read_bytes(), path


@BOTH
def test_workers_that_cannot_work_end_the_run_with_their_reason(
    tmp_path, server, name, launcher, monkeypatch
):
    needs(launcher, monkeypatch)
    monkeypatch.setattr(placing, "RESTARTS", 0)
    monkeypatch.setattr("stepsearch.engine.launchers.on_slurm.RESTARTS", 0, raising=False)
    monkeypatch.setattr(placing, "Place", Place)  # the model is not there
    model = {"id": "/nowhere/at/all"}
    config = small().model_copy(update={"model": type(small().model)(**model)})
    launch = Launch(launcher, 1, "cpu", OPTIONS[launcher])

    def wait(placed):
        jobs.open_board(tmp_path / name, config, server.address, "toy")
        for _ in range(1200):
            placed.check()
            time.sleep(0.1)

    with (
        launched(launch, tmp_path / name, config, server.address) as placed,
        leading(tmp_path / name, config, server.address),
        pytest.raises(UserError) as caught,
    ):
        wait(placed)
    assert "all 1 workers on" in str(caught.value)
    assert "/nowhere/at/all" in str(caught.value)
    assert server.password not in str(caught.value)


@BOTH
def test_a_launcher_that_is_not_installed_or_refuses_is_one_sentence(tmp_path, launcher):
    there = importlib.util.find_spec(MODULES[launcher])
    options = {"cluster": "local"} if launcher == "slurm" else {}
    launch = Launch(launcher, 1, "cpu", {**options, "no_such_option": "1"})
    message = f"--launcher {launcher}: .*no_such_option" if there else "needs .*: pip install"
    with (
        pytest.raises(UserError, match=message),
        launched(launch, tmp_path / "x", small(), "postgresql://host/x"),
    ):
        pass


def test_ray_works_on_a_cluster_that_is_there_and_leaves_it(tmp_path, server, name, monkeypatch):
    ray = pytest.importorskip("ray", reason="pip install ray")
    from ray.cluster_utils import Cluster

    own = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        options = {"address": own.address, "num_cpus": "1"}
        launch = Launch("ray", 1, "cpu", options)
        with leading(tmp_path / name, small(), server.address):
            jobs.open_board(tmp_path / name, small(), server.address, "toy").offer(
                kinds.Measuring.of(schedule(), range(20))
            )
            with launched(launch, tmp_path / name, small(), server.address):
                board = join_board(tmp_path / name, open_database(server.address))
                until = time.monotonic() + 100
                while not board.study.get_trials(states=(TrialState.COMPLETE,)):
                    assert time.monotonic() < until
                    time.sleep(0.1)
                monkeypatch.setattr(placing, "LEAVE", 0)  # it would wait for the run to end
        ray.init(address=own.address, log_to_driver=False)
        assert ray.cluster_resources()["CPU"] == 1
    finally:
        ray.shutdown()
        own.shutdown()


def test_runs_that_are_called_alike_share_no_folder_on_a_node_of_ray():
    pytest.importorskip("ray", reason="pip install ray")
    from stepsearch.engine.launchers.on_ray import folder_of

    one, two = (Place("x", small(n).model_dump_json(), "cpu") for n in (4, 6))
    folders = {folder_of(place, base) for place in (one, two) for base in ("grpc://a", "grpc://b")}
    assert len(folders) == 4
    assert folder_of(one, "grpc://a") == folder_of(one, "grpc://a")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_a_ray_cluster_that_is_not_there_is_said_at_once(tmp_path, address):
    pytest.importorskip("ray", reason="pip install ray")
    launch = Launch("ray", 1, "cpu", {"address": address})
    with (
        pytest.raises(UserError, match=f"nobody answers at address={address}"),
        launched(launch, tmp_path / "x", small(), "postgresql://host/x"),
    ):
        pass


def test_no_slurm_is_said(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    launch = Launch("slurm", 1, "cpu", {})
    with (
        pytest.raises(UserError, match="--launcher slurm: .*slurm"),
        launched(launch, tmp_path / "x", small(), "postgresql://host/x"),
    ):
        pass


def test_options_of_a_launcher():
    assert check_launch(["address=ray://host:1?x=y", "num_gpus=0.5"]) == {
        "address": "ray://host:1?x=y",
        "num_gpus": "0.5",
    }
    assert [placing.number(v) for v in ("3", "0.5", "gpu")] == [3, 0.5, "gpu"]
    for wrong in ("address", "=x", "x="):
        with pytest.raises(UserError, match="--launch must be KEY=VALUE"):
            check_launch([wrong])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--launch", "x=1"], "--launch goes with --launcher"),
        (["--launcher", "ray", "--workers", "2"], "--launcher goes with --storage"),
        (["--launcher", "ray", "--storage", "grpc://h:1"], "places --workers N"),
        (
            ["--launcher", "ray", "--storage", "grpc://h:1", "--workers", "1", "--gpus", "0"],
            "places --workers N",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, options, message):
    study = tmp_path / "x.toml"
    study.write_text("[space]\nnum_steps = 3\npasses = 6\n")
    result = CliRunner().invoke(app, ["run", str(study), *options])
    assert message in str(result.exception)
