"""Trials whose workers died, the journal that they leave, and what a run waits for."""

import json
import os
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import pytest
import running
from optuna.trial import TrialState, create_trial
from running import ToyWorkers, run, settings
from typer.testing import CliRunner

from stepsampler import UserError
from stepsearch.cli.app import app
from stepsearch.engine import study as studies
from stepsearch.engine.claim import claim_folder
from stepsearch.engine.run import run_study
from stepsearch.engine.store import locks, presence
from stepsearch.engine.store.journal import JournalLock
from stepsearch.engine.store.locks import pulse, this_process
from stepsearch.engine.study import (
    finished,
    open_study,
    read_study,
    reap,
    searched,
    wait_for_others,
)
from stepsearch.engine.tracking import NoTracking
from stepsearch.paths import write_whole

HERE = this_process()
DEAD = [*HERE[:3], "dead"]
FAR = ["n2", "1", "elsewhere", "dead"]
# of processes that import `running` too
PLACES = (str(Path(running.__file__).parent), os.environ.get("PYTHONPATH", ""))
TESTS = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, PLACES))}

DAMAGED = pytest.mark.parametrize("line", [b'{"op\0', 100_000 * b"["], ids=["cut", "deep"])


def small(trials=6):
    return settings(trials=trials, algorithm="random")


def signed(study, signature, **attrs):
    """A running trial of a worker."""
    study.enqueue_trial({"x": 0.5}, user_attrs=attrs)
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("worker", signature)
    return trial


def test_a_trial_of_a_dead_worker_is_retried_at_the_same_point_and_a_living_ones_is_not(tmp_path):
    study = open_study(tmp_path, small())
    with pulse(tmp_path):
        signed(study, DEAD)
        signed(study, HERE)
        assert reap(study, tmp_path) == 1
        assert reap(study, tmp_path) == 0
    dead, alive, retry = study.trials
    assert (dead.state, alive.state) == (TrialState.FAIL, TrialState.RUNNING)
    assert retry.system_attrs["fixed_params"] == dead.params
    assert retry.user_attrs["retry_of"] == 0
    assert "origin" not in retry.user_attrs  # it was the algorithm's own


def test_a_point_at_which_every_worker_dies_is_given_up(tmp_path):
    study = open_study(tmp_path, small())
    signed(study, DEAD, origin="a baseline")
    for _ in range(studies.DEATHS - 1):
        assert reap(study, tmp_path) == 1
        assert study.trials[-1].user_attrs["origin"] == "a baseline"
        study.ask().set_user_attr("worker", DEAD)
    assert reap(study, tmp_path) == 1
    assert {t.state for t in study.trials} == {TrialState.FAIL}
    assert len(study.trials) == studies.DEATHS


def test_a_trial_that_nobody_has_signed_yet_is_let_alone_while_workers_ask(tmp_path):
    study = open_study(tmp_path, small())
    study.ask()
    assert reap(study, tmp_path, asking=True) == 0
    assert reap(study, tmp_path) == 1


def resumed(folder, config):
    news = []
    report = lambda *line: news.append(line[3])  # noqa: E731
    result = run_study(config, folder, ToyWorkers(config, folder), NoTracking(), report)
    return result, news


def test_a_run_resumed_on_another_host_writes_off_what_is_silent_there(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "SILENCE", 1.0)
    run(tmp_path, small(4))
    config = small(6)
    trial = open_study(tmp_path, config).ask(read_study(tmp_path, config).trials[0].distributions)
    trial.set_user_attr("worker", FAR)
    result, news = resumed(tmp_path, config)
    assert "waiting for trial 4 of process 1 on n2, 10 minutes at most" in news
    trials = open_study(tmp_path, config).get_trials()
    assert trials[4].state == TrialState.FAIL
    (again,) = [t for t in trials if t.user_attrs.get("retry_of") == 4]
    assert again.system_attrs["fixed_params"] == trial.params
    assert result.trials == len(finished(open_study(tmp_path, config))) == 6


def test_a_trial_of_a_living_worker_that_takes_too_long_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "LEAST", 1.0)
    study, news = open_study(tmp_path, small()), []
    with pulse(tmp_path):
        signed(study, HERE)
        assert wait_for_others(study, tmp_path, news.append) == 1
    assert news == [f"waiting for trial 0 of process {os.getpid()} on {HERE[0]}, 0 minutes at most"]


