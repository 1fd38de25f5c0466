"""One worker = one process on one device. The parent never loads a model.

Each worker loads the evaluator once and then serves two kinds of calls: measure a schedule on a
range of seeds, or take part in the search until its budget is spent.

How long a call may take nobody knows: it depends on the model, the study and the machine. So no
wait for a worker has a limit, but each says what it waits for, after a minute without anything new
and ever more rarely.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepsampler.errors import NotFiniteError, UserError, counted, note
from stepsampler.noise import Noise
from stepsampler.schedule import ModelSpec, Schedule, StatisticsSpec
from stepsearch.config import StudyConfig
from stepsearch.config.code import allow_code, allowed
from stepsearch.engine.study import work
from stepsearch.metrics.evaluator import Evaluator, Measurement
from stepsearch.metrics.reference import Reference
from stepsearch.polish.descent import Polished, Settings, polish
from stepsearch.polish.knobs import Knobs
from stepsearch.polish.objective import check_gradients
from stepsearch.rivals.baselines import CLASSIFIER_FREE, check_statistics, wanted
from stepsearch.rivals.placement import Placement, recall_or_place
from stepsearch.space.check import check_box

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
QUIET = 60.0  # seconds without anything new, after which a wait is said
LEAVE = 5.0  # seconds in which a worker can end by itself when the run is given up
SHOWN = 3  # of what is waited for
DIED = "a worker process died (out of memory?); run again to resume"


class Watch:
    """When a wait is worth a word: after `QUIET` seconds without news, then twice as long, …"""

    def __init__(self) -> None:
        self.stir()

    def stir(self) -> None:
        """There is something new."""
        self._since, self._next = time.monotonic(), QUIET

    def due(self, waiting_for: Callable[[], str]) -> str | None:
        """The sentence to say now, if any."""
        waited = time.monotonic() - self._since
        if waited < self._next:
            return None
        self._next = 2 * waited
        return (
            f"nothing new for {waited / 60:.0f} min; waiting for {waiting_for()}; Ctrl-C ends the "
            "run, and the same command goes on"
        )


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

    def load(self) -> Evaluator:
        if self.evaluator is None:
            self.evaluator = Evaluator(self.config, self.folder / "cache", self.device)
        return self.evaluator


_self: _Self


class Workers:
    """A pool of worker processes; `devices` has one entry a worker, such as ["cpu", "cpu"].

    `say` hears what is waited for. `storage` is the database of the trials, if there is one.
    """

    def __init__(
        self,
        config: StudyConfig,
        folder: Path,
        devices: Sequence[str],
        say: Callable[[str], None] = note,
        storage: str | None = None,
    ) -> None:
        self.config, self.folder, self.count = config, folder, len(devices)
        self.say = say
        context = multiprocessing.get_context("spawn")
        queue: Queue[tuple[int, str]] = context.Queue()
        for number, device in enumerate(devices):
            queue.put((number, device))
        threads = max(1, (os.cpu_count() or 1) // len(devices))
        # An event would wait for workers that died while they waited for it.
        listener, self._line = Pipe(duplex=False)
        self._pool: Executor = _Pool(
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
        return subject

    def placements(
        self, guidance: str = CLASSIFIER_FREE
    ) -> Iterator[tuple[tuple[str, int], Placement]]:
        """((name, steps), what that rival proposes for a model of this guidance), in any order."""
        futures = {
            (name, n): self._submit(_placement, name, n, w)
            for (name, n), w in wanted(self.config, guidance).items()
        }
        return self._ended(futures, lambda key: f"{key[0]} at {counted(key[1], 'step')}")

    def images(self, schedules: Sequence[Schedule], seeds: range) -> Tensor:
        """Images of each schedule in turn, uint8 (len(schedules) * len(seeds), 3, h, w)."""
        futures = {k: self._submit(_images, s.to_json(), seeds) for k, s in enumerate(schedules)}
        made = dict(self._ended(futures, "row {} of the pictures".format))
        return torch.cat([torch.from_numpy(made[k]) for k in range(len(schedules))])

    def measure(self, jobs: Sequence[tuple[Schedule, range]]) -> Iterator[tuple[int, Measurement]]:
        """Yield (place in `jobs`, measurement) as they are done, in any order."""
        futures = {
            place: self._submit(_measure, schedule.to_json(), seeds)
            for place, (schedule, seeds) in enumerate(jobs)
        }

        def named(place: int) -> str:
            schedule, seeds = jobs[place]
            return f"{counted(len(seeds), 'image')} of {counted(schedule.passes, 'pass')}"

        return self._ended(futures, named)

    def polish(
        self, schedules: Sequence[Schedule], settings: Settings
    ) -> Iterator[tuple[int, Polished | str]]:
        """(place, what gradients made of that schedule, or why there are none), in any order."""
        futures = {k: self._submit(_polish, s.to_json(), settings) for k, s in enumerate(schedules)}
        return self._ended(futures, "the polish of schedule {}".format)

    def search(self) -> list["Future[int]"]:
        """Start every worker on the folder's search; the futures hold their numbers of trials."""
        return [self._submit(_search) for _ in range(self.count)]

    def _submit(self, call: Callable[..., T], /, *inputs: object) -> "Future[T]":
        try:
            return self._pool.submit(call, *inputs)
        except BrokenProcessPool as error:
            raise UserError(DIED) from error

    def _ended(
        self, futures: "Mapping[K, Future[T]]", named: Callable[[K], str]
    ) -> Iterator[tuple[K, T]]:
        """The futures' results as they come; what takes long is said."""
        watch, waiting = Watch(), {future: key for key, future in futures.items()}

        def what() -> str:
            first = [named(key) for key in list(waiting.values())[:SHOWN]]
            more = f" and {len(waiting) - SHOWN} more" if len(waiting) > SHOWN else ""
            numbers = ", ".join(str(process.pid) for process in self._processes())
            return f"{'; '.join(first)}{more}, in the worker processes {numbers}"

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
            raise UserError(DIED) from error


