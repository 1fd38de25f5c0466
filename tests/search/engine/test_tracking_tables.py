"""The tables of a new database of MLflow's: all of them or none, whoever dies meanwhile."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing

from stepsearch.engine.mirror import tables
from stepsearch.engine.mirror.stores import Store

DIES = """
import os, sys
from pathlib import Path
from sqlalchemy import event
from sqlalchemy.engine import Engine
from stepsearch.engine.mirror.stores import Store

@event.listens_for(Engine, "after_cursor_execute")
def ask(connection, cursor, statement, *_):  # changed, and not yet noted as changed
    if statement.startswith("ALTER TABLE runs ADD COLUMN deleted_time"):
        os._exit(9)

Store(None, Path(sys.argv[1])).connect().search_experiments()
"""


def test_a_kill_while_mlflow_creates_its_tables_leaves_no_half_of_them(tmp_path):
    killed = subprocess.run([sys.executable, "-c", DIES, tmp_path], check=False)
    assert killed.returncode == 9
    store = Store(None, tmp_path)
    client = store.connect()
    store.experiment(client)
    assert {e.name for e in client.search_experiments()} == {"Default", "stepsearch"}


def test_of_two_that_create_a_database_at_once_both_use_the_first(tmp_path, monkeypatch):
    path = tmp_path / "a folder" / "team.db"

    def create(uri):
        with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as base:
            base.execute(f"CREATE TABLE of_the_{'second' if path.exists() else 'first'} (x)")

    def slow(uri):
        monkeypatch.setattr(tables, "_create", create)
        tables.create_tables(f"sqlite:///{path}")  # another process, which is faster
        create(uri)

    monkeypatch.setattr(tables, "_create", slow)
    tables.create_tables(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as base:
        assert base.execute("SELECT name FROM sqlite_master").fetchall() == [("of_the_first",)]
    assert os.listdir(path.parent) == ["team.db"]


def test_only_files_of_sqlite_are_created(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for uri in ("http://127.0.0.1:1", "sqlite://", "sqlite:///:memory:", "postgresql://h/x", "x"):
        tables.create_tables(uri)
    assert list(tmp_path.iterdir()) == []
