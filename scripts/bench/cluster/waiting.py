"""How long workers wait for their storage."""

import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna

from cluster.builds import HERE, clock, scheduled
from cluster.stub import FLOOR, NAME, Stub, settings
from stepsampler.errors import percent
from stepsearch.config import StudyConfig
from stepsearch.engine.study import finished, open_study, read_study, run_trials

STORAGES = ("journal", "postgres", "grpc")
PROXY = """
import sys
from optuna.storages import RDBStorage, get_storage, run_grpc_proxy_server
run_grpc_proxy_server(get_storage(RDBStorage(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]))
"""


def waiting(
    storages: list[str], workers: list[int], seconds: float, each: int, others: int
) -> None:
    print(
        f"trials of {seconds:g} s, {each} a worker: shares of the workers' time, CPU ms a trial, "
        "and connections to PostgreSQL"
    )
    heads = ("not measuring", "in the storage", "kept from a core", "worker", "servers")
    print(f"| storage | workers | {' | '.join(heads)} | connections |")
    print("|---" * 8 + "|")
    for kind in storages:
        for count in workers:
            with tempfile.TemporaryDirectory() as folder, storage(kind) as place:
                found, servers, most = worked(Path(folder), place, count, seconds, each, others)
            whole = sum(row["whole"] for row in found)
            outside = 1 - sum(row["slept"] for row in found) / whole
            inside, core = (sum(row[k] for row in found) / whole for k in ("storage", "core"))
            shares = (percent(share, ".2") for share in (outside, inside, core))
            cpu = [1000 * x / count / each for x in (sum(row["cpu"] for row in found), servers)]
            print(
                f"| {kind} | {count} | {' | '.join(shares)} | {cpu[0]:.0f} "
                f"| {cpu[1]:.0f} | {most or ''} |",
                flush=True,
            )


def worked(
    root: Path, place: "Place", workers: int, seconds: float, each: int, others: int
) -> tuple[list[dict[str, float]], float, int]:
    """Seconds of what each worker's time went to, the servers' of CPU, and the most connections.

    Raises:
        SystemExit: the budget was not met once.
    """
    config, address = settings(workers * each + others), place.address
    context = get_context("fork")  # what is imported here is there once
    optuna.storages.RDBStorage("sqlite://").engine.dispose()  # imports as it opens
    gc.collect()
    gc.freeze()
    start = context.Barrier(workers)
    folders = [root / (f"{k}/{NAME}" if address else NAME) for k in range(workers)]
    with context.Pool(1) as pool:
        pool.apply(_create, (folders[0], config, address, others))
    most, before = 0, place.computed()
    with context.Pool(workers, _at_once, (start,)) as pool:
        # over a trial's time: all at once they would queue for this machine's cores
        jobs = [(folders[k], config, address, k, seconds, workers) for k in range(workers)]
        rows = pool.starmap_async(_work, jobs, chunksize=1)
        while not rows.ready():
            rows.wait(1)
            most = max(most, place.connected())
        found, servers = rows.get(), place.computed() - before
    with context.Pool(1) as pool:
        done = pool.apply(_count, (folders[0], config, address))
    if done != workers * each:
        raise SystemExit(f"{done} trials were measured of a budget of {workers * each}")
    return found, servers, most


def _create(folder: Path, config: StudyConfig, address: str | None, others: int) -> None:
    study, space = open_study(folder, config, storage=address), Stub().space(config)
    for number in range(others):  # workers elsewhere have these
        trial = study.ask()
        trial.set_user_attr("worker", ["host", str(number), "machine", "word"])
        params = {
            name: trial.suggest_float(name, d.low, d.high, log=d.log)
            for name, d in space.distributions.items()
        }
        trial.set_user_attr("schedule", space.schedule(params).to_json())


def _count(folder: Path, config: StudyConfig, address: str | None) -> int:
    return len(finished(read_study(folder, config, address)))


def _at_once(start: Any) -> None:
    global _start
    _start = start
    # a pool ends its processes by this signal, which a handler of Python may hear too late
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _work(
    folder: Path, config: StudyConfig, address: str | None, number: int, seconds: float, of: int
) -> dict[str, float]:
    stub = Stub(seconds, number)
    space = stub.space(config)
    study = open_study(folder, config, number, address)
    spent = timed(study._storage)
    _start.wait()  # so that nobody does two of these
    time.sleep(seconds * number / of)
    began, (cpu, core), spent[0] = clock(), scheduled(), 0.0
    run_trials(study, folder, config, space, stub, FLOOR)
    return {
        "whole": clock() - began,
        "slept": stub.slept,
        "storage": spent[0],
        "cpu": scheduled()[0] - cpu,
        "core": scheduled()[1] - core,
    }


def timed(storage: Any) -> list[float]:
    """The seconds that this thread spends in calls of a storage, which are counted from now on."""
    spent, inside = [0.0], [False]

    def wrapped(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any, **named: Any) -> Any:
            if inside[0] or threading.get_ident() != here:
                return method(*inputs, **named)
            inside[0], began = True, clock()
            try:
                return method(*inputs, **named)
            finally:
                inside[0] = False
                spent[0] += clock() - began

        return call

    here = threading.get_ident()
    for name in optuna.storages.BaseStorage.__abstractmethods__ | {"get_best_trial"}:
        setattr(storage, name, wrapped(getattr(storage, name)))
    return spent


@dataclass(frozen=True)
class Place:
    """Where trials are kept: an address, None for a journal; and what its servers do."""

    address: str | None = None
    servers: tuple[int, ...] = ()
    connected: Callable[[], int] = lambda: 0

    def computed(self) -> float:
        """CPU seconds of the servers and their processes, ended ones included."""
        return sum(map(computed, self.servers))


def computed(process: int) -> float:
    """CPU seconds of a process and all that came of it (Linux)."""
    try:
        numbers = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:  # it has ended meanwhile
        return 0.0
    own = sum(map(int, numbers[11:15])) / os.sysconf("SC_CLK_TCK")
    return own + sum(computed(int(child)) for child in children)


@contextmanager
def storage(kind: str) -> Iterator[Place]:
    if kind == "journal":
        yield Place()
        return
    sys.path.insert(0, str(HERE / "tests"))
    import grpc  # noqa: F401 - before processes are forked
    import psycopg
    from postgres import Postgres, program

    if not program("initdb"):
        raise SystemExit("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    server = Postgres(connections=600)
    try:
        with psycopg.connect(server.address, autocommit=True) as connection:

            def connected() -> int:
                query = "select count(*) from pg_stat_activity where client_addr is not null"
                return int(connection.execute(query).fetchone()[0]) - 1

            main = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
            if kind == "postgres":
                yield Place(server.address, (main,), connected)
            else:
                with proxy(server.address) as (address, process):
                    yield Place(address, (main, process), connected)
    finally:
        server.remove()


@contextmanager
def proxy(address: str) -> Iterator[tuple[str, int]]:
    """Optuna's gRPC proxy before a database, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = address.replace("postgresql:", "postgresql+psycopg:")
    process = subprocess.Popen([sys.executable, "-c", PROXY, address, str(port)])
    try:
        while True:
            with socket.socket() as trying:
                if trying.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                raise SystemExit("the proxy did not start")
            time.sleep(0.2)
        yield f"grpc://127.0.0.1:{port}", process.pid
    finally:
        process.kill()
        process.wait()
