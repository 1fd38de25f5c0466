"""Where bundled files and models lie, and how files are written whole."""

import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path


def bundled(name: str) -> Path:
    """A file that travels with the package."""
    return Path(str(files("stepsearch") / "bundled" / name))


def local_folder(name: str) -> Path | None:
    """Where a model's files lie: its own folder, or the newest one in the local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    from stepsampler.models import resolve

    if Path(resolve(name)).is_dir():
        return Path(resolve(name))
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write to a temporary name beside `path`, then rename: nobody ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
