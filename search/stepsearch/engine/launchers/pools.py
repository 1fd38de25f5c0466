"""Who does what is submitted: processes that Ctrl-C does not reach too early, or this one."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
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


class Pool(ProcessPoolExecutor):
    """Its processes begin with Ctrl-C blocked: while they load they could not yet ignore it. Nor
    does SIGTERM meet them, or this process, half begun: they are to unblock that one."""

    def submit(self, call: Callable[..., T], /, *inputs: Any, **named: Any) -> "Future[T]":
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
        try:
            return super().submit(call, *inputs, **named)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class AtOnce(Executor):
    """Does what is submitted before it returns."""

    def submit(self, call: Callable[..., T], /, *inputs: Any, **named: Any) -> "Future[T]":
        future: Future[T] = Future()
        future.set_result(call(*inputs, **named))
        return future
