"""What a worker hands on that is too much for a trial's attributes: bytes, in one of two places.

Optuna's artifact stores where an address names one: a folder that all machines see, `s3://` or
`gs://`. Else the database of the trials, which needs nothing beside it: a study of its own, whose
trials nobody lists, holds the bytes in pieces.
"""

import hashlib
import io
import secrets
from base64 import b64decode, b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import optuna
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from stepsampler.errors import UserError

PIECE = 45_000  # bytes; in base64 it fits into the 65,535 of MySQL's column for text
PIECES = 48  # of one trial: 4 MiB are the largest message that gRPC lets pass
MOST = 256 * 1024 * 1024  # bytes of one parcel in a database; more wants a store of its own

Ticket = list[Any]  # digest, and where the bytes are


class Parcels(Protocol):
    """A place for bytes that every worker of a run reaches."""

    def put(self, content: bytes) -> Ticket:
        """Keep them; the ticket is for `get`, and fits into an attribute of a trial."""
        ...

    def get(self, ticket: Ticket) -> bytes | None:
        """The bytes, or None: they are lost or damaged."""
        ...


def open_parcels(storage: BaseStorage, name: str, address: str | None) -> Parcels:
    """The place at an address (`check_artifacts`), or in the database of the run `name`.

    Raises:
        UserError: a driver is not installed.
    """
    return InDatabase(storage, f"{name}/parcels") if address is None else InStore(address)


def check_artifacts(address: str) -> str:
    """The address as workers elsewhere understand it: a folder from its root on.

    Raises:
        UserError: another kind of address, no bucket, or a password in it.
    """
    scheme, sign, rest = address.partition("://")  # urlsplit refuses letters of a password
    bucket = rest.partition("/")[0]
    if sign and (scheme not in ("s3", "gs") or not bucket):
        raise UserError(
            f"--artifacts must be a folder, s3://bucket or gs://bucket, got {scheme}://…"
        )
    if sign and "@" in rest:
        raise UserError(
            "--artifacts: no password belongs into the address; the driver finds it in its "
            "environment (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS)"
        )
    return address if sign else str(Path(address).absolute())


class InDatabase:
    """Pieces in the attributes of trials, as many trials as it takes."""

    def __init__(self, storage: BaseStorage, name: str) -> None:
        # the trials are read one by one, by their numbers in the storage, and never listed
        study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
        self._storage, self._study_id = storage, study._study_id

    def put(self, content: bytes) -> Ticket:
        if len(content) > MOST:
            raise UserError(
                f"{len(content):,} bytes are too many for the database of the trials: give a "
                "folder, s3://bucket or gs://bucket with --artifacts"
            )
        pieces = [content[k : k + PIECE] for k in range(0, len(content), PIECE)]
        trials = []
        for start in range(0, len(pieces), PIECES):
            trial = self._storage.create_new_trial(self._study_id)
            for k, piece in enumerate(pieces[start : start + PIECES]):
                self._storage.set_trial_user_attr(trial, str(k), b64encode(piece).decode())
            self._storage.set_trial_state_values(trial, TrialState.COMPLETE, [0.0])
            trials.append(trial)
        return [_digest(content), *trials]

    def get(self, ticket: Ticket) -> bytes | None:
        found = []
        try:
            for trial in ticket[1:]:
                pieces = self._storage.get_trial(trial).user_attrs
                found += [b64decode(pieces[str(k)]) for k in range(len(pieces))]
        except (KeyError, ValueError):
            return None
        return _whole(b"".join(found), ticket)


class InStore:
    """One artifact each, of a name that is never used twice: half of one is never read."""

    def __init__(self, address: str) -> None:
        self._store, self._prefix = _store(address)

    def put(self, content: bytes) -> Ticket:
        name = f"{self._prefix}{secrets.token_hex(16)}"
        self._store.write(name, io.BytesIO(content))
        return [_digest(content), name]

    def get(self, ticket: Ticket) -> bytes | None:
        try:
            with self._store.open_reader(ticket[1]) as file:
                return _whole(file.read(), ticket)
        except ArtifactNotFound:
            return None


def _store(address: str) -> tuple[Any, str]:
    """One of Optuna's artifact stores, and what the names in it begin with."""
    parts = urlsplit(address)
    if "://" not in address:
        from optuna.artifacts import FileSystemArtifactStore

        Path(address).mkdir(parents=True, exist_ok=True)
        return FileSystemArtifactStore(address), ""
    prefix = parts.path.strip("/")
    prefix = f"{prefix}/" if prefix else ""
    try:
        if parts.scheme == "s3":
            from optuna.artifacts import Boto3ArtifactStore

            return Boto3ArtifactStore(parts.netloc), prefix
        from optuna.artifacts import GCSArtifactStore

        return GCSArtifactStore(parts.netloc), prefix
    except ImportError as error:
        driver = {"s3": "boto3", "gs": "google-cloud-storage"}[parts.scheme]
        raise UserError(f"--artifacts {parts.scheme}://… needs: pip install {driver}") from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _whole(content: bytes, ticket: Sequence[Any]) -> bytes | None:
    return content if _digest(content) == ticket[0] else None
