"""What can happen to a run. Each trouble is over when it returns; the run may be dead then."""

import os
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from trouble import stub
from trouble.scene import HOSTS, Fault, Scene, filled

Trouble = Callable[[Scene], None]
FROZEN = stub.SILENCE + 2
FILES = ("plan.json", "study.json", "tracking.json", "result.json")  # that a power loss can empty


def kill_run(scene: Scene) -> None:
    scene.kill(scene.run)
    _until_dead(scene)


def kill_a_process_of_the_run(scene: Scene) -> None:
    """The run ends with a sentence."""
    if pool := scene.pool():
        scene.kill(scene.rng.choice(pool))
        _until_dead(scene)


def kill_a_joined_worker(scene: Scene) -> None:
    if scene.joined:
        number = scene.rng.choice(scene.joined)
        scene.kill(number)
        scene.wait(lambda: number not in scene.joined, "a killed worker to be gone")


def kill_all(scene: Scene) -> None:
    for number in (scene.run, *scene.pool(), *scene.joined):
        scene.kill(number)
    _until_dead(scene)
    while scene.joined:
        scene.look()
        time.sleep(0.01)


def interrupt(scene: Scene) -> None:
    scene.kill(scene.run, signal.SIGINT)
    _until_dead(scene)


def terminate(scene: Scene) -> None:
    scene.kill(scene.run, signal.SIGTERM)
    _until_dead(scene)


def freeze_a_worker(scene: Scene) -> None:
    """Longer than a silence: elsewhere it is taken for dead, here it is waited for."""
    if workers := [*scene.pool(), *scene.joined]:
        _freeze(scene, scene.rng.choice(workers))


def freeze_the_run(scene: Scene) -> None:
    if scene.run:
        _freeze(scene, scene.run)


def move(scene: Scene) -> None:
    """The run dies, and goes on on another machine."""
    kill_run(scene)
    scene.begin(f"host-{scene.rng.randrange(HOSTS)}")


def full_disk(scene: Scene) -> None:
    """For some seconds, or until the run has ended for it."""
    left = scene.rng.choice((0, 2000, 20_000, 200_000))
    scene.tell(f"the disk has {left} bytes left")
    with filled(scene.disk, left):
        until = time.monotonic() + scene.rng.uniform(1, 6)
        scene.wait(lambda: time.monotonic() > until, "seconds to pass")
    scene.tell("the disk has room again")


def cut_files(scene: Scene) -> None:
    """All is dead; the last line of the journal, a measurement or a small file is cut short."""
    kill_all(scene)
    rng, journal = scene.rng, scene.place / "journal.log"
    if journal.exists() and journal.stat().st_size and rng.random() < 0.5:
        *_, last = journal.read_bytes().splitlines(keepends=True)
        _cut(scene, journal, journal.stat().st_size - rng.randint(1, len(last)))
    files = sorted((scene.place / "cache").glob("*.safetensors"))
    for file in rng.sample(files, min(2, len(files))):
        _cut(scene, file, rng.choice((0, rng.randint(0, file.stat().st_size))))
    for name in FILES:
        if (scene.place / name).exists() and rng.random() < 0.4:
            _cut(scene, scene.place / name, rng.choice((0, 5)))


def nuls_in_the_journal(scene: Scene) -> None:
    """A power loss: `run` names the line, and goes on from those before it."""
    kill_all(scene)
    journal = scene.place / "journal.log"
    if scene.storage or not journal.exists() or not journal.stat().st_size:
        return
    whole = journal.read_bytes()
    journal.write_bytes(whole + bytes(100) + b"\n")
    scene.tell("100 NULs and a line's end in the journal")
    scene.begin()
    scene.wait(lambda: False, "run to refuse a damaged journal")
    said = (scene.folder / "logs" / f"{scene.count:02d}-run.log").read_text()
    if scene.code != 2 or "is damaged; the run can go on from the lines before it" not in said:
        raise Fault(f"NULs in the journal: code {scene.code}, {said!r}")
    if not journal.read_bytes().startswith(whole):
        raise Fault("a damaged journal was changed")
    journal.write_bytes(whole)


def delete_mlflow(scene: Scene) -> None:
    with suppress(FileNotFoundError):
        (scene.place / "mlflow.db").unlink()
        scene.tell("mlflow.db deleted")


def lock_mlflow(scene: Scene) -> None:
    """Somebody else writes for some seconds."""
    file = scene.place / "mlflow.db"
    if not file.exists():
        return
    seconds = scene.rng.uniform(1, 8)

    def hold() -> None:
        with closing(sqlite3.connect(file, timeout=30)) as base:
            base.execute("BEGIN EXCLUSIVE")
            time.sleep(seconds)

    scene.tell(f"mlflow.db locked for {seconds:.1f} s")
    number = stub.forked(scene.folder / "logs" / "holder.log", hold)
    until = time.monotonic() + seconds
    scene.wait(lambda: time.monotonic() > until, "seconds to pass")
    os.waitpid(number, 0)


def _freeze(scene: Scene, number: int) -> None:
    scene.kill(number, signal.SIGSTOP)
    scene.frozen.add(number)
    until = time.monotonic() + FROZEN
    scene.wait(lambda: time.monotonic() > until, "a silence to pass")
    scene.thaw()


def _until_dead(scene: Scene) -> None:
    scene.wait(lambda: scene.run is None, "the run to end")


def _cut(scene: Scene, file: Path, size: int) -> None:
    scene.tell(f"{file.name} cut from {file.stat().st_size} to {size} bytes")
    os.truncate(file, size)


KNOWN: dict[str, Trouble] = {
    trouble.__name__: trouble
    for trouble in (
        kill_run,
        kill_a_process_of_the_run,
        kill_a_joined_worker,
        kill_all,
        interrupt,
        terminate,
        freeze_a_worker,
        freeze_the_run,
        move,
        cut_files,
        nuls_in_the_journal,
        full_disk,
        delete_mlflow,
        lock_mlflow,
    )
}
ALWAYS = tuple(name for name in KNOWN if not name.endswith(("_disk", "_mlflow")))
