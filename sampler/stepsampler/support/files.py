"""Write files so that a kill or a power loss leaves the old one or the new one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stepsampler.errors import UserError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place at the end. Makes the folder."""
    import tempfile  # a twentieth of the time of --help

    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: a folder is there, where a file should be written")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:  # of a name that nobody gave
        raise OSError(error.errno, error.strerror, str(path)) from error
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)
        _sync(name)  # or the new name could outlive a power loss, and its content not
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _sync(name: str) -> None:
    handle = os.open(name, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
