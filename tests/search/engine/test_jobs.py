"""What a run measures outside its search, done by workers that come, die, hang and refuse."""

import os
import signal
import threading
import time
from collections import Counter
from functools import partial

import numpy as np
import pytest
import running
import torch
from optuna.trial import TrialState
from sharing import SharedToy, lead, schedule, small, worker

from stepsampler import UserError
from stepsearch.config import StudyConfig
from stepsearch.engine import join
from stepsearch.engine.claim import adopt_settings
from stepsearch.engine.jobs import board as jobs
from stepsearch.engine.jobs.board import join_board, open_board
from stepsearch.engine.jobs.kinds import Looking, Measuring, Picturing, Placing
from stepsearch.engine.join import LEADER, leading, take_part
from stepsearch.engine.run import run_study
from stepsearch.engine.store import locks
from stepsearch.engine.store.database import open_database
from stepsearch.engine.store.presence import WORKER
from stepsearch.engine.study import finished, open_study, read_study
from stepsearch.engine.tracking import NoTracking
from stepsearch.engine.workers import Workers
from stepsearch.metrics.evaluator import TEST, Evaluator, Measurement
from stepsearch.polish.looking import Here, Seen
from stepsearch.rivals.baselines import wanted
from stepsearch.rivals.placement import Placement, recall_or_place

LOOKED = Measurement(np.array([[1.5, np.nan]] * 2, np.float32), np.ones(2, np.float32))
HERE = locks.this_process()[3]


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.1)
    monkeypatch.setattr(locks, "SILENCE", 2.0)
    monkeypatch.setattr(jobs, "POLL", 0.05)
    monkeypatch.setattr(join, "LOOK", 0.05)


def numbers(result):
    """All that a run says of its contenders."""
    rows = [
        [(row.candidate.name, row.score.value, row.score.se) for row in part]
        for part in (result.selection, result.test)
    ]
    screened = [(c.name, n, value) for c, n, value in result.screened]
    return screened, rows, result.winner.name, result.passes


def by_worker(board, *states):
    """How many jobs each process has."""
    trials = board.study.get_trials(deepcopy=False, states=states)
    return Counter(trial.user_attrs[WORKER][3] for trial in trials if WORKER in trial.user_attrs)


def test_baselines_shared_with_a_worker_that_is_killed_come_out_as_alone(tmp_path, server, name):
    config, folder = small(), tmp_path / "leader" / name
    joined = worker(tmp_path / "far" / name, server.address, 6, pause=0.3)
    killed = threading.Event()

    def kill():
        lines = iter(joined.stdout.readline, "ready\n")
        assert all("waiting for the run" in line for line in lines)
        board, done, under_way = join_board(folder, open_database(server.address)), 0, 0
        while not (done >= 2 and under_way == 2):
            time.sleep(0.02)
            done = by_worker(board, TrialState.COMPLETE).total()
            under_way = by_worker(board, TrialState.RUNNING).total()
        joined.send_signal(signal.SIGKILL)
        killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    # this process is in its first job until then
    shared, _ = lead(folder, config, server.address, broken=lambda _: killed.wait(100) and False)
    thread.join()
    joined.wait()
    alone, _, _ = running.run(tmp_path / "journal", config)
    assert numbers(shared) == numbers(alone)
    board = join_board(folder, open_database(server.address))
    whole, failed = by_worker(board, TrialState.COMPLETE), by_worker(board, TrialState.FAIL)
    assert len(whole) == 2
    assert sum(n for who, n in whole.items() if who != HERE) >= 2
    assert set(failed) == set(whole) - {HERE}  # the one job that it had, done again elsewhere
    assert failed.total() == 1
    keys = Counter(
        trial.user_attrs["key"]
        for trial in board.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    )
    assert set(keys.values()) == {1}
    assert not board.study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))


