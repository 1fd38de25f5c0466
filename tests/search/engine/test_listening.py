"""What a run starts on this machine is not to be reached from another one."""

import os
from pathlib import Path

import pytest
from running import settings

from stepsearch.engine.workers import Workers

LISTENS = "0A"  # as the kernel says it
LOOPBACK = ("0100007F", "00000000000000000000000001000000")


def listening(pids):
    """The addresses, in hexadecimal, on which some processes listen."""
    sockets = {
        os.readlink(link)
        for pid in pids
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if link.is_symlink() and os.path.lexists(link)
    }
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS and f"socket:[{fields[9]}]" in sockets:
                found.append(fields[1].split(":")[0])
    return found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel is not Linux's")
def test_a_run_and_its_workers_listen_to_nobody(tmp_path):
    with Workers(settings(), tmp_path, ["cpu"]) as workers:
        pid = workers._submit(os.getpid).result()
        assert listening([pid]) == []
        assert listening([os.getpid()]) == []


def test_a_database_of_the_tests_listens_on_the_loopback(server):
    import psycopg

    with psycopg.connect(server.address) as connection:
        (where,) = connection.execute("show listen_addresses").fetchone()
    assert where == "127.0.0.1"
    leader = int((server.folder / "data" / "postmaster.pid").read_text().splitlines()[0])
    assert set(listening([leader])) <= set(LOOPBACK)
    assert listening([leader])
