"""Workers as tasks of Ray, on the cluster at an address or on this machine."""

import hashlib
import os
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from stepsampler.errors import UserError
from stepsearch.engine.launchers.placing import RESTARTS, Place, number
from stepsearch.engine.store.addresses import passwords_of, without_passwords
from stepsearch.engine.store.database import CONNECT


def _work(place: Place, storage: str) -> None:
    place.work(folder_of(place, storage), storage)


def folder_of(place: Place, storage: str) -> Path:
    """Where this node keeps what it has measured for a run: nobody else's, and of no other run that
    is called alike."""
    key = hashlib.sha256(f"{place.config} {storage}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"stepsearch-{os.getuid()}" / key


def _check_answer(address: str | None) -> None:
    """Ray itself waits for minutes for a cluster that is not there.

    Raises:
        UserError: nobody answers at host:port, or ray://host:port.
    """
    host, sign, port = (address or "").removeprefix("ray://").rpartition(":")
    if not (sign and port.isdigit()):  # auto, or this machine's own
        return
    try:
        socket.create_connection((host, int(port)), CONNECT).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--launcher ray: nobody answers at address={address}: {error}") from error


class OnRay:
    """One task each; Ray restarts those whose process or node dies.

    Options: `address` of the cluster; all others are of the tasks (`num_gpus`, `num_cpus`, …). A
    worker on a GPU takes a whole one, unless they say otherwise.
    """

    def __init__(
        self, place: Place, folder: Path, storage: str, count: int, options: Mapping[str, str]
    ) -> None:
        address = options.get("address")
        asked: dict[str, Any] = {"num_gpus": int(place.device.startswith("cuda"))}
        asked |= {key: number(value) for key, value in options.items() if key != "address"}
        self._storage = storage
        _check_answer(address)
        try:
            # a task that waits for a free GPU says nothing: the run says what it waits for
            ray.init(address=address, log_to_driver=False, include_dashboard=False)
            task = ray.remote(max_retries=RESTARTS, **asked)(_work)
            # the storage travels as an argument, which no list of tasks shows
            self._tasks = [task.remote(place, storage) for _ in range(count)]
        except (ValueError, TypeError, ConnectionError, RuntimeError) as error:
            ray.shutdown()
            raise UserError(f"--launcher ray: {self._told(error)}") from error

    def check(self) -> None:
        ended, going = ray.wait(self._tasks, num_returns=len(self._tasks), timeout=0)
        if going:
            return
        reason = "they ended without an error"
        for task in ended:
            try:
                ray.get(task)
            except Exception as error:  # of Ray, and whatever a worker raised
                reason = self._told(getattr(error, "cause", None) or error)
        raise UserError(f"all {len(ended)} workers on Ray have ended before the run: {reason}")

    def leave(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        ray.wait(self._tasks, num_returns=len(self._tasks), timeout=max(0.0, seconds))
        if time.monotonic() > until or not seconds:
            for task in self._tasks:
                ray.cancel(task, force=True)
        ray.shutdown()

    def _told(self, error: BaseException) -> str:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return without_passwords(lines[-1], passwords_of(self._storage))
