"""Locks and pulses, with real processes that are killed."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from stepsampler import UserError
from stepsearch.engine.store import locks
from stepsearch.engine.store.locks import FolderLock, is_dead, only_run, pulse, this_process

HOLD = """
import sys, time
from pathlib import Path
from stepsearch.engine.store.locks import FolderLock, only_run, pulse, this_process
folder = Path(sys.argv[1])
{body}
"""


def process(folder, body):
    """A process that prints one line when it has done what it shall, and then stays."""
    code = HOLD.format(body=body)
    child = subprocess.Popen(
        [sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True
    )
    child.said = child.stdout.readline().strip()
    return child


@pytest.fixture
def holder(tmp_path):
    """A process with a pulse and a lock."""
    body = """
with pulse(folder):
    lock = FolderLock(folder, "x.lock", "x")
    lock.acquire()
    print(*this_process(), flush=True)
    time.sleep(600)
"""
    child = process(tmp_path, body)
    yield child
    child.kill()
    child.wait()


def far(monkeypatch):
    """From now on this process is on another machine than all before."""
    monkeypatch.setattr(locks, "machine", lambda: "elsewhere")


def quick(monkeypatch, silence=0.6, beat=0.1):
    monkeypatch.setattr(locks, "SILENCE", silence)
    monkeypatch.setattr(locks, "NAMELESS", silence)
    monkeypatch.setattr(locks, "BEAT", beat)


def test_a_killed_process_of_this_machine_is_dead_at_once_and_its_lock_free(tmp_path, holder):
    lock, signature = FolderLock(tmp_path, "x.lock", "x"), holder.said.split()
    assert not lock.attempt()
    assert lock.holder() == f"process {signature[1]} on {signature[0]}"
    assert not is_dead(tmp_path, signature)
    os.kill(holder.pid, signal.SIGKILL)
    until = time.monotonic() + 200  # against hanging alone
    while not is_dead(tmp_path, signature) and time.monotonic() < until:
        time.sleep(0.01)  # nobody has waited for it: it is a zombie, as in many a container
    assert is_dead(tmp_path, signature)
    assert (tmp_path / "x.lock").is_symlink()  # it was left behind
    assert lock.attempt()
    lock.release()
    assert not (tmp_path / "x.lock").is_symlink()


def test_the_number_of_a_process_is_nobody(tmp_path):
    """A container's process 1 is another one than that of the container before."""
    with pulse(tmp_path):
        mine = this_process()
        assert not is_dead(tmp_path, mine)
        assert is_dead(tmp_path, [*mine[:3], "otherone"])


def test_a_run_folder_that_was_copied_while_its_run_goes_on_has_no_living_worker(tmp_path, holder):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", tmp_path, copy], stderr=subprocess.DEVNULL, check=False)
    assert not is_dead(tmp_path, holder.said.split())
    assert is_dead(copy, holder.said.split())
    assert FolderLock(copy, "x.lock", "x").attempt()


def test_of_another_machine_one_that_counts_is_alive_and_one_that_is_silent_is_dead(
    tmp_path, monkeypatch
):
    """Whatever its clock says, or ours."""
    quick(monkeypatch)
    with pulse(tmp_path):
        one = this_process()
        path = locks.pulse_file(tmp_path, one)
        monkeypatch.setattr(locks, "_beating", {})
        far(monkeypatch)
        until = time.monotonic() + 2
        while time.monotonic() < until:
            os.utime(path, (1e9, 1e9))
            assert not is_dead(tmp_path, one)
            time.sleep(0.05)
        gone = [*one[:3], "gone"]
        assert not is_dead(tmp_path, gone)  # it is not known yet
        time.sleep(0.8)
        assert is_dead(tmp_path, gone)


def test_a_lock_of_another_machine_is_taken_over_when_its_holder_is_silent(
    tmp_path, holder, monkeypatch
):
    quick(monkeypatch, silence=7)  # it counts every five seconds
    far(monkeypatch)
    lock = FolderLock(tmp_path, "x.lock", "x")
    monkeypatch.setattr(locks, "_flock", lambda *_: True)  # which does not reach over here
    until = time.monotonic() + 8
    while time.monotonic() < until:
        assert not lock.attempt()
        time.sleep(0.2)
    holder.kill()
    began = time.monotonic()
    lock.acquire()
    assert time.monotonic() - began < 10


