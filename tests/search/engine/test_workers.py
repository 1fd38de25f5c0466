"""Worker processes that die or hang leave a sentence behind, and nothing that waits for them."""

import os
import signal
import time
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import running
from optuna.trial import TrialState
from running import ToyWorkers, settings

from stepsampler import UserError
from stepsearch.config import StudyConfig
from stepsearch.engine import watch as watching
from stepsearch.engine import workers as pool
from stepsearch.engine.launchers.pools import threads_each
from stepsearch.engine.run import run_study
from stepsearch.engine.store.locks import pulse, this_process
from stepsearch.engine.study import finished, open_study, read_study
from stepsearch.engine.tracking import NoTracking
from stepsearch.engine.workers import InThisProcess, Workers

CONFIG = StudyConfig.model_validate({"name": "t", "space": {"num_steps": 3, "passes": 6}})


def test_a_run_whose_workers_die_ends_and_says_so(tmp_path):
    def run():
        with Workers(CONFIG, tmp_path, ["cpu", "cpu"]) as workers:
            workers.describe()
            for process in list(workers._pool._processes.values()):
                process.kill()
            workers.describe()

    with pytest.raises(UserError, match="a worker process died"):
        run()


def test_a_worker_that_hangs_is_said_and_does_not_outlive_the_run(tmp_path, monkeypatch):
    """What hangs hears neither of the end of the line nor of a polite signal."""
    monkeypatch.setattr(watching, "QUIET", 0.5)
    monkeypatch.setattr(pool, "LEAVE", 0.5)
    said = []

    class EnoughError(Exception):
        pass

    def say(news):
        said.append(news)
        if len(said) == 2:
            raise EnoughError

    started = []

    def run():
        with Workers(CONFIG, tmp_path, ["cpu"], say) as workers:
            future = workers._submit(time.sleep, 0)
            future.result()
            started.extend(process.pid for process in workers._processes())
            os.kill(started[0], signal.SIGSTOP)
            workers.describe()

    with pytest.raises(EnoughError):
        run()
    assert f"waiting for the model to be loaded, in the worker process {started[0]}" in said[0]
    assert "Ctrl-C ends the run, and the same command goes on" in said[0]
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


def test_a_wait_is_said_after_a_minute_and_ever_more_rarely(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])
    watch, said = watching.Watch(), []
    for second in range(1000):
        now[0] = second
        if second == 500:
            watch.stir()
        if watch.due(lambda: "x"):
            said.append(second)
    assert said == [60, 120, 240, 480, 560, 620, 740, 980]
    now[0] += 86400 * watching.DAYS
    with pytest.raises(UserError, match="nothing new for 7 days; no longer waiting for x; run ag"):
        watch.due(lambda: "x")


def test_what_measurements_are_waited_for_is_named(tmp_path, monkeypatch):
    said = []
    workers = InThisProcess(CONFIG, tmp_path)
    workers.say = said.append
    futures = {k: Future() for k in range(5)}
    monkeypatch.setattr(watching, "QUIET", 0.0)

    def late(waiting, timeout, return_when):
        for future in waiting if said else ():
            future.set_result(7)
        return set(waiting) if said else set(), None

    monkeypatch.setattr(pool, "wait", late)
    assert dict(workers._ended(futures, "job {}".format)) == dict.fromkeys(range(5), 7)
    assert "waiting for job 0; job 1; job 2 and 2 more" in said[0]


def test_a_search_says_which_trial_takes_long(tmp_path, monkeypatch):
    """Here the worker measures nothing for a while, and has a trial under way."""
    config, news = settings(trials=4, algorithm="random"), []
    monkeypatch.setattr(watching, "QUIET", 0.0)

    class Slow(ToyWorkers):
        def search(self):
            trial = open_study(tmp_path, config).ask()
            trial.set_user_attr("worker", ["here", "12", "m", "w"])
            slow = Future()

            def report(*line):
                news.append(line)
                if "waiting for" in line[-1] and not slow.done():
                    open_study(tmp_path, config).tell(trial.number, state=TrialState.FAIL)
                    slow.set_result(0)

            self.report = report
            return [slow, *super().search()]

    workers = Slow(config, tmp_path)
    monkeypatch.setattr("stepsearch.engine.stages.search.reap", lambda *_, **__: 0)
    report = lambda *line: workers.report(*line)  # noqa: E731
    workers.report = lambda *line: news.append(line)
    run_study(config, tmp_path, workers, NoTracking(), report)
    assert any("of process 12 on here; Ctrl-C ends the run" in line[-1] for line in news)


def test_the_last_trial_of_a_worker_that_joined_is_shown_and_tracked(tmp_path):
    """It ends after those of the run itself have nothing to do any more."""
    config, news, synced = settings(trials=4, algorithm="random"), [], []

    class Joined(ToyWorkers):
        def search(self):
            study = open_study(tmp_path, config)
            self.theirs = study.ask()
            self.theirs.set_user_attr("worker", this_process())
            return super().search()

    class Tracker(NoTracking):
        def sync(self, study):
            synced.append({t.number for t in finished(study)})

    def report(*line):
        news.append(line)
        if f"waiting for trial {workers.theirs.number} of" in line[-1]:
            study = read_study(tmp_path, config)
            for key, value in finished(study)[0].user_attrs.items():
                workers.theirs.set_user_attr(key, value)
            study.tell(workers.theirs.number, 0.001)

    workers = Joined(config, tmp_path)
    workers.theirs = SimpleNamespace(number=None)
    with pulse(tmp_path):
        result = run_study(config, tmp_path, workers, Tracker(), report)
    assert result.trials == 4
    number = workers.theirs.number
    assert number in synced[-1]
    said = next(line[3] for line in news if line[3].startswith(f"trial {number}: 0.001"))
    assert said.endswith(", the best so far")
    assert max(line[1] for line in news if line[0] == "search") == 4


@pytest.mark.parametrize(("omp", "threads"), [("3", None), ("", 2)])
def test_threads_are_those_that_the_environment_says_or_a_share_of_the_cores(
    monkeypatch, omp, threads
):
    monkeypatch.setenv("OMP_NUM_THREADS", omp)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)))
    assert threads_each(2) == threads


def test_every_stage_says_that_it_begins_and_rivals_how_far_they_are(tmp_path):
    news = []
    running.run(tmp_path, settings(trials=4, algorithm="random"), news=news)
    first = {}
    for stage, done, _, _ in news:
        first.setdefault(stage.partition(" (")[0], done)
    assert list(first) == [
        "loading",
        "rivals",
        "baselines, 20 images",
        "baselines, 60 images",
        "teacher",
        "search",
        "selection",
        "test",
    ]
    assert set(first.values()) == {0}
    rivals = [line for line in news if line[0] == "rivals"]
    assert [line[1] for line in rivals] == [0, 1, 2]
    assert rivals[0][-1] == "2 placements of dmn"
