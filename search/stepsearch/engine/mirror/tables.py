"""A new SQLite database of MLflow's has all its tables, or is not there."""

import os
import secrets
from contextlib import suppress
from pathlib import Path


def create_tables(uri: str) -> None:
    """Create the database file of an address where there is none; other addresses are let alone.

    MLflow makes the tables in some fifty steps. A file that a kill leaves between two of them is of
    no use to it any more, and two processes that begin at the same time break each other's. So that
    is done under another name.
    """
    from sqlalchemy import URL, make_url
    from sqlalchemy.exc import ArgumentError

    try:
        address = make_url(uri)
    except ArgumentError:
        return  # MLflow says so
    if address.get_backend_name() != "sqlite" or address.database in (None, "", ":memory:"):
        return
    path = Path(str(address.database)).absolute()
    if path.exists() or address.query:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        _create(URL.create("sqlite", database=str(part)).render_as_string())
        _name(part, path)
    finally:
        part.unlink(missing_ok=True)


def _create(uri: str) -> None:
    from mlflow import MlflowClient

    MlflowClient(tracking_uri=uri).search_experiments(max_results=1)


def _name(part: Path, path: Path) -> None:
    """Unless somebody else was faster."""
    try:
        with suppress(FileExistsError):
            os.link(part, path)
    except OSError:  # a file system without links
        if not path.exists():
            os.replace(part, path)
