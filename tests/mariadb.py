"""A MariaDB server of a test's own, as `postgres.py` has PostgreSQL."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

USER = "nobody"  # whom the server must be where a test is root


def program(name):
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/bin")


class MariaDB:
    password = "s3cret-w0rd"

    def __init__(self):
        if not program("mariadbd") or not program("mariadb-install-db"):
            pytest.skip("MariaDB is not installed (Debian: apt-get install mariadb-server-core)")
        self.folder = Path(tempfile.mkdtemp(prefix="mariadb-"))
        if os.getuid() == 0:
            shutil.chown(self.folder, USER)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        base = Path(program("mariadbd")).parents[1]
        common = ["--no-defaults", f"--basedir={base}", f"--datadir={self.folder}/data"]
        # not by subprocess, whose fork gRPC would not survive
        common += [f"--user={USER}"] if os.getuid() == 0 else []
        start = self.folder / "start.sql"
        start.write_text(
            "create database if not exists x;\n"
            f"create user if not exists me@'127.0.0.1' identified by '{self.password}';\n"
            "grant all on *.* to me@'127.0.0.1';\n"
        )
        start.chmod(0o644)
        options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": self.folder}
        command = [program("mariadb-install-db"), *common, *options]
        subprocess.run(command, check=True, **quiet)
        options = [f"--port={self.port}", "--bind-address=127.0.0.1", "--skip-name-resolve"]
        options += [f"--init-file={start}"]
        options += [f"--socket={self.folder}/socket", f"--pid-file={self.folder}/pid"]
        command = [program("mariadbd"), *common, *options]
        self._server = subprocess.Popen(command, **quiet)
        self._wait()

    @property
    def address(self):
        return f"mysql://me:{self.password}@127.0.0.1:{self.port}/x"

    def _wait(self):
        until = time.monotonic() + 120
        while True:
            with socket.socket() as trying:
                if trying.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self._server.poll() is None, "the server ended"
            assert time.monotonic() < until, "the server did not start"
            time.sleep(0.2)

    def remove(self):
        self._server.kill()
        self._server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