def test_a_worker_that_was_taken_for_dead_counts_for_nothing_and_goes_on(tmp_path):
    """It was asleep, say: meanwhile its trial was written off and queued again."""
    config = small(3)
    calls = []

    def broken(schedule):
        if schedule.num_steps < 15 and not calls:
            study = open_study(tmp_path, config)
            running = study.get_trials(states=(TrialState.RUNNING,))
            if running:
                calls.append(running[0].number)
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(presence, "is_dead", lambda *_: True)
                    assert reap(study, tmp_path, asking=True) == 1
        return False

    result, _, _ = run(tmp_path, config, broken=broken)
    trials = open_study(tmp_path, config).trials
    assert trials[calls[0]].state == TrialState.FAIL
    assert result.trials == len(finished(open_study(tmp_path, config))) == 3
    assert len([t for t in trials if t.user_attrs.get("retry_of") == calls[0]]) == 1


def spent(study, number, start, seconds, machine="m", minutes_lie=0.0):
    began = datetime(2026, 1, 1) + timedelta(seconds=start)
    trial = create_trial(
        value=1.0, user_attrs={"seconds": seconds, "worker": ["n", "1", machine, "w"]}
    )
    trial.number = number
    trial.datetime_start = began
    trial.datetime_complete = began + timedelta(seconds=seconds + 60 * minutes_lie)
    study.add_trial(trial)


def test_minutes_are_not_those_of_a_clock_that_is_set():
    jumps = {
        "as it is": ([(0, 60), (60, 60), (120, 60)], {}, 180),
        "set back an hour": ([(3600, 60), (60, 60), (120, 60)], {}, 180),
        "set on a year within a trial": ([(0, 60), (60, 60)], {"minutes_lie": 525600}, 120),
        "set back within a trial": ([(3600, 60), (60, 60)], {"minutes_lie": -60}, 120),
        "two at once": ([(0, 60), (0, 60)], {}, 60),
    }
    for name, (spans, lie, expected) in jumps.items():
        study = optuna.create_study()
        for number, (start, seconds) in enumerate(spans):
            spent(study, number, start, seconds, **lie)
        assert searched(study) == pytest.approx(expected), name


def test_two_machines_whose_clocks_differ_are_not_one_whose_clock_is_set():
    study = optuna.create_study()
    for number in range(6):
        machine, ahead = ("a", 30) if number % 2 else ("b", 0)
        spent(study, number, 60 * (number // 2) + ahead, 60, machine)
    assert searched(study) == pytest.approx(180 + 30)


def torn(folder, left=10):
    journal = folder / "journal.log"
    *lines, last = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines) + last[:left])


def test_a_worker_goes_on_behind_a_line_that_another_ones_death_left_unfinished(tmp_path):
    """Not only when it opens the study: the other one dies meanwhile."""
    study = open_study(tmp_path, small())
    study.ask()
    torn(tmp_path)
    study.enqueue_trial({"x": 0.5})
    (trial,) = open_study(tmp_path, small()).trials
    assert trial.system_attrs["fixed_params"] == {"x": 0.5}


@pytest.mark.parametrize("target", ["r/journal.log", "{path}"])
def test_a_lock_that_optuna_left_behind_is_taken_over(tmp_path, monkeypatch, target):
    """Its link points at the journal, or nowhere where the folder's path is relative."""
    open_study(tmp_path, small())
    os.symlink(target.format(path=tmp_path / "journal.log"), tmp_path / "journal.log.lock")
    began = time.monotonic()
    assert len(read_study(tmp_path, small()).trials) == 0  # who only looks waits for nobody
    assert time.monotonic() - began < locks.NAMELESS
    monkeypatch.setattr(locks, "NAMELESS", 0.5)
    open_study(tmp_path, small()).ask()
    assert not (tmp_path / "journal.log.lock").is_symlink()


def test_a_worker_killed_with_the_journals_lock_holds_nobody_up(tmp_path, monkeypatch):
    """Also under a relative path, and whoever was killed."""
    code = (
        "import os, sys; from pathlib import Path; "
        "from stepsearch.engine.store.journal import JournalLock; "
        "lock = JournalLock(Path(sys.argv[1])); Path(sys.argv[1], 'journal.log').touch(); "
        "lock.acquire(); os._exit(9)"
    )
    (tmp_path / "r").mkdir()
    subprocess.run([sys.executable, "-c", code, "r"], cwd=tmp_path, check=False)
    assert (tmp_path / "r" / "journal.log.lock").is_symlink()
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    lock = JournalLock(tmp_path / "r")
    lock.acquire()
    lock.release()
    assert time.monotonic() - began < locks.NAMELESS


def test_plain_optuna_and_we_keep_each_other_out(tmp_path):
    study = open_study(tmp_path, small())
    lock = optuna.storages.journal.JournalFileSymlinkLock(str(tmp_path / "journal.log"))
    lock.acquire()
    assert not JournalLock(tmp_path).attempt()
    lock.release()
    study.ask()


@DAMAGED
def test_a_damaged_line_is_named(tmp_path, line):
    open_study(tmp_path, small())
    journal = tmp_path / "journal.log"
    count = len(journal.read_bytes().splitlines())
    journal.write_bytes(journal.read_bytes() + line + b"\n{}\n")
    with pytest.raises(UserError, match=rf"journal\.log: line {count + 1} is damaged; the run can"):
        open_study(tmp_path, small())


