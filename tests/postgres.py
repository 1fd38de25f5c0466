"""A PostgreSQL server of a test's own: a folder, a free port of the loopback, an ordinary user."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

USER = "postgres"  # of Debian's package; as root the server must be somebody else


def program(name: str) -> str | None:
    """Where Debian or the path has it; its newest version."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(versions[-1]) if versions else shutil.which(name)


class Postgres:
    """`address` has a password, so that a test sees where it would be shown."""

    password = "s3cret-w0rd"

    def __init__(self, connections=200):
        if not program("initdb"):
            pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.connections, self._as = connections, []
        if os.getuid() == 0:  # not by subprocess, whose fork gRPC would not survive
            shutil.chown(self.folder, USER)
            self._as = ["runuser", "-u", USER, "--"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        secret = self.folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        self._do("initdb", "-U", "me", "-A", "scram-sha-256", f"--pwfile={secret}", "-N")
        self.start()

    @property
    def address(self):
        return f"postgresql://me:{self.password}@127.0.0.1:{self.port}/postgres"

    def _do(self, name, *options):
        subprocess.run(
            [*self._as, program(name), *options, "-D", str(self.folder / "data")],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
        )

    def start(self):
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -F"
        options += f" -c max_connections={self.connections}"
        log = str(self.folder / "log")
        self._do("pg_ctl", "start", "-w", "-t", "60", "-s", "-l", log, "-o", options)

    def stop(self):
        self._do("pg_ctl", "stop", "-m", "immediate", "-s")

    def remove(self):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
