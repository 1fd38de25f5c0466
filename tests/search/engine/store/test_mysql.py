"""Trials and results in a real MariaDB, which is what `mysql://` means."""

import os

import pytest
import running
from mariadb import MariaDB
from sharing import lead, small, worker

from stepsearch.engine.store import locks
from stepsearch.engine.store.database import open_database
from stepsearch.engine.store.parcels import open_parcels
from stepsearch.engine.study import finished, read_study


@pytest.fixture(scope="module")
def mariadb():
    server = MariaDB()
    yield server
    server.remove()


def test_a_run_in_mysql_is_shared_and_ends_as_one_in_a_folder_does(tmp_path, mariadb, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.1)
    config = small(12)
    helper = worker(tmp_path / "far" / "run", mariadb.address, 12, pause=0.05)
    ours, _ = lead(tmp_path / "run", config, mariadb.address)
    helper.communicate(timeout=120)
    theirs, _, _ = running.run(tmp_path / "journal", config)
    assert len(finished(read_study(tmp_path / "run", config, mariadb.address))) == 12
    assert ours.teacher.measurement.features.tolist() == (
        theirs.teacher.measurement.features.tolist()
    ), "whoever measured it"


def test_results_pass_through_mysqls_columns_as_they_are(mariadb):
    """Text there ends at 65,535 bytes, and in some columns at 2,048 characters."""
    parcels = open_parcels(open_database(mariadb.address), "some", None)
    content = os.urandom(200_000)
    assert parcels.get(parcels.put(content)) == content