def test_a_line_that_is_a_record_of_something_else_is_named(tmp_path):
    study = open_study(tmp_path, small())
    study.set_user_attr("one", 1)
    study.set_user_attr("two", 2)
    journal = tmp_path / "journal.log"
    lines = journal.read_text().splitlines()
    place = next(k for k, line in enumerate(lines) if '"one"' in line)
    for damaged in ('"user_attr": true', '"attr": {"one": 1}'):
        changed = lines[place].replace('"user_attr": {"one": 1}', damaged)
        changed = changed.replace('"user_attr":{"one":1}', damaged)
        assert changed != lines[place]
        journal.write_text("\n".join([*lines[:place], changed, *lines[place + 1 :]]) + "\n")
        with pytest.raises(UserError, match=rf"line {place + 1} is damaged; the run can go on"):
            read_study(tmp_path, small())


def test_a_damaged_last_line_is_named_before_anything_is_written_behind_it(tmp_path):
    study = open_study(tmp_path, small())
    journal = tmp_path / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op\0' + 70_000 * b"x" + b"\n")
    with pytest.raises(UserError, match=r"journal\.log: the last line is damaged"):
        study.ask()
    journal.write_bytes(whole + 70_000 * b" " + b'{"unfinished')
    study.ask()
    assert journal.read_bytes().startswith(whole)
    assert b"unfinished" not in journal.read_bytes()


@DAMAGED
def test_a_damaged_last_line_is_named_before_anything_is_measured(tmp_path, line):
    open_study(tmp_path, settings())
    with (tmp_path / "journal.log").open("ab") as journal:
        journal.write(line + b"\n")
    workers = ToyWorkers(settings(), tmp_path)
    with pytest.raises(UserError, match=r"journal\.log: the last line is damaged"):
        run_study(settings(), tmp_path, workers, NoTracking(), lambda *_: None)
    assert workers.images == 0


def test_status_writes_nothing_and_needs_no_search(tmp_path):
    claim_folder(tmp_path, small())
    before = sorted(tmp_path.iterdir())
    said = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert "0 of 6 trials finished" in said.output
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "journal.log").touch()  # a run was killed before its first line
    assert CliRunner().invoke(app, ["status", str(tmp_path)]).exit_code == 0


FULL = """
import resource, signal, sys
from pathlib import Path
import running
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    running.run(Path(sys.argv[1]), running.settings(trials=6, algorithm="random"))
except OSError as error:
    print(error)
"""


def test_a_full_disk_is_said_with_the_file_and_loses_nothing(tmp_path):
    command = [sys.executable, "-c", FULL, tmp_path / "r", "16000"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=TESTS).stdout
    assert "File too large" in said
    assert str(tmp_path / "r" / "journal.log") in said
    kept = {t.number: t.value for t in finished(read_study(tmp_path / "r", small()))}
    result, _, _ = run(tmp_path / "r", small())
    trials = finished(open_study(tmp_path / "r", small()))
    assert kept
    assert kept == {t.number: t.value for t in trials if t.number in kept}
    assert result.trials == len(trials) == 6


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(tmp_path):
    from safetensors import SafetensorError

    path = tmp_path / "x.safetensors"
    path.write_text("old")

    def fails(error):
        def write(part):
            part.write_text("half")
            raise error

        return write

    for error in (OSError(28, "No space left on device"), SafetensorError("I/O error: full")):
        with pytest.raises(OSError, match="x.safetensors"):
            write_whole(path, fails(error))
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


DIES = """
import os, sys
from pathlib import Path
import running
from stepsearch.report import summary
config = running.settings(trials=4, algorithm="random")
replace = os.replace
def run_and_die(folder, name):
    def die(source, target):
        if Path(target).name == name:
            os.kill(os.getpid(), 9)
        replace(source, target)
    os.replace = die
    result, _, _ = running.run(folder, config)
    summary.write(result, config, folder)
    os._exit(0)
for name in sys.argv[2:]:
    number = os.fork()  # of a process that has imported everything
    if number == 0:
        run_and_die(Path(sys.argv[1], name), name)
    print(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]))
"""


def test_a_kill_while_a_file_is_written_leaves_no_half_of_it(tmp_path):
    from stepsearch.report.summary import write

    names = ("plan.json", "best.json", "result.json")
    command = [sys.executable, "-c", DIES, tmp_path, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=TESTS)
    assert done.stdout.split() == ["-9"] * 3, done.stderr
    for name in names:
        assert not (tmp_path / name / name).exists()
        result, config, _ = run(tmp_path / name, small(4))
        write(result, config, tmp_path / name)
        assert result.trials == 4
        json.loads((tmp_path / name / name).read_text())