def test_a_run_that_does_nothing_itself_is_done_by_who_joins(tmp_path, server, name):
    config, folder = small(), tmp_path / "leader" / name
    joined = worker(tmp_path / "far" / name, server.address, 6)
    shared, toy = lead(folder, config, server.address, serving=0)
    out = joined.communicate(timeout=60)[0]
    assert toy.jobs == 0
    done = by_worker(join_board(folder, open_database(server.address)), TrialState.COMPLETE)
    assert len(done) == 1
    searched = finished(read_study(folder, config, server.address))
    theirs = sum(trial.user_attrs[WORKER][3] in done for trial in searched)
    assert f"done {done.total()} {theirs} False" in out
    assert len(searched) == 6
    alone, _, _ = running.run(tmp_path / "journal", config)
    assert numbers(shared)[0] == numbers(alone)[0]  # which is before the search
    assert join.join(folder, config, server.address, print) is None  # it has ended


def test_another_run_takes_over_with_what_is_done(tmp_path, server, name):
    """The first leader dies before the teacher; the second one has another folder."""
    config = small()

    class DiedError(Exception):
        pass

    def report(stage, *_):
        if stage == "teacher":
            raise DiedError

    first = SharedToy(config, tmp_path / "a" / name, server.address)
    with pytest.raises(DiedError), leading(first.folder, config, server.address):
        run_study(config, first.folder, first, NoTracking(), report, storage=server.address)
    result, second = lead(tmp_path / "b" / name, config, server.address)
    assert first.images > 12 * 20
    alone, _, whole = running.run(tmp_path / "journal", config)
    assert first.images + second.images == whole.images
    assert numbers(result) == numbers(alone)


def test_a_result_that_is_lost_is_made_again(tmp_path, server, name):
    config, store = small(), tmp_path / "store"
    toy = SharedToy(config, tmp_path / name, server.address, artifacts=str(store))
    toy.describe()
    wanted = [(schedule(n), range(20)) for n in (3, 4, 5)]
    first = dict(toy.measure(wanted))
    files = sorted(store.iterdir(), key=lambda file: file.stat().st_mtime)
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-4])
    again = SharedToy(config, tmp_path / "b" / name, server.address, artifacts=str(store))
    again.describe()
    found = dict(again.measure(wanted))
    assert by_worker(again.board, TrialState.COMPLETE).total() == 3 + 2
    for place in first:
        np.testing.assert_array_equal(first[place].features, found[place].features)


def test_a_job_that_nobody_can_do_is_said(tmp_path, server, name):
    """Each worker that joins tries it once, says why not, and leaves."""
    config, folder = small(), tmp_path / name
    toy = SharedToy(config, folder, server.address, serving=0)
    toy.describe()

    def refuse(*_):
        raise UserError("a batch of 50 does not fit")

    said = []

    def join_in():
        for _ in range(3):
            other = SharedToy(config, folder, server.address, broken=refuse)
            with pytest.raises(UserError, match="does not fit") as caught:
                take_part(folder, config, server.address, other, print)
            said.append(str(caught.value))

    with leading(folder, config, server.address):
        thread = threading.Thread(target=join_in)
        thread.start()
        with pytest.raises(UserError) as caught:
            dict(toy.measure([(schedule(), range(20))]))
        thread.join()
    assert "20 images of 6 passes could not be made in 3 attempts: a batch of 50" in str(
        caught.value
    )
    assert said == ["a batch of 50 does not fit"] * 3


def test_a_worker_that_hangs_loses_its_job(tmp_path, server, name, monkeypatch):
    """It counts, so that it is not silent; but it takes far longer than others did."""
    monkeypatch.setattr(jobs, "LEAST", 0.5)
    config, folder = small(), tmp_path / name
    toy = SharedToy(config, folder, server.address)
    toy.describe()
    dict(toy.measure([(schedule(), range(20))]))  # how long one takes
    slow, taken = schedule(4), threading.Event()
    over = threading.Event()

    def hang(plan):
        if not taken.is_set():
            taken.set()
            over.wait(20)

    other = SharedToy(config, folder, server.address, broken=hang)
    other.describe()
    toy.board.offer(Measuring.of(slow, range(20)))
    thread = threading.Thread(target=other._serve)
    thread.start()
    taken.wait()
    found = dict(toy.measure([(schedule(), range(20)), (slow, range(20))]))
    over.set()
    thread.join()  # that it was late is no error
    assert set(found) == {0, 1}
    assert other.jobs == 0
    states = Counter(t.state for t in toy.board.study.get_trials(deepcopy=False))
    assert states == {TrialState.COMPLETE: 2, TrialState.FAIL: 1}


