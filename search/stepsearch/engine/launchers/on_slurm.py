"""Workers as jobs of SLURM, through submitit: one job each, requeued where one is preempted."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, UncompletedJobError

from stepsampler.errors import UserError
from stepsearch.engine.launchers.placing import RESTARTS, Place, number
from stepsearch.engine.store.addresses import passwords_of, without_passwords

STORAGE = "STEPSEARCH_STORAGE"  # in the environment, which jobs inherit: no file has it
LOGS = "slurm"  # folder of scripts and logs, in that of the run
QUOTED = "-" * 22  # submitit's line before and after a job's traceback
AGAIN = 5.0  # seconds between two looks at the queue


class _Work(submitit.helpers.Checkpointable):  # type: ignore[misc]  # requeued as it was
    """What a job runs; submitit keeps it in a file."""

    def __init__(self, place: Place, above: Path) -> None:
        self.place, self.above = place, above

    def __call__(self) -> None:
        self.place.work(self.above, os.environ[STORAGE])


class OnSlurm:
    """Jobs that begin when SLURM has room for them; those that fail are submitted again.

    Options are submitit's: `slurm_partition`, `timeout_min`, `gpus_per_node`, `mem_gb`, …; and
    `cluster=local` for processes of this machine. A worker on a GPU asks for one.
    """

    def __init__(
        self, place: Place, folder: Path, storage: str, count: int, options: Mapping[str, str]
    ) -> None:
        self._storage, self._checked = storage, 0.0
        asked: dict[str, Any] = {"name": place.name, "timeout_min": 24 * 60}
        asked |= {"gpus_per_node": 1} if place.device.startswith("cuda") else {}
        asked |= {key: number(value) for key, value in options.items() if key != "cluster"}
        self._logs = folder.resolve() / LOGS
        self._work = _Work(place, folder.resolve().parent)
        try:
            self._executor = submitit.AutoExecutor(self._logs, options.get("cluster", "slurm"))
            self._executor.update_parameters(**asked)
            self._jobs = [self._submit() for _ in range(count)]
        except (NameError, ValueError, TypeError, RuntimeError, FailedJobError) as error:
            raise UserError(f"--launcher slurm: {self._told(error)}") from error
        self._left = count * RESTARTS

    def _submit(self) -> Any:
        before = os.environ.get(STORAGE)
        os.environ[STORAGE] = self._storage
        try:
            return self._executor.submit(self._work)
        finally:
            del os.environ[STORAGE]
            if before is not None:
                os.environ[STORAGE] = before

    def check(self) -> None:
        if time.monotonic() - self._checked < AGAIN:
            return
        self._checked = time.monotonic()
        ended = [k for k, job in enumerate(self._jobs) if job.done()]
        for k in ended:
            if self._left and self._failed(k):
                self._left -= 1
                self._jobs[k] = self._submit()
        if not all(job.done() for job in self._jobs):
            return
        reasons = [reason for k in ended if (reason := self._failed(k))]
        reason = reasons[-1] if reasons else "they ended without an error"
        raise UserError(
            f"all {len(self._jobs)} workers on SLURM have ended before the run: {reason}; their "
            f"logs are in {self._logs}"
        )

    def _failed(self, k: int) -> str | None:
        try:
            error = self._jobs[k].exception()
        except UncompletedJobError as lost:  # killed, so that it left no result
            error = lost
        return None if error is None else self._told(error)

    def leave(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not all(job.done() for job in self._jobs):
            time.sleep(0.5)
        for job in self._jobs:
            if not job.done():
                job.cancel(check=False)

    def _told(self, error: BaseException) -> str:
        """Its own first line, or the last one of a job's traceback, which submitit quotes."""
        parts = str(error).split(QUOTED)
        lines = parts[1 if len(parts) > 2 else 0].strip().splitlines() or [type(error).__name__]
        line = lines[-1 if len(parts) > 2 else 0]
        return without_passwords(line, passwords_of(self._storage))
