"""Trials in a real PostgreSQL, and behind Optuna's gRPC proxy: shared, counted once, outliving
servers, workers and parents."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import optuna
import pytest
import running
from optuna.study import StudyDirection
from optuna.trial import TrialState
from running import settings
from sharing import lead, small, worker
from typer.testing import CliRunner

from stepsampler import UserError
from stepsearch.cli.app import app
from stepsearch.engine.claim import remember_storage, trials_in
from stepsearch.engine.join import LEADER, join
from stepsearch.engine.store import database, locks
from stepsearch.engine.store.database import open_database
from stepsearch.engine.study import finished, open_study, read_study, reap, surplus

PATIENCE = 240.0  # seconds, against hanging alone


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.1)
    monkeypatch.setattr(locks, "SILENCE", 1.0)


def test_a_run_in_a_database_ends_as_one_in_a_folder_does(tmp_path, server, name):
    config = small()
    here, _ = lead(tmp_path / name, config, server.address)
    there, _, _ = running.run(tmp_path / "journal", config)
    ours = [t.params for t in read_study(tmp_path / name, config, server.address).trials]
    assert ours == [t.params for t in read_study(tmp_path / "journal", config).trials]
    assert here.winner.name == there.winner.name
    # the copy in its folder, which export, report and other studies read
    assert [t.params for t in read_study(tmp_path / name, config).trials] == ours


def test_the_budget_is_counted_once_over_workers_that_die(tmp_path, server, name):
    """A leader, a worker that goes through to the end, one that is killed in its second trial."""
    config, folder = small(40), tmp_path / "leader" / name
    killed = worker(tmp_path / "a" / name, server.address, 40, pause=0.3)
    steady = worker(tmp_path / "b" / name, server.address, 40, pause=0.05)

    def kill():
        study = None
        while study is None or not any("worker" in t.user_attrs for t in study.trials[8:]):
            time.sleep(0.05)
            study = read_study(folder, config, server.address)
        killed.send_signal(signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    lead(folder, config, server.address, broken=lambda _: time.sleep(0.05))
    thread.join()
    assert "done" in steady.communicate(timeout=60)[0]
    study = read_study(folder, config, server.address)
    assert len(finished(study)) == 40
    assert not study.get_trials(states=(TrialState.RUNNING,))
    assert len({tuple(t.user_attrs["worker"]) for t in finished(study)}) > 1


def test_who_asks_too_much_gives_back():
    """Eight workers at once, without a lock: never more than the budget, and all of it."""
    study, budget = optuna.create_study(), 20
    done = []

    def work():
        while sum(t.state != TrialState.FAIL for t in study.get_trials(deepcopy=False)) < budget:
            trial = study.ask()
            time.sleep(0.001)
            if surplus(study, trial.number, budget):
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, 1.0)
                done.append(trial.number)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == budget


def test_queued_points_are_part_of_the_budget():
    study = optuna.create_study()
    for _ in range(3):
        study.enqueue_trial({"x": 0.5})
    study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
    study.ask()  # takes the first of the queue
    new = study._storage.create_new_trial(study._study_id)  # who looked before they were queued
    number = study._storage.get_trial(new).number
    assert surplus(study, number, 3)
    assert not surplus(study, number, 4)


def test_trials_are_listed_once_until_something_is_written(monkeypatch):
    """A list has every trial that is under way: of many workers it is the dearest answer."""
    inner, asked = optuna.storages.InMemoryStorage(), []
    listed = inner.get_all_trials
    inner.get_all_trials = lambda *inputs, **named: asked.append(1) or listed(*inputs, **named)
    shared = database.Shared(inner, "nowhere")
    study = optuna.create_study(storage=shared)
    monkeypatch.setattr(database, "FRESH", 60.0)

    def states(**named):
        return [trial.state for trial in study.get_trials(**named)]

    first = study.ask()
    del asked[:]
    assert states() == states(deepcopy=False) == [TrialState.RUNNING]
    assert states(states=(TrialState.COMPLETE,)) == []
    assert len(asked) == 1
    assert study.get_trials()[0] is not study.get_trials(deepcopy=False)[0], "one's own copy"
    first.set_user_attr("seen", 1)
    assert study.trials[0].user_attrs == {"seen": 1}
    study.tell(first, 1.0)
    assert states() == [TrialState.COMPLETE]
    others = optuna.load_study(study_name=study.study_name, storage=inner)
    others.ask()
    assert len(states()) == 1
    monkeypatch.setattr(database, "FRESH", 0.0)
    assert len(states()) == 2, "what others wrote is seen a moment later"


def test_a_list_from_before_a_write_of_another_thread_is_not_kept():
    inner = optuna.storages.InMemoryStorage()
    shared, listed = database.Shared(inner, "nowhere"), inner.get_all_trials
    study = optuna.create_study(storage=shared)

    def slow(*inputs, **named):
        found = listed(*inputs, **named)
        inner.get_all_trials = listed
        writer = threading.Thread(
            target=study.add_trial, args=(optuna.trial.create_trial(value=1.0),)
        )
        writer.start()
        writer.join()
        return found

    inner.get_all_trials = slow
    assert not study.trials
    assert len(study.trials) == 1


def test_a_server_that_restarts_is_waited_for(tmp_path, server, name, capsys):
    study = open_study(tmp_path / name, small(), storage=server.address)
    trial = study.ask()
    server.stop()
    timer = threading.Timer(1.5, server.start)
    timer.start()
    study.tell(trial, 1.0)
    timer.join()
    assert study.trials[0].state == TrialState.COMPLETE
    news = capsys.readouterr().err
    assert "tried again for 10 minutes" in news
    assert server.password not in news


def test_a_connection_that_breaks_off_while_trials_are_read_is_made_again(tmp_path, server, name):
    """Between two of the queries of one call, where Optuna goes on in the broken transaction."""
    from sqlalchemy import event

    study = open_study(tmp_path / name, small(), storage=server.address)
    study.ask()
    engine, broken = study._storage.inner._backend.engine, []

    def break_off(connection, cursor, statement, *_):
        if "FROM trial_user_attributes" in statement and not broken:
            broken.append(connection.connection.driver_connection.info.backend_pid)
            psql = psycopg.connect(server.address, autocommit=True)
            psql.execute("SELECT pg_terminate_backend(%s, 10000)", broken)
            psql.close()

    psycopg = pytest.importorskip("psycopg")
    event.listen(engine, "before_cursor_execute", break_off)
    (trial,) = read_study(tmp_path / name, small(), server.address).trials
    assert [t.number for t in study.trials] == [trial.number]
    assert broken


def test_a_server_that_stays_away_is_said(tmp_path, server, name, monkeypatch):
    study = open_study(tmp_path / name, small(), storage=server.address)
    monkeypatch.setattr(database, "PATIENCE", 0.5)
    server.stop()
    try:
        with pytest.raises(UserError, match="it stayed away for 0 minutes. The same command"):
            study.ask()
    finally:
        server.start()


def test_a_worker_whose_beats_stop_is_written_off_and_a_living_one_is_not(tmp_path, server, name):
    config, folder = small(), tmp_path / name
    study = open_study(folder, config, storage=server.address)
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("worker", ["far", "1", "elsewhere", "word"])
    until = time.monotonic() + 1.6
    beats = 0
    while time.monotonic() < until:
        beats += 1
        trial.set_user_attr("beats", beats)
        assert reap(study, folder, asking=True) == 0
        time.sleep(0.1)
    until = time.monotonic() + 10
    while not reap(study, folder, asking=True):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.WAITING]


def test_a_worker_waits_for_a_leader_and_says_where_there_is_none(
    tmp_path, server, name, monkeypatch
):
    news = []
    with pytest.raises(UserError, match="nobody has run .* there for 1 seconds"):
        join(tmp_path / name, small(), server.address, news.append)
    assert len(news) == 1

    study = open_study(tmp_path / name, small(), storage=server.address)
    ended = threading.Event()
    monkeypatch.setattr(locks, "SILENCE", 4.0)  # of a busy machine beats may come late

    def beat():
        count = 0
        while not ended.wait(0.1):
            count += 1
            study.set_user_attr(LEADER, count)

    thread = threading.Thread(target=beat)
    thread.start()
    waiting = threading.Thread(
        target=lambda: _join_quietly(tmp_path / name, server.address), daemon=True
    )
    waiting.start()
    time.sleep(6)
    assert waiting.is_alive()  # longer than the silence after which a leader would be dead
    ended.set()
    thread.join()
    waiting.join(20)
    assert not waiting.is_alive()


def _join_quietly(folder, address):
    with pytest.raises(UserError, match="nobody has run"):
        join(folder, small(), address, lambda _: None)


def test_a_worker_of_another_study_is_refused(tmp_path, server, name):
    lead(tmp_path / name, small(), server.address)
    other = small()
    other = other.model_copy(update={"search": settings(algorithm="tpe").search})
    with pytest.raises(UserError, match=r"search.algorithm = 'random', here it is 'tpe'"):
        join(tmp_path / "elsewhere" / name, other, server.address, print)
    with pytest.raises(UserError, match=f"the runs there are .*{name}"):
        join(tmp_path / "another", other, server.address, print)


def test_through_optunas_grpc_proxy(tmp_path, server, name, monkeypatch):
    """The proxy in a process of its own, as it runs in a cluster."""
    monkeypatch.setattr(database, "CONNECT", PATIENCE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import sys; from optuna.storages import RDBStorage, run_grpc_proxy_server as run; "
        "run(RDBStorage(sys.argv[1]), host='127.0.0.1', port=int(sys.argv[2]))"
    )
    address = server.address.replace("postgresql:", "postgresql+psycopg:")
    proxy = subprocess.Popen([sys.executable, "-c", code, address, str(port)])
    try:
        begun = time.monotonic()  # it imports and makes its tables before it answers
        while proxy.poll() is None and time.monotonic() - begun < PATIENCE:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        storage = f"grpc://127.0.0.1:{port}"
        helper = worker(tmp_path / "far" / name, storage, 12, pause=0.05)
        lead(tmp_path / name, small(12), storage)
        assert "done" in helper.communicate(timeout=PATIENCE)[0]
        study = read_study(tmp_path / name, small(12), server.address)
        assert len(finished(study)) == 12
    finally:
        proxy.kill()
        proxy.wait()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("sqlite:///x.db", "must be postgresql://"),
        ("redis://host", "must be postgresql://"),
        ("grpc://host", "must be grpc://host:port"),
        ("grpc://host:99999", "must be grpc://host:port"),
        ("postgresql://me:s3cret-w0rd@127.0.0.1:1/x", "is the server there"),
        ("postgresql://me:s3cret-w0rd@127.0.0.1:port/x", "storage"),
        ("postgresql+nodriver://me:s3cret-w0rd@127.0.0.1/x", "storage"),
    ],
)
def test_an_address_that_does_not_serve_is_one_sentence_without_its_password(address, message):
    with pytest.raises(UserError, match=message) as caught:
        open_database(address)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_and_no_record_has_the_password(tmp_path, server, name):
    folder = tmp_path / name
    remember_storage(folder, server.address) if folder.exists() else folder.mkdir()
    remember_storage(folder, server.address)
    lead(folder, small(), server.address)
    for path in folder.rglob("*"):
        assert not path.is_file() or server.password not in path.read_text(errors="replace"), path
    study = read_study(folder, small(), server.address)
    told = json.dumps([study.user_attrs, [t.user_attrs for t in study.trials]], default=str)
    assert server.password not in told


def test_a_run_is_not_begun_anew_elsewhere(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    remember_storage(folder, "postgresql://me:secret@host/db")
    remember_storage(folder, "postgresql://me:changed@host/db")
    with pytest.raises(UserError, match="its trials are in postgresql://…@host/db"):
        remember_storage(folder, None)
    (tmp_path / "journal.log").touch()
    with pytest.raises(UserError, match="its trials are in its journal.log"):
        remember_storage(tmp_path, "postgresql://host/db")
    remember_storage(tmp_path, None)


def test_only_a_run_whose_search_has_begun_stays_with_a_storage(tmp_path):
    def refused(address):
        with pytest.raises(UserError, match="refused"), trials_in(address, tmp_path):
            raise UserError("refused")
        return (tmp_path / "storage.json").exists()

    assert not refused("postgresql://mistyped/db")
    (tmp_path / "plan.json").write_text("{}")  # with which a search begins
    assert refused("postgresql://host/db")
    (tmp_path / "plan.json").unlink()
    assert refused("postgresql://host/db")  # it was known before
    with pytest.raises(UserError, match="its trials are in postgresql://host/db"):
        remember_storage(tmp_path, "postgresql://mistyped/db")


def test_many_can_open_a_new_database_at_once(server):
    """Optuna's own storage fails in most of them, since each creates the tables."""
    import psycopg

    for attempt in range(3):
        with psycopg.connect(server.address, autocommit=True) as connection:
            connection.execute(f"create database new{attempt}")
        address = server.address.removesuffix("postgres") + f"new{attempt}"
        with ThreadPoolExecutor(8) as pool:
            opened = list(pool.map(open_database, [address] * 8))
        assert len(opened) == 8
        opened[0].create_new_study([StudyDirection.MINIMIZE], "x")
        assert [s.study_name for s in opened[-1].get_all_studies()] == ["x"]


def test_status_reads_the_database(tmp_path, server, name):
    folder = tmp_path / name
    lead(folder, small(), server.address)
    (folder / "journal.log").unlink()
    result = CliRunner().invoke(app, ["status", str(folder), "--storage", server.address])
    assert "6 of 6 trials finished" in result.output
