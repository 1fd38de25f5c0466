"""A batch is made while the one before it is measured, where a GPU does the work.

Python is then never waited for: while it waits for features or writes them down, the device has the
next batch. A CPU has nothing to gain, as its cores are busy already.
"""

import queue
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TypeVar

import torch

T = TypeVar("T")
LOOK = 0.1  # seconds between two looks at whether a batch is still wanted


@contextmanager
def made_ahead(batches: Iterator[T], device: torch.device) -> Iterator[Iterator[T]]:
    """Inside, the same batches in the same order, on CUDA made in advance by a thread.

    Beside the one that is measured, one is ready and one being made. What making them raises is
    raised where the next one is asked for. Outside, nothing is being made any more: whoever leaves
    early waits for the batch under way.
    """
    if device.type != "cuda":
        yield batches
        return
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=1)
    enough = threading.Event()

    def put(item: tuple[T | None, BaseException | None]) -> None:
        while not enough.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=LOOK)
                return

    def make() -> None:
        try:
            for batch in batches:
                put((batch, None))
                if enough.is_set():
                    return
            put((None, None))
        except BaseException as error:  # for whoever waits
            put((None, error))

    def taken() -> Iterator[T]:
        while True:
            batch, error = ready.get()
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # which would keep itself, and the tensors of the failed batch
            if batch is None:
                return
            yield batch

    thread = threading.Thread(target=make, name="batches", daemon=True)
    thread.start()
    try:
        with aside(device):
            yield taken()
    finally:
        enough.set()
        thread.join()


def aside(device: torch.device) -> AbstractContextManager[object]:
    """A queue of the device's own for what is measured, or else it would stand behind the batch."""
    if device.type != "cuda":
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