class _Pool(ProcessPoolExecutor):
    """Its processes begin with Ctrl-C blocked: while they load they could not yet ignore it."""

    def submit(self, call: Callable[..., T], /, *inputs: Any, **named: Any) -> "Future[T]":
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return super().submit(call, *inputs, **named)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class InThisProcess(Workers):
    """One worker that is the process itself, for work that is done before another one starts."""

    def __init__(self, config: StudyConfig, folder: Path, device: str = "cpu") -> None:
        global _self
        self.config, self.folder, self.count, self.say = config, folder, 1, note
        _, self._line = Pipe(duplex=False)
        self._pool = _AtOnce()
        _self = _Self(config, folder, 0, device)


class _AtOnce(Executor):
    """Does what is submitted before it returns."""

    def submit(self, call: Callable[..., T], /, *inputs: Any, **named: Any) -> "Future[T]":
        future: Future[T] = Future()
        future.set_result(call(*inputs, **named))
        return future


def _start(
    config: StudyConfig,
    folder: Path,
    queue: "Queue[tuple[int, str]]",
    threads: int,
    line: Connection,
    storage: str | None,
    may_run_code: bool,
) -> None:
    global _self
    allow_code(may_run_code)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _follow_parent(line)
    number, device = queue.get()
    if device == "cpu":
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
    if _self.config.search.polish:
        check_gradients(evaluator)
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


def _placement(name: str, num_steps: int, guidance_scale: float) -> Placement:
    return recall_or_place(_self.load(), name, num_steps, guidance_scale)


def _measure(schedule: str, seeds: range) -> Measurement:
    return _self.load().measure(Schedule.from_json(schedule), seeds)


def _polish(schedule: str, settings: Settings) -> Polished | str:
    try:
        return polish(_self.load(), Knobs(Schedule.from_json(schedule), "gain"), settings)
    except (UserError, NotFiniteError) as error:
        return str(error)


def _images(schedule: str, seeds: range) -> NDArray[np.uint8]:
    return _self.load().images(Schedule.from_json(schedule), seeds).numpy()


def _search() -> int:
    return work(_self.folder, _self.config, _self.load(), _self.number, _self.storage)