def test_what_is_waited_for_is_named(tmp_path, server, name):
    board = open_board(tmp_path / name, small(), server.address, "toy")
    waited = {k: Measuring.of(schedule(n), range(20)) for k, n in enumerate((3, 4, 5, 6))}
    told = []

    class EnoughError(Exception):
        pass

    def heard(what):
        told.append(what())
        if len(told) == 3:
            raise EnoughError

    def start():
        raise AssertionError

    with pytest.raises(EnoughError):
        dict(jobs.spread(board, waited, start, 0, heard))
    assert told[0].endswith("and 1 more")
    board._take()
    told.clear()
    with pytest.raises(EnoughError):
        dict(jobs.spread(board, waited, start, 0, heard))
    me = f"by process {locks.this_process()[1]} on {locks.this_process()[0]}"
    assert told[-1].startswith(f"20 images of 6 passes {me}; 20 images of 8 passes by nobody yet;")


def test_a_worker_of_another_model_is_refused(tmp_path, server, name):
    config, folder = small(), tmp_path / name
    open_board(folder, config, server.address, "toy")
    other = SharedToy(config, folder, server.address)
    other.identity = "another"
    with pytest.raises(UserError, match="of another model, .* 'toy', not 'another'"):
        take_part(folder, config, server.address, other, print)


def test_what_was_offered_of_another_model_or_build_is_left(tmp_path, server, name, monkeypatch):
    config, folder = small(), tmp_path / name
    before = open_board(folder, config, server.address, "another")
    before.offer(Measuring.of(schedule(), range(20)))
    before.offer(Picturing.of(schedule(), range(20)))
    monkeypatch.delitem(jobs.KINDS, "images")
    toy = SharedToy(config, folder, server.address)
    toy.describe()
    assert dict(toy.measure([(schedule(), range(20))]))[0].finite
    done = by_worker(toy.board, TrialState.COMPLETE)
    assert done.total() == 1
    left = toy.board.study.get_trials(states=(TrialState.WAITING,))
    assert [trial.number for trial in left] == [0, 1]


def test_a_budget_that_grew_is_that_of_the_run_and_workers_join_again(tmp_path, server, name):
    config, folder = small(6), tmp_path / name
    board = open_board(folder, config, server.address, "toy")
    with leading(folder, config, server.address):
        thread = threading.Timer(0.5, open_board, (folder, small(9), server.address, "toy"))
        thread.start()
        toy = SharedToy(config, folder, server.address)
        assert take_part(folder, config, server.address, toy, print) == (0, 0, True)
        thread.join()
        now = adopt_settings(board.study, tmp_path / "far" / name, config)
    assert now.search.trials == 9


def test_a_worker_without_a_leader_waits_says_so_and_leaves(tmp_path, server, name, monkeypatch):
    monkeypatch.setattr(locks, "SILENCE", 0.3)
    monkeypatch.setattr(join, "ORPHANED", 1.5)
    config, folder = small(), tmp_path / name
    open_board(folder, config, server.address, "toy")
    open_study(folder, config, storage=server.address).set_user_attr(LEADER, ["x", 1])
    said, began = [], time.monotonic()
    toy = SharedToy(config, folder, server.address)
    assert take_part(folder, config, server.address, toy, said.append) == (0, 0, False)
    assert time.monotonic() - began > 1.5
    assert len(said) == 1
    assert "nobody leads the run" in said[0]


