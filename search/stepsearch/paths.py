"""Where bundled files lie, and how files are written whole."""

import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path


def bundled(name: str) -> Path:
    """A file that travels with the package."""
    return Path(str(files("stepsearch") / "bundled" / name))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write to a temporary name beside `path`, then rename: nobody ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
