"""A run in a database, led by a toy here and joined by toys in processes of their own."""

import os
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import running
from running import SD, SPEC, ToyWorkers, settings

from stepsampler.grids import GRIDS, from_sigmas
from stepsearch.config import StudyConfig
from stepsearch.engine import join
from stepsearch.engine.jobs.board import open_board, spread
from stepsearch.engine.jobs.kinds import Measuring
from stepsearch.engine.join import leading
from stepsearch.engine.launchers.placing import Place
from stepsearch.engine.run import run_study
from stepsearch.engine.store import locks
from stepsearch.engine.study import work
from stepsearch.engine.tracking import NoTracking

PLACES = (str(Path(running.__file__).parent), os.environ.get("PYTHONPATH", ""))
TESTS = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, PLACES))}
WORKER = """
import sys, time
from pathlib import Path
from running import ToyWorkers
from sharing import small
from stepsearch.engine import join
from stepsearch.engine.store import locks
locks.BEAT, locks.SILENCE, join.LOOK = 0.1, 20.0, 0.1
folder, storage = Path(sys.argv[1]), sys.argv[2]
trials, pause = int(sys.argv[3]), float(sys.argv[4])
config = join.join(folder, small(trials), storage, print)
locks.SILENCE = 1.0
toy = ToyWorkers(config, folder, broken=lambda schedule: time.sleep(pause))
print("ready", flush=True)
print("done", *join.take_part(folder, config, storage, toy, print), flush=True)
"""


@dataclass(frozen=True)
class ToyPlace(Place):
    """A worker that a launcher places, with a toy that thinks for a while."""

    pause: float = 0.1

    def work(self, above, storage):
        locks.BEAT, locks.SILENCE, join.LOOK = 0.1, 60.0, 0.1
        folder = above / f"far-{os.getpid()}" / self.name
        config = join.join(folder, StudyConfig.model_validate_json(self.config), storage, print)
        locks.SILENCE = 2.0
        toy = ToyWorkers(config, folder, broken=lambda _: time.sleep(self.pause))
        join.take_part(folder, config, storage, toy, print)


class SharedToy(ToyWorkers):
    """Does jobs in a thread, one at a time; `serving` is how many at most, 0 for none."""

    def __init__(self, config, folder, storage, serving=1, artifacts=None, **toy):
        super().__init__(config, folder, **toy)
        self.storage, self.serving, self.artifacts = storage, serving, artifacts
        self.jobs, self._pool = 0, ThreadPoolExecutor(1)

    def describe(self):
        self.board = open_board(self.folder, self.config, self.storage, "toy", self.artifacts)
        return super().describe()

    def measure(self, jobs, seeds=None):
        if seeds is not None:  # as an evaluator
            return super().measure(jobs, seeds)
        made = {k: Measuring.of(*job) for k, job in enumerate(jobs)}
        return spread(self.board, made, self._start, self.serving, lambda _: None)

    def _start(self):
        return self._pool.submit(self._serve)

    def _serve(self):
        with self.board.present.working():
            done = self.board.serve(self)
        self.jobs += done
        return done

    def search(self):
        future = Future()
        future.set_result(work(self.folder, self.config, self, 0, self.storage))
        return [future]


def small(trials=6):
    """Some thirty jobs before the search, a dozen after it."""
    config = settings(trials=trials, algorithm="random", finalists=2)
    few = {"rungs": (20,), "orders": (2,), "presets": (), "long_steps": (), "test": 1}
    return config.model_copy(update={"baselines": config.baselines.model_copy(update=few)})


def schedule(n=3, grid="karras"):
    *sigmas, final = GRIDS[grid](n, SD)
    return from_sigmas(sigmas, final, [2.0] * n, 2, "dpmpp-midpoint", SPEC)


def lead(folder, config, storage, **toy):
    """What `stepsearch run` does, with a toy in the place of a model."""
    workers = SharedToy(config, folder, storage, **toy)
    with leading(folder, config, storage):
        result = run_study(config, folder, workers, NoTracking(), lambda *_: None, storage=storage)
    return result, workers


def worker(folder, storage, trials, pause=0.0):
    """`stepsearch worker`, in a process of its own that thinks for `pause` seconds."""
    command = [sys.executable, "-c", WORKER, str(folder), storage, str(trials), str(pause)]
    return subprocess.Popen(command, env=TESTS, stdout=subprocess.PIPE, text=True)