def test_where_there_are_no_kernel_locks_it_is_said_and_silence_tells(
    tmp_path, holder, monkeypatch, capsys
):
    quick(monkeypatch)
    monkeypatch.setattr(locks, "_flock", lambda *_: None)
    holder.kill()
    with pulse(tmp_path):
        assert "has no locks (flock)" in capsys.readouterr().err
        assert not is_dead(tmp_path, holder.said.split())
        lock = FolderLock(tmp_path, "x.lock", "x")
        assert not lock.attempt()
        lock.acquire()
        assert is_dead(tmp_path, holder.said.split())
        lock.release()


def test_a_lock_seen_long_ago_is_not_taken_for_one_that_stayed(tmp_path, monkeypatch):
    quick(monkeypatch)
    lock = FolderLock(tmp_path, "x.lock", "x")
    for _ in range(2):
        os.symlink("alive/n2.1.elsewhere.abc", tmp_path / "x.lock")
        assert not lock.attempt()
        (tmp_path / "x.lock").unlink()
        assert lock.attempt()
        lock.release()
        time.sleep(0.8)


@pytest.mark.parametrize("left", ["dead here", "silent elsewhere"])
def test_only_one_of_many_takes_a_lock_over(tmp_path, monkeypatch, left):
    quick(monkeypatch, silence=0.3)
    (tmp_path / "alive").mkdir()
    machine = locks.machine() if left == "dead here" else "elsewhere"
    inside, most, times = [0], [0], [0]

    def work():
        lock = FolderLock(tmp_path, "x.lock", "x")
        for _ in range(5):
            lock.acquire()
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.002)
            inside[0] -= 1
            times[0] += 1
            lock.release()

    os.symlink(f"alive/n1.1.{machine}.abc", tmp_path / "x.lock")
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (times[0], most[0]) == (40, 1)
    assert not list(tmp_path.glob(".x.lock*"))


def test_a_wait_for_a_living_holder_says_for_whom_and_ends(tmp_path, holder, monkeypatch, capsys):
    monkeypatch.setattr(locks, "NEWS", 0.1)
    monkeypatch.setattr(locks, "PATIENCE", 1.0)
    host, number = holder.said.split()[:2]
    with pytest.raises(UserError, match=f"process {number} on {host} has kept x locked for"):
        FolderLock(tmp_path, "x.lock", "x").acquire()
    assert f"waiting for process {number} on {host}, which has locked x" in capsys.readouterr().err


def test_a_second_run_of_a_folder_is_refused_and_one_after_a_kill_is_not(tmp_path):
    body = """
with only_run(folder):
    print("here", flush=True)
    time.sleep(600)
"""
    child = process(tmp_path, body)
    try:
        said = f"process {child.pid} on .* runs this study now"
        with pytest.raises(UserError, match=said), only_run(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()
    with only_run(tmp_path):
        pass
    assert not [p for p in (tmp_path / "alive").iterdir() if p.suffix != ".flock"]


def test_a_run_that_another_machine_left_behind_is_looked_at_first(tmp_path, monkeypatch, capsys):
    quick(monkeypatch)
    (tmp_path / "alive").mkdir()
    os.symlink("alive/n2.17.elsewhere.abc", tmp_path / "alive" / "run")
    with only_run(tmp_path):
        assert "process 17 on n2 was running this study" in capsys.readouterr().err


def test_a_run_that_lives_on_another_machine_is_seen(tmp_path, monkeypatch):
    quick(monkeypatch, silence=60)
    (tmp_path / "alive").mkdir()
    file = tmp_path / "alive" / "n2.17.elsewhere.abc"
    file.write_text("1")
    os.symlink("alive/n2.17.elsewhere.abc", tmp_path / "alive" / "run")
    threading.Timer(1.0, lambda: file.write_text("2")).start()
    said = "process 17 on n2 runs this study now"
    with pytest.raises(UserError, match=said), only_run(tmp_path):
        pass
