"""One worker = one process on one device. The parent never loads a model.

Each worker loads the evaluator once and then serves two kinds of calls: measure a schedule on a
range of seeds, or take part in the search until its budget is spent.

How long a call may take nobody knows: it depends on the model, the study and the machine. So a
wait for a worker has a limit of days (`watch`), and says what it waits for.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from stepsampler.errors import UserError, note
from stepsampler.noise import Noise
from stepsampler.schedule import ModelSpec, Schedule, StatisticsSpec
from stepsearch.config import StudyConfig
from stepsearch.config.code import allow_code, allowed
from stepsearch.engine.jobs.board import Board, join_board, open_board, spread
from stepsearch.engine.jobs.kinds import Job, Looking, Measuring, Picturing, Placing
from stepsearch.engine.launchers.placing import Placed
from stepsearch.engine.launchers.pools import AtOnce, Pool, threads_each
from stepsearch.engine.store.database import open_database
from stepsearch.engine.study import read_study, spent, work
from stepsearch.engine.watch import Watch
from stepsearch.metrics.evaluator import Evaluator, Measurement
from stepsearch.metrics.reference import Reference
from stepsearch.polish.looking import Seen, Sides
from stepsearch.rivals.baselines import CLASSIFIER_FREE, check_statistics, wanted
from stepsearch.rivals.placement import Placement
from stepsearch.space.check import check_box
from stepsearch.space.statistics import make_own

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
LEAVE = 5.0  # seconds in which a worker can end by itself when the run is given up
LAST = 0.5  # seconds between the first and the last process of a job that is ended
SHOWN = 3  # of what is waited for
LOOK = 1.0  # seconds between two looks at what workers elsewhere have done
DIED = "a worker process died (out of memory?); run again to resume"


@dataclass(frozen=True)
class Subject:
    """What the parent needs to know of the model and the reference, without loading them."""

    noise: Noise
    spec: ModelSpec
    reference: Reference
    identity: str  # digest of model, reference and prompts
    guidance: str  # of the model: classifier-free or distilled
    two_networks: bool = False
    boundary: float | None = None  # of the model, between them
    # What the search does not see: statistics for the test, by the names of their distances
    rulers: Mapping[str, Reference] = field(default_factory=dict)
    notes: Sequence[str] = ()  # what a user should know of how prompts are read
    statistics: Sequence[StatisticsSpec] = ()  # of the model


@dataclass
class _Self:
    """This worker process; the evaluator is loaded on the first call, which can report errors."""

    config: StudyConfig
    folder: Path
    number: int
    device: str
    storage: str | None = None
    evaluator: Evaluator | None = None
    board: Board | None = None

    def load(self) -> Evaluator:
        if self.evaluator is None:
            self.evaluator = Evaluator(self.config, self.folder / "cache", self.device)
        return self.evaluator


_self: _Self


class Workers:
    """A pool of worker processes; `devices` has one entry a worker, such as ["cpu", "cpu"].

    `say` hears what is waited for. `storage` is the database of the trials, if there is one: its
    jobs are done by all workers of the run, and their results are handed on through `artifacts`.
    Where a launcher has `placed` workers elsewhere, `sharing` of them, the pool loads the model to
    describe it, and does nothing else.
    """

    def __init__(
        self,
        config: StudyConfig,
        folder: Path,
        devices: Sequence[str],
        say: Callable[[str], None] = note,
        storage: str | None = None,
        artifacts: str | None = None,
        placed: Placed | None = None,
        sharing: int | None = None,
    ) -> None:
        self.config, self.folder, self.count = config, folder, len(devices)
        self.say, self.storage, self.artifacts = say, storage, artifacts
        self._board: Board | None = None
        self._placed = placed
        self.sharing = self.count if sharing is None else sharing
        context = multiprocessing.get_context("spawn")
        queue: Queue[tuple[int, str]] = context.Queue()
        for number, device in enumerate(devices):
            queue.put((number, device))
        threads = threads_each(len(devices))
        # An event would wait for workers that died while they waited for it.
        listener, self._line = Pipe(duplex=False)
        self._pool: Executor = Pool(
            len(devices),
            mp_context=context,
            initializer=_start,
            initargs=(config, folder, queue, threads, listener, storage, allowed()),
        )

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:  # Ctrl-C or an error: do not wait for what they are doing
            self._line.close()
            until = time.monotonic() + LEAVE
            for process in self._processes():
                process.join(max(0.0, until - time.monotonic()))
                process.kill()  # one that hangs does not hear of it
        self._pool.shutdown(cancel_futures=True)

    def _processes(self) -> list[BaseProcess]:
        return list((getattr(self._pool, "_processes", None) or {}).values())

    def describe(self) -> Subject:
        """Wait until a worker has loaded everything.

        Raises:
            UserError: what is missing, or does not fit.
        """
        loaded = {"model": self._submit(_describe)}
        ((_, subject),) = self._ended(loaded, "the {} to be loaded".format)
        if self.storage is not None:
            known = (self.storage, subject.identity, self.artifacts)
            self._board = open_board(self.folder, self.config, *known)
        return subject

    def statistics(self, heard: Callable[[], object]) -> list[str]:
        """Have a worker make those of the study's own that are not there; a sentence of each.

        `heard` is called again and again until then.
        """
        made = self._submit(_make_statistics)
        while not wait([made], LOOK).done:
            heard()
        return self.result(made)

    def placements(
        self, guidance: str = CLASSIFIER_FREE
    ) -> Iterator[tuple[tuple[str, int], Placement]]:
        """((name, steps), what that rival proposes for a model of this guidance), in any order."""
        places = wanted(self.config, guidance).items()
        return self._made({(name, n): Placing(name, n, w) for (name, n), w in places})

    def images(self, schedules: Sequence[Schedule], seeds: range) -> Tensor:
        """Images of each schedule in turn, uint8 (len(schedules) * len(seeds), 3, h, w)."""
        made = dict(self._made({k: Picturing.of(s, seeds) for k, s in enumerate(schedules)}))
        return torch.cat([torch.from_numpy(made[k]) for k in range(len(schedules))])

    def measure(self, jobs: Sequence[tuple[Schedule, range]]) -> Iterator[tuple[int, Measurement]]:
        """Yield (place in `jobs`, measurement) as they are done, in any order."""
        return self._made({k: Measuring.of(*job) for k, job in enumerate(jobs)})

    def _made(self, jobs: Mapping[K, Job[T]]) -> Iterator[tuple[K, T]]:
        """What comes of jobs: of this pool's processes, or of all workers of the run."""
        if self._board is None:
            futures = {key: self._submit(_do, job) for key, job in jobs.items()}
            return self._ended(futures, lambda key: jobs[key].said)
        return self._spread(self._board, jobs)

    def _spread(self, board: Board, jobs: Mapping[K, Job[T]]) -> Iterator[tuple[K, T]]:
        watch = Watch()
        most = 0 if self._placed else self.count

        def heard(what: Callable[[], str] | None) -> None:
            if self._placed:
                self._placed.check()
            if what is None:
                watch.stir()
            elif news := watch.due(what):
                self.say(news)

        try:
            yield from spread(board, jobs, lambda: self._submit(_serve), most, heard)
        except BrokenProcessPool as error:
            raise _died() from error

    def look(
        self, plans: Sequence[Sides], parts: Sequence[range]
    ) -> Iterator[tuple[int, list[Seen | str]]]:
        """(place in `parts`, what a polish sees of `plans` on these seeds), in any order."""
        return self._made({k: Looking.of(plans, part) for k, part in enumerate(parts)})

    def search(self) -> list["Future[int]"]:
        """Start every worker on the folder's search; the futures hold their numbers of trials."""
        if self._placed:
            return [self._searched_elsewhere(self._placed)]
        return [self._submit(_search) for _ in range(self.count)]

    def _searched_elsewhere(self, placed: Placed) -> "Future[int]":
        """Done when others have spent the budget."""
        future: Future[int] = Future()

        def watch() -> None:
            try:
                study = read_study(self.folder, self.config, self.storage)
                while not spent(study, self.config.search):
                    placed.check()
                    time.sleep(LOOK)
                future.set_result(0)
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=watch, daemon=True).start()  # an interrupted run leaves it behind
        return future

    def _submit(self, call: Callable[..., T], /, *inputs: object) -> "Future[T]":
        try:
            return self._pool.submit(call, *inputs)
        except BrokenProcessPool as error:
            raise _died() from error

    def _ended(
        self, futures: "Mapping[K, Future[T]]", named: Callable[[K], str]
    ) -> Iterator[tuple[K, T]]:
        """The futures' results as they come; what takes long is said."""
        watch, waiting = Watch(), {future: key for key, future in futures.items()}

        def what() -> str:
            first = [named(key) for key in list(waiting.values())[:SHOWN]]
            more = f" and {len(waiting) - SHOWN} more" if len(waiting) > SHOWN else ""
            numbers = ", ".join(str(process.pid) for process in self._processes())
            process = "process" if len(self._processes()) == 1 else "processes"
            return f"{'; '.join(first)}{more}, in the worker {process} {numbers}"

        while waiting:
            ended, _ = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in ended:
                watch.stir()
                yield waiting.pop(future), self.result(future)
            if news := watch.due(what):
                self.say(news)

    @staticmethod
    def result(future: "Future[T]") -> T:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise _died() from error


