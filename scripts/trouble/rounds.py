"""A round from its first process to the last check, in a process of its own.

A plan says what happens in it, such as `journal/none/kill_run+move`: where the trials are (journal,
database), what mirrors them (none, local, server), and which troubles come one after the other.
"""

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from trouble import stub, troubles
from trouble.scene import HANG, Fault, Scene, descendants, kept, small_disk
from trouble.whole import check

LOCAL = 0.75  # share of rounds whose trials are in a journal
MIRRORED = 0.2  # share of rounds with MLflow, which takes seconds to create its tables
SERVED = 0.5  # share of those with a server of MLflow's
READY = 0.7  # share of the others whose database has its tables already
ROUND = 3000.0  # seconds
# Ctrl-C while Python forks, which only processes of ours do: those of a run are spawned.
FORKING = re.compile(r"Exception ignored in: <function _releaseLock.*?KeyboardInterrupt: *\n", re.S)


class Servers:
    """PostgreSQL and MLflow, for all rounds of a call; each starts with the first that wants it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._postgres, self.port = folder, None, 0
        self.number = folder / "mlflow.pid"  # a round, in a process of its own, starts another one
        self.tables = folder / "tables" / "mlflow.db"
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Servers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._postgres:
            self._postgres.remove()
        self.stop_mlflow()

    def postgres(self) -> Any:
        if self._postgres is None:
            from postgres import Postgres, program

            if program("initdb") is None:
                return None
            self._postgres = Postgres()
        return self._postgres

    def empty_mlflow(self) -> None:
        """Create the tables that a round may begin with."""

        def do() -> None:
            from mlflow import MlflowClient

            self.tables.parent.mkdir()
            MlflowClient(f"sqlite:///{self.tables}").search_experiments()

        if not self.tables.exists():
            os.waitpid(stub.forked(self.folder / "mlflow.log", do), 0)

    def mlflow(self) -> str:
        if not self.number.exists():
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
            self.start_mlflow()
        return f"http://127.0.0.1:{self.port}"

    def start_mlflow(self) -> None:
        base = self.folder / "mlflow"
        base.mkdir(exist_ok=True)
        words = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port)]
        words += ["--host", "127.0.0.1", "--workers", "1"]
        words += ["--backend-store-uri", f"sqlite:///{base / 'mlflow.db'}"]
        words += ["--artifacts-destination", str(base / "artifacts")]
        with (self.folder / "mlflow.log").open("ab") as log:
            server = subprocess.Popen(
                words,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        self.number.write_text(str(server.pid))
        until = time.monotonic() + HANG
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if time.monotonic() > until or server.poll() is not None:
                raise RuntimeError(f"mlflow server does not start, see {self.folder}/mlflow.log")
            time.sleep(0.2)

    def stop_mlflow(self) -> None:
        """Kill it, and wait until nobody answers."""
        if not self.number.exists():
            return
        for number in descendants(int(self.number.read_text())):
            with suppress(ProcessLookupError):
                os.kill(number, 9)
        until = time.monotonic() + HANG
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                return
            time.sleep(0.05)


def drawn(rng: random.Random) -> str:
    """A plan in which anything may happen; what this machine lacks is left out later."""
    storage = "journal" if rng.random() < LOCAL else "database"
    mirror = "none"
    if rng.random() < MIRRORED:
        mirror = "server" if rng.random() < SERVED else "local"
    known = [*troubles.ALWAYS, "full_disk", "full_disk"]
    known += 3 * ["restart_database"] if storage == "database" else []
    known += 3 * ["restart_mlflow"] if mirror == "server" else []
    known += 2 * ["delete_mlflow", "lock_mlflow"] if mirror == "local" else []
    return f"{storage}/{mirror}/" + "+".join(rng.choice(known) for _ in range(rng.randint(1, 4)))


def play(place: Path, seed: str, servers: Servers, plan: str | None = None) -> tuple[str, bool]:
    """What happened in a round, and whether all held; its folder has the logs of all processes."""
    rng = random.Random(seed)
    plan = plan or drawn(rng)
    storage, mirror, _ = plan.split("/")
    place.mkdir(parents=True)
    database = servers.postgres() if storage == "database" else None
    if storage == "database" and database is None:
        return f"{plan}: not played, PostgreSQL is not installed", True
    tracking = servers.mlflow() if mirror == "server" else mirror
    ready = tracking == "local" and rng.random() < READY
    if ready:
        servers.empty_mlflow()
    given = (place, rng, plan, database, tracking, servers, ready)
    number = stub.forked(place / "round.log", lambda: _play(*given))
    until = time.monotonic() + ROUND
    while not os.waitpid(number, os.WNOHANG)[0]:
        if time.monotonic() > until:
            os.kill(number, 9)
            os.waitpid(number, 0)
            break
        time.sleep(0.05)
    if not (place / "verdict.json").exists():
        return f"{plan}: no verdict, see {place}/round.log", False
    verdict = json.loads((place / "verdict.json").read_text())
    return f"{plan}: {verdict['said']}", verdict["whole"]


def _play(
    place: Path,
    rng: random.Random,
    plan: str,
    database: Any,
    tracking: str,
    servers: Servers,
    ready: bool,
) -> None:
    name = f"{place.name}-{rng.randrange(16**8):08x}"
    nature = stub.Nature(
        pause=rng.choice((0.01, 0.05, 0.2)),
        broken=rng.choice((0.0, 0.0, 0.2)),
        fits=rng.choice((64, 64, 5)),
    )
    scene = Scene(place, name, rng, database and database.address, tracking, nature)

    def restart_database(scene: Scene) -> None:
        scene.tell("PostgreSQL stops")
        database.stop()
        until = time.monotonic() + rng.uniform(0.5, 4)
        try:
            scene.wait(lambda: time.monotonic() > until, "seconds to pass")
        finally:
            database.start()
            scene.tell("PostgreSQL is back")

    def restart_mlflow(scene: Scene) -> None:
        scene.tell("mlflow server is killed")
        servers.stop_mlflow()
        servers.start_mlflow()
        scene.tell("mlflow server is back")

    known = {**troubles.KNOWN, "restart_database": restart_database}
    known["restart_mlflow"] = restart_mlflow
    said, whole = "", False
    try:
        with small_disk(scene.disk) as small, kept(scene.disk, place / "kept", small):
            if not small:
                known.pop("full_disk")
                said = "no disk of ours can be mounted, "
            wanted = [known[name] for name in plan.split("/")[2].split("+") if name in known]
            if ready:
                scene.place.mkdir()
                shutil.copy(servers.tables, scene.place)
            counts = _through(scene, wanted)
            said += ", ".join(f"{count} {what}" for what, count in counts.items())
            whole = True
    except Fault as fault:
        said += f"FAULT {fault}"
    except Exception as error:
        traceback.print_exc()
        said += f"FAULT {error!r}"
    finally:
        scene.thaw()
        scene.end()
        (place / "told.txt").write_text("\n".join(scene.told) + "\n")
        verdict = json.dumps({"said": said, "whole": whole})
        (place / "verdict.json").write_text(verdict)


def _through(scene: Scene, chosen: list[troubles.Trouble]) -> dict[str, int]:
    goals = sorted(scene.rng.randint(0, 45) for _ in chosen)  # measurements
    joining = scene.rng.randint(0, 2)
    for goal, trouble in zip(goals, chosen, strict=True):
        if scene.run is None:
            scene.begin()
        _join(scene, joining)
        delay = scene.rng.uniform(0, 0.5)
        if scene.wait(lambda goal=goal: scene.measured() >= goal, f"{goal} measurements"):
            time.sleep(delay)
            scene.look()
        scene.tell(f"{trouble.__name__} after {scene.measured()} measurements")
        trouble(scene)
        scene.look()
    for _ in range(3):  # one that was moved looks whether it is still led
        if scene.run is None:
            scene.begin()
        scene.wait(lambda: False, "the run to end")
        if scene.code == 0:
            break
    else:
        raise Fault(f"the run does not come to its end: {scene.code}")
    until = time.monotonic() + HANG
    while scene.joined:
        scene.look()
        if time.monotonic() > until:
            raise Fault(f"workers {scene.joined} go on after the end")
        time.sleep(0.05)
    until = time.monotonic() + 20
    while left := scene.left():
        if time.monotonic() > until:
            raise Fault(f"processes {left} outlive the run")
        time.sleep(0.05)
    if scene.tracking != "none":
        scene.begin(kind="sync")
        scene.wait(lambda: False, "MLflow to have what it lacks")
        if scene.code:
            raise Fault(f"sync ended with {scene.code}")
    for log in (scene.folder / "logs").glob("*.log"):
        if "Traceback" in FORKING.sub("", log.read_text(errors="replace")):
            raise Fault(f"a traceback in {log.name}")
    return _checked(scene)


def _checked(scene: Scene) -> dict[str, int]:
    """In a process of its own: this one must stay without threads and connections."""
    file = scene.folder / "counts.json"

    def do() -> None:
        try:
            found: Any = check(scene)
        except Fault as fault:
            found = str(fault)
        file.write_text(json.dumps(found))

    number = stub.forked(scene.folder / "check.log", do)
    os.waitpid(number, 0)
    if not file.exists():
        raise Fault(f"the check broke off: {scene.folder}/check.log")
    found = json.loads(file.read_text())
    if isinstance(found, str):
        raise Fault(found)
    return dict(found)


def _join(scene: Scene, wanted: int) -> None:
    """More workers, as soon as they can."""
    ready = scene.storage or (scene.place / "plan.json").exists()
    while ready and len(scene.joined) < wanted:
        scene.begin(kind="worker")
