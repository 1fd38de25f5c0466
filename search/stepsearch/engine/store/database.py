"""Trials in a database that workers of several machines share, through Optuna's own storages.

PostgreSQL and MySQL by their addresses, or Optuna's gRPC proxy before one of them
(`grpc://host:port`), which hundreds of workers want. A server that is down for a while is waited
for; what it refuses for good is said.
"""

import copy
import time
from abc import update_abstractmethods
from collections.abc import Callable, Container
from math import inf
from typing import Any
from urllib.parse import urlsplit

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.trial import FrozenTrial, TrialState

from stepsampler.errors import UserError, note
from stepsearch.engine.store.addresses import passwords_of, without_passwords

SCHEMES = ("postgresql", "mysql", "grpc")
PATIENCE = 600.0  # seconds for a server that answered before
FRESH = 0.25  # seconds for which a list of trials is good
PAUSE = 10.0  # seconds at most between two attempts
PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0)  # seconds, while others create the tables of a new database
CONNECT = 10  # seconds for the first answer of a server
DRIVERS = {"postgresql": "psycopg", "mysql": "pymysql", "grpc": "grpc"}


def open_database(address: str) -> "Shared":
    """The storage at an address.

    Raises:
        UserError: an address of another kind, a driver that is not installed, or nobody answers.
    """
    # urlsplit refuses letters of a password, and shows it then
    scheme = address.partition(":")[0].partition("+")[0]
    if scheme not in SCHEMES:
        shown = without_passwords(address, passwords_of(address))
        raise UserError(
            "--storage must be postgresql://…, mysql://… or grpc://host:port; without it a run "
            f"keeps its trials in its folder; got {shown!r}"
        )
    try:
        inner = _grpc(address) if scheme == "grpc" else _rdb(address, scheme)
        inner.get_all_studies()
    except ImportError as error:
        raise UserError(
            f"--storage {scheme}://… needs {error.name or DRIVERS[scheme]}: "
            "pip install 'stepsearch[cluster]'"
        ) from error
    except UserError:
        raise
    except Exception as error:
        if not passing(error):
            raise UserError(_told(address, error)) from error
        raise UserError(f"{_told(address, error)}; is the server there?") from error
    return Shared(inner, address)  # type: ignore[abstract]  # see the end of this file


def _rdb(address: str, scheme: str) -> BaseStorage:
    if "+" not in address.partition(":")[0]:  # the driver that our extra installs
        address = address.replace(f"{scheme}:", f"{scheme}+{DRIVERS[scheme]}:", 1)
    limited = {"pool_pre_ping": True, "connect_args": {"connect_timeout": CONNECT}}
    # Optuna keeps what has ended in memory only behind this call. Its heartbeats are not used:
    # they belong to its own loop, and do not pass through a proxy.
    for pause in PAUSES:
        try:
            return get_storage(RDBStorage(address, engine_kwargs=limited))
        except Exception as error:
            if not _created_twice(error):
                raise
        time.sleep(pause)
    return get_storage(RDBStorage(address, engine_kwargs=limited))


def _created_twice(error: BaseException) -> bool:
    """Whether another process was just creating the tables of an empty database.

    Optuna looks whether they are there and then creates them, so that of many workers that open a
    new database at the same time all but one can be told that they exist already.
    """
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"IntegrityError", "ProgrammingError"})


def _grpc(address: str) -> BaseStorage:
    import grpc
    from optuna.storages import GrpcStorageProxy

    try:
        parts = urlsplit(address)
        host, port, path = parts.hostname, parts.port, parts.path
    except ValueError:
        host = port = path = None
    if not host or not port or path not in ("", "/"):
        shown = without_passwords(address, passwords_of(address))
        raise UserError(f"--storage must be grpc://host:port, got {shown!r}")
    try:
        grpc.channel_ready_future(grpc.insecure_channel(f"{host}:{port}")).result(CONNECT)
    except grpc.FutureTimeoutError:
        raise ConnectionError(f"no answer in {CONNECT} seconds") from None
    return GrpcStorageProxy(host=host, port=port)


def passing(error: BaseException) -> bool:
    """Whether an error may be over soon: a server that is down, restarts or lost a connection."""
    if isinstance(error, ConnectionError):
        return True
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    kinds = {kind.__name__ for kind in type(cause).__mro__}
    if "RpcError" in kinds:
        # UNKNOWN is an error of the database behind the proxy
        return cause.code().name in ("UNAVAILABLE", "UNKNOWN", "INTERNAL")  # type: ignore[union-attr]
    # The last where Optuna takes a connection that breaks off while it reads for too long a query,
    # and asks another way in the same transaction.
    lost = {"OperationalError", "InterfaceError", "TimeoutError", "PendingRollbackError"}
    return bool(kinds & lost)


def _told(address: str, error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, StorageInternalError) else None
    lines = str(cause or error).strip().splitlines() or [type(error).__name__]
    shown = without_passwords(address, passwords_of(address))
    return f"--storage {shown}: {without_passwords(lines[0], passwords_of(address))}"


class Shared(BaseStorage):
    """An Optuna storage whose server may be away for a while.

    `say` hears what is waited for. Every call is tried again for `PATIENCE` seconds; one that was
    done and whose answer was lost is done twice, which leaves a trial that nobody signs, or is told
    as a trial that has ended.

    A list of trials is `FRESH` seconds old at most, and as it is after all that this process wrote.
    The server sends every trial that is under way for each list, with its attributes: of 64 workers
    that is the most of what a search asks of it.

    Raises:
        UserError: the server stayed away.
    """

    def __init__(self, inner: BaseStorage, address: str, say: Callable[[str], None] = note) -> None:
        self.inner, self.address, self.say = inner, address, say
        self._lists: dict[int, tuple[float, list[FrozenTrial]]] = {}
        self._written = 0

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        asked, written = time.monotonic(), self._written
        since, trials = self._lists.get(study_id, (-inf, []))
        if asked - since > FRESH:
            trials = self._call("get_all_trials", study_id, deepcopy=False)
            if written == self._written:  # else another thread's writing may not be in it
                self._lists[study_id] = asked, trials
        found = [trial for trial in trials if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def __getstate__(self) -> None:
        raise TypeError("an open storage stays in its process")

    def _call(self, method: str, *inputs: Any, **named: Any) -> Any:
        began, pause, said = time.monotonic(), 0.25, False
        while True:
            try:
                return getattr(self.inner, method)(*inputs, **named)
            except Exception as error:
                if not passing(error):
                    raise
                if time.monotonic() - began > PATIENCE:
                    raise UserError(
                        f"{_told(self.address, error)}; it stayed away for "
                        f"{PATIENCE / 60:.0f} minutes. The same command goes on when it is back"
                    ) from error
                if not said:
                    said = True
                    self.say(
                        f"{_told(self.address, error)}; tried again for {PATIENCE / 60:.0f} minutes"
                    )
            time.sleep(pause)
            pause = min(2 * pause, PAUSE)


def _forwarded(method: str) -> Callable[..., Any]:
    def read(self: Shared, *inputs: Any, **named: Any) -> Any:
        return self._call(method, *inputs, **named)

    def write(self: Shared, *inputs: Any, **named: Any) -> Any:
        try:
            return self._call(method, *inputs, **named)
        finally:
            self._written += 1
            self._lists.clear()

    return read if method.startswith("get_") else write


# all that an Optuna storage must be able to do
for _method in BaseStorage.__abstractmethods__ - {"get_all_trials"}:
    setattr(Shared, _method, _forwarded(_method))
update_abstractmethods(Shared)  # type: ignore[type-abstract]
