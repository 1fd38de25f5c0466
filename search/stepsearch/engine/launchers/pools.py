"""Who does what is submitted: processes that Ctrl-C does not reach too early, or this one."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


def threads_each(workers: int) -> int | None:
    """Threads of each worker on the CPU: its share of the cores that this process may use.

    None where OMP_NUM_THREADS says how many, which torch follows by itself.
    """
    if os.environ.get("OMP_NUM_THREADS"):
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // workers)


ENDS = (signal.SIGINT, signal.SIGTERM)


class Pool(ProcessPoolExecutor):
    """Its processes begin with Ctrl-C blocked: while they load they could not yet ignore it. Nor
    does SIGTERM meet them, or this process, half begun: they are to unblock that one."""

    def submit(self, call: Callable[..., T], /, *inputs: Any, **named: Any) -> "Future[T]":
        with _later():
            before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
            try:
                return super().submit(call, *inputs, **named)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _later() -> Iterator[None]:
    """Python's handlers of these signals run behind what is within. They run in the main thread,
    though it blocks the signal, where another thread gets it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {end: handler for end in ENDS if callable(handler := signal.getsignal(end))}
    met: list[tuple[int, FrameType | None]] = []
    for end in usual:
        signal.signal(end, lambda *given: met.append(given))
    try:
        yield
    finally:
        for end, handler in usual.items():
            signal.signal(end, handler)
        if met:
            number, frame = met[0]
            usual[signal.Signals(number)](number, frame)


class AtOnce(Executor):
    """Does what is submitted before it returns."""

    def submit(self, call: Callable[..., T], /, *inputs: Any, **named: Any) -> "Future[T]":
        future: Future[T] = Future()
        future.set_result(call(*inputs, **named))
        return future
