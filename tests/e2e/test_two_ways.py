"""One study by two local processes on the journal, and by Ray's workers and one that joined by hand
behind Optuna's gRPC proxy of PostgreSQL, of which some are killed: the same result."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import optuna
import pytest
from optuna.trial import TrialState
from postgres import Postgres
from small_study import small_study

from stepsampler import load
from stepsearch.engine.store.presence import WORKER

pytest.importorskip("ray", reason="pip install ray")
HANG = 1800  # seconds, against hanging alone: a machine may have much else to do
pytestmark = pytest.mark.timeout(2 * HANG)
TRIALS = 4  # as many as the search begins with, so that both ways measure the same points
STUDY = small_study(
    evaluation={"test_images": 16},
    teacher={"steps": 10},
    search={"trials": TRIALS, "finalists": 2},
)
# Who is silent is dead after a third of the minute of a real run; workers beat every five seconds.
# The page takes longer to draw than all the rest.
COMMAND = """
from stepsearch.cli import main
from stepsearch.engine.store import locks
from stepsearch.report import session
locks.SILENCE = 20.0
session.write_page = lambda *_: None
main()
"""
PROXY = """
import sys
from optuna.storages import get_storage, run_grpc_proxy_server
run_grpc_proxy_server(get_storage(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
"""


@pytest.fixture
def study(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text(STUDY)
    return file


@pytest.fixture
def proxy(tmp_path):
    """(the database itself, the proxy before it)"""
    server = Postgres()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = server.address.replace("postgresql:", "postgresql+psycopg:")
    process = subprocess.Popen([sys.executable, "-c", PROXY, address, str(port)])
    yield address, f"grpc://127.0.0.1:{port}"
    process.kill()
    process.wait()
    server.remove()


def start(log, *words):
    # of a niceness of 15, which is Ray's, workers starve on a busy machine
    calm = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_worker_niceness": "0"}
    environment = {**os.environ, **calm}
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *map(str, words)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def wait(process, log):
    assert process.wait(timeout=HANG) == 0, log.read_text()


def workers_of(trials, known):
    """Numbers of the processes that have one of these trials now, and are none of the known."""
    running = [t for t in trials if t.state == TrialState.RUNNING]
    found = {int(t.user_attrs[WORKER][1]) for t in running if WORKER in t.user_attrs}
    return found - known


def test_two_local_workers_and_a_cluster_in_which_some_die_end_the_same(tmp_path, study, proxy):
    base, address = proxy
    run = ("run", study, "--tracking", "none")
    local, far = tmp_path / "journal" / "x", tmp_path / "led" / "x"
    log = tmp_path / "journal.log"
    wait(start(log, *run, "--workers", "2", "--run", local), log)

    ray = ("--launcher", "ray", "--workers", "2", "--device", "cpu", "--launch", "num_cpus=1")
    log = tmp_path / "led.log"
    leader = start(log, *run, "--run", far, "--storage", address, *ray)
    hands = []

    def by_hand():
        hand = f"by-hand-{len(hands)}"
        words = ("worker", study, "--run", tmp_path / hand / "x", "--storage", address)
        hands.append(start(tmp_path / f"{hand}.log", *words))

    killed: set[int] = set()
    of_ray = of_hand = False
    until = time.monotonic() + HANG
    storage = optuna.storages.RDBStorage(base)
    while leader.poll() is None and not (of_ray and of_hand):
        assert time.monotonic() < until
        names = optuna.get_all_study_names(storage)
        if "x/jobs" in names and (not hands or hands[-1].poll() is not None):
            by_hand()
        for name in ("x/jobs", "x"):
            if name not in names:
                continue
            trials = optuna.load_study(study_name=name, storage=storage).get_trials()
            for number in workers_of(trials, killed):
                mine = number in {hand.pid for hand in hands}
                if (of_hand if mine else of_ray) or number == leader.pid:
                    continue
                os.kill(number, signal.SIGKILL)
                killed.add(number)
                of_hand, of_ray = of_hand or mine, of_ray or not mine
        time.sleep(0.05)
    if leader.poll() is None:
        by_hand()
        wait(hands[-1], tmp_path / f"by-hand-{len(hands) - 1}.log")
    wait(leader, log)
    assert of_ray
    assert of_hand

    same(local, far)
    known = optuna.load_study(study_name="x", storage=storage)
    assert not known.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    assert len(known.get_trials(states=(TrialState.COMPLETE,))) == TRIALS

    again = tmp_path / "again" / "x"  # alone, on the trials of the cluster
    again.mkdir(parents=True)
    (again / "journal.log").write_bytes((far / "journal.log").read_bytes())
    log = tmp_path / "again.log"
    wait(start(log, *run, "--workers", "1", "--run", again), log)
    same(again, far)


def same(one, other):
    """The same counts, the same table, the same verdict."""
    ours, theirs = (json.loads((folder / "result.json").read_text()) for folder in (one, other))
    assert (ours["trials"], ours["failed"]) == (theirs["trials"], theirs["failed"]) == (TRIALS, 0)
    for part in ("test", "selection"):
        assert len(ours[part]) == len(theirs[part]) > 1
        for row, also in zip(ours[part], theirs[part], strict=True):
            assert row["n"] == also["n"]
            assert row["fd"] == pytest.approx(also["fd"], rel=1e-4)
            assert row["kind"] == also["kind"]
    best, alike = (load(folder / "best.json") for folder in (one, other))
    assert best.steps == alike.steps