def _died() -> UserError:
    """What ends all processes of a job at once, as SLURM and systemd do, may reach this one last:
    then SIGTERM is what to tell of, and not its workers' death."""
    time.sleep(LAST)
    return UserError(DIED)


class InThisProcess(Workers):
    """One worker that is the process itself, for work that is done before another one starts."""

    def __init__(self, config: StudyConfig, folder: Path, device: str = "cpu") -> None:
        global _self
        self.config, self.folder, self.count, self.say = config, folder, 1, note
        self.sharing = 1
        self.storage, self._board, self._placed = None, None, None
        _, self._line = Pipe(duplex=False)
        self._pool = AtOnce()
        _self = _Self(config, folder, 0, device)


def _start(
    config: StudyConfig,
    folder: Path,
    queue: "Queue[tuple[int, str]]",
    threads: int | None,
    line: Connection,
    storage: str | None,
    may_run_code: bool,
) -> None:
    global _self
    allow_code(may_run_code)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    _follow_parent(line)
    number, device = queue.get()
    if device == "cpu" and threads is not None:
        torch.set_num_threads(threads)
    _self = _Self(config, folder, number, device, storage)


def _follow_parent(line: Connection) -> None:
    """End this process when the parent closes its end of the line or is gone, however it died."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent and not line.poll(0.5):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _describe() -> Subject:
    evaluator = _self.load()
    model = evaluator.model
    check_box(_self.config.space, model)
    statistics = [found.spec for found in model.statistics]
    check_statistics(_self.config, model.guidance, statistics)
    return Subject(
        model.noise,
        model.spec,
        evaluator.reference,
        evaluator.identity,
        model.guidance,
        model.experts.two,
        model.experts.boundary,
        {ruler.reference.metric: ruler.reference for ruler in evaluator.rulers},
        evaluator.notes,
        statistics,
    )


def _make_statistics() -> list[str]:
    return make_own(_self.config, _self.device)


def _do(job: Job[T]) -> T:
    return job.do(_self.load())


def _serve() -> int:
    if _self.board is None:
        assert _self.storage is not None
        _self.board = join_board(_self.folder, open_database(_self.storage))
    with _self.board.present.working():
        return _self.board.serve(_self.load())


def _search() -> int:
    return work(_self.folder, _self.config, _self.load(), _self.number, _self.storage)