@pytest.mark.parametrize(
    ("job", "made"),
    [
        (
            Measuring.of(schedule(), range(3)),
            Measurement(
                np.array([[1.5, np.nan]] * 3, np.float32),
                np.full(3, np.nan, np.float32),
                None,
                {"fd_x": np.ones((3, 2, 4), np.float32).transpose(0, 2, 1)},
            ),
        ),
        (Picturing.of(schedule(), range(2)), np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)),
        (Placing("gits", 3, 2.0), Placement([3.0, 1.1, 0.0], 70, 0.5, "{}")),
        (
            Looking.of([[schedule()], [schedule(), schedule(4)], []], range(5, 7)),
            [Seen(0, LOOKED), Seen(1, LOOKED), "it has no «w»"],
        ),
    ],
)
def test_what_is_made_travels_unchanged(job, made):
    found = job.unpack(job.pack(made))
    if isinstance(made, Placement):
        assert found == made
    elif isinstance(made, list):
        *seen, why = found
        assert why == made[2]
        assert [part.side for part in seen] == [0, 1]
        for part in seen:
            np.testing.assert_array_equal(part.measurement.features, LOOKED.features)
            np.testing.assert_array_equal(part.measurement.aligned, LOOKED.aligned)
    elif isinstance(made, Measurement):
        np.testing.assert_array_equal(found.features, made.features)
        np.testing.assert_array_equal(found.aligned, made.aligned)
        np.testing.assert_array_equal(found.rulers["fd_x"], made.rulers["fd_x"])
        assert set(found.rulers) == {"fd_x"}
    else:
        np.testing.assert_array_equal(found, made)


def test_the_processes_of_a_run_do_them_as_they_do_without_a_database(
    tmp_path, server, name, monkeypatch, request
):
    """The bundled model: measurements with rulers, a placement, images, a look of a polish."""
    monkeypatch.setattr(locks, "SILENCE", 60.0)  # they beat as always
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(1)  # with others sums are in another order
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    config = StudyConfig.model_validate(
        {
            "name": "t",
            "space": {"num_steps": 3, "passes": 6},
            "evaluation": {"batch_size": 4, "rulers": ["patches"]},
            "baselines": {"rivals": ["dmn"], "guidance_scales": [2.0]},
        }
    )
    seeds = range(TEST, TEST + 4)
    with Workers(config, tmp_path / name, ["cpu"], storage=server.address) as workers:
        workers.describe()
        ((_, ours),) = workers.measure([(schedule(), seeds)])
        placed = dict(workers.placements())
        pictures = workers.images([schedule(), schedule(4)], seeds)
        looked = [[schedule()], [schedule(4)]]
        ((_, seen),) = workers.look(looked, [range(4)])
    alone = Evaluator(config, tmp_path / "alone")
    theirs = alone.measure(schedule(), seeds)
    np.testing.assert_array_equal(ours.features, theirs.features)
    np.testing.assert_array_equal(ours.aligned, theirs.aligned)
    assert set(ours.rulers) == set(theirs.rulers) == {"swd_patches"}
    np.testing.assert_array_equal(ours.rulers["swd_patches"], theirs.rulers["swd_patches"])
    for here, there in zip(seen, Here(alone)(looked, range(4)), strict=True):
        np.testing.assert_array_equal(here.measurement.features, there.measurement.features)
        np.testing.assert_array_equal(here.measurement.certain, there.measurement.certain)
    assert torch.equal(pictures[4:], alone.images(schedule(4), seeds))
    assert {key: found.sigmas for key, found in placed.items()} == {
        (who, n): recall_or_place(alone, who, n, w).sigmas for (who, n), w in wanted(config).items()
    }
    assert (
        len(
            by_worker(
                join_board(tmp_path / name, open_database(server.address)), TrialState.COMPLETE
            )
        )
        == 1
    )


def test_a_worker_keeps_few_connections(tmp_path, server, name):
    """docs/cluster.md says how many, and of how many workers a server is full."""
    import psycopg

    config, folder, counted = small(2), tmp_path / name, []

    def count(*_):
        with psycopg.connect(server.address) as connection:
            sql = "select count(*) from pg_stat_activity where application_name = 'counted'"
            counted.append(connection.execute(sql).fetchone()[0])

    board = open_board(folder, config, server.address, "toy")
    open_study(folder, config, storage=server.address).set_user_attr(LEADER, join.ENDED)
    board.offer(Measuring.of(schedule(), range(20)))
    address = f"{server.address}?application_name=counted"
    toy = SharedToy(config, folder, address, broken=count)
    assert take_part(folder, config, address, toy, print) == (1, 0, False)
    assert 1 <= max(counted) <= 2
