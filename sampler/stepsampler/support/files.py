"""Write files so that a kill or a power loss leaves the old one or the new one, and read JSON."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stepsampler.errors import UserError

KEPT = 57  # characters of a name: with 4 bytes each and what is added below 255 bytes


class NoJsonError(UserError, ValueError):
    """A file that should be JSON."""


def read_json(path: Path) -> Any:
    """What a JSON file of a model's folder holds.

    Raises:
        OSError: it cannot be read.
        NoJsonError: it is none, or cut off.
        UserError: it is nested too deep to be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise NoJsonError(f"{path} is no JSON, or cut off") from error
    except RecursionError as error:
        raise UserError(f"{path}: its lists and objects are nested too deep") from error


def beginning_of_part(path: Path) -> str:
    """How the temporary name beside a path begins, which fits where the name of the path does."""
    return f".{path.name[:KEPT]}."


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place at the end. Makes the folder."""
    import tempfile  # a twentieth of the time of --help

    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: a folder is there, where a file should be written")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        begins = beginning_of_part(path)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=begins, suffix=".part")
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


def meant(path: str | Path, suffix: str | None = None) -> str:
    """The end of a sentence about a file that is not there: which one was meant, if its name is
    near. That is one of its folder, or of the folder whose name is near, with its suffix or with
    `suffix`, which may be left out of `path`."""
    path = Path(path)
    if path.exists():
        return ""
    folder = path.parent
    if not folder.is_dir():
        folder = _nearest(folder, lambda p: p.is_dir()) or folder
    wanted = suffix or path.suffix
    name = path.stem if path.suffix == wanted else path.name
    found = _nearest(folder / name, lambda p: p.suffix == wanted and p.is_file())
    return "" if found is None else f"; did you mean {str(found)!r}?"


def _nearest(path: Path, fits: Callable[[Path], bool]) -> Path | None:
    """Of those beside `path` the one whose name, but for its suffix, is most like its own."""
    from difflib import get_close_matches

    try:
        beside = {p.stem: p for p in path.parent.iterdir() if fits(p)}
    except OSError:  # no such folder, or one that may not be read
        return None
    near = get_close_matches(path.name, beside, 1)
    return beside[near[0]] if near else None
