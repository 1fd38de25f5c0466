"""A run whose model is a formula, in processes that begin at once.

Everything is the package's own, from the command line over the pool, the storage, the cache and
MLflow to the files at the end, but the images: features come from seeds, sigmas and a schedule's
digest, after a sleep. Processes are forked from one that has imported everything, and all waits
that the package counts in minutes are seconds.
"""

import hashlib
import importlib
import multiprocessing
import os
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from small_study import small_study

from stepsampler.errors import NotFiniteError
from stepsampler.generate import BatchSize, fitting
from stepsampler.noise import NoiseSchedule
from stepsampler.schedule import Schedule
from stepsearch.config import StudyConfig
from stepsearch.engine import join, study, workers
from stepsearch.engine.jobs import board
from stepsearch.engine.store import database, locks
from stepsearch.metrics import evaluator
from stepsearch.metrics.alignment import Prompt
from stepsearch.metrics.distance import Moments
from stepsearch.metrics.evaluator import Evaluator
from stepsearch.metrics.reference import Reference
from stepsearch.paths import write_whole

AXES, TARGET = 4, 0.05
SD = NoiseSchedule.scaled_linear()
SPEC = SD.spec("stable-diffusion", "epsilon")
STUDY = small_study(
    space={"max_steps": 6},
    evaluation={"images": 40, "selection_images": 40, "test_images": 80, "batch_size": 16},
    baselines={"rungs": [10]},
    teacher={"images": 20},
    search={"trials": 16, "algorithm": "random", "finalists": 3},
)
LATER = (
    "alembic.command",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.tracking.rest_store",
    "optuna.storages._rdb.storage",
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "stepsearch.cli.app",
    "stepsearch.engine.mirror.records",
    "torch.utils.data",
    "transformers.utils",
)
# What is counted in seconds here: beats, silence after which a process is dead, …
BEAT, SILENCE = 0.2, 3.0
ORPHANED, LEAST, SERVER = 20.0, 20.0, 60.0


@dataclass(frozen=True)
class Nature:
    """What this round's model does."""

    pause: float = 0.02  # seconds a measurement, at least
    broken: float = 0.0  # share of schedules whose images are not finite
    fits: int = 64  # images that fit into memory at once

    def is_broken(self, schedule: Schedule) -> bool:
        """Always the same of a schedule; one of many steps, as the teacher, never."""
        return schedule.num_steps < 15 and _draw(schedule) < self.broken


def _draw(schedule: Schedule) -> float:
    """A number of [0, 1) that is the schedule's own."""
    text = repr([(step.sigma, step.guidance_scale) for step in schedule.steps])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


nature = Nature()


class Stub(Evaluator):
    """An evaluator with the cache, the halving of batches and the errors of the real one."""

    def __init__(self, config: StudyConfig, cache: Path, device: str = "cpu") -> None:
        self.cache, self.scales, self.frames = cache, (), 1
        self.fits = BatchSize(config.evaluation.batch_size, self._probe)
        self.prompts, self.negative_prompt = [Prompt("a toy", 0)], ""
        self.judge, self.rulers, self.notes = None, [], []
        self.identity = "a formula"
        self.model: Any = SimpleNamespace(
            noise=SD,
            spec=SPEC,
            guidance="classifier-free",
            experts=SimpleNamespace(boundary=None, two=False),
            statistics=(),
            device=device,
        )
        normal = Moments(np.zeros(AXES), np.eye(AXES), 1000)
        self.reference = Reference("toy", "0", None, None, normal, normal)

    @property
    def saved(self) -> int:
        return 0

    def _measure(
        self, schedule: Schedule, seeds: range, rulers: Sequence[Any], size: int
    ) -> tuple[dict[str, Any], torch.Tensor]:
        time.sleep(nature.pause)
        with fitting(self.model, size):
            if size > nature.fits:
                torch.empty(2**60)  # really too much, for torch to say so
        if nature.is_broken(schedule):
            raise NotFiniteError("the images are not finite")
        rows = np.array([np.random.default_rng(seed).normal(size=AXES + 1) for seed in seeds])
        off = abs(np.log(max(schedule.steps[-1].sigma, 1e-3) / TARGET))
        many = schedule.num_steps > 15  # the teacher's
        features = (rows[:, :AXES] + (0 if many else off)).astype(np.float32)
        share = 1.0 if many or _draw(schedule) < 0.7 else 0.9
        aligned = (rows[:, AXES] % 1 < share).astype(np.float32)
        return {"features": features, "aligned": aligned}, self.images(schedule, seeds[:4])

    def images(self, schedule: Schedule, seeds: range) -> torch.Tensor:
        made = [np.random.default_rng(seed).integers(0, 255, (3, 8, 8)) for seed in seeds]
        return torch.from_numpy(np.array(made, np.uint8))


def set_up() -> None:
    """Have every process that is forked from this one use the formula, and short waits."""
    for module in (workers, join, evaluator):
        module.Evaluator = Stub  # type: ignore[attr-defined]
    start = workers._start

    def forked(*inputs: Any) -> None:
        _close_files()  # a process that is spawned has none of its parent's locks
        start(*inputs)

    workers._start = forked
    context = multiprocessing.get_context("fork")
    workers.multiprocessing = SimpleNamespace(  # type: ignore[attr-defined]
        get_context=lambda _: context
    )
    workers.check_box = lambda *_: None  # it asks networks
    locks.BEAT, locks.SILENCE, locks.NAMELESS, locks.NEWS = BEAT, SILENCE, 1.0, 1.0
    locks.PATIENCE = database.PATIENCE = SERVER
    database.PAUSE = 1.0
    study.LEAST = board.LEAST = LEAST
    join.ORPHANED, join.LOOK, workers.LOOK, board.POLL = ORPHANED, 0.1, 0.1, 0.1
    from stepsearch.report import session

    for name in LATER:  # what processes would import, each for itself
        with suppress(ImportError):
            importlib.import_module(name)
    # Charts take longer than all the rest, and are nobody's state.
    session.write_page = lambda _, path: write_whole(path, lambda p: p.write_text("a page"))


def _close_files() -> None:
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if int(name) > 2 and stat.S_ISREG(os.fstat(int(name)).st_mode):
                os.close(int(name))


def forked(log: Path, do: Callable[[], Any]) -> int:
    """The number of a new process that does this, with what it says in a file.

    It ends with the code of SystemExit, or 70 and a traceback.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    number = os.fork()
    if number:
        return number
    code = 70
    try:
        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        do()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def command(*words: str) -> None:
    """`stepsearch` with these words, in this process."""
    from stepsearch.cli import main

    sys.argv = ["stepsearch", *words]
    main()


def elsewhere(host: str) -> None:
    """Be on another machine from now on, whose kernel's locks nobody here sees."""
    digest = hashlib.sha256(host.encode()).hexdigest()[:8]
    locks.machine = lambda: digest  # type: ignore[assignment]
    locks.socket = SimpleNamespace(gethostname=lambda: host)  # type: ignore[attr-defined]
