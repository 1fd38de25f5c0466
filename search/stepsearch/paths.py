"""Where bundled files, models and runs lie, and how files are written whole."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from stepsampler.errors import UserError, note
from stepsampler.support.files import replacing

RUNS = Path("runs")
NAMED = 8  # runs in a sentence
T = TypeVar("T")


def bundled(name: str) -> Path:
    """A file that travels with the package."""
    return Path(__file__).parent / "bundled" / name


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


def find_runs(given: Path, needed: str) -> list[Path]:
    """The folders of the runs that `given` stands for and that hold the file `needed`.

    A folder stands for itself; a study file for its runs in `runs/`, the one without a suffix
    first, so that the first one is meant where there is no choice. Without it there is only one.

    Raises:
        UserError: there is none, or there are several with a suffix: it lists them.
    """
    if given.suffix != ".toml" or given.is_dir():
        folders = [given]
    else:
        others = RUNS.glob("*/study.json")
        folders = [RUNS / given.stem, *sorted(f.parent for f in others if _name(f) == given.stem)]
    whole = list(dict.fromkeys(folder for folder in folders if (folder / needed).exists()))
    if not whole:
        cut = [str(folder) for folder in folders if (folder / "study.json").exists()]
        if needed == "study.json":
            raise UserError(
                f"{folders[0]}: no run has started here; `stepsearch run` starts one{_here(needed)}"
            )
        on = f" (under way or cut off: {', '.join(dict.fromkeys(cut))})" if cut else ""
        raise UserError(
            f"{folders[0]}: no finished run; `stepsearch run` makes one{on}{_here(needed)}"
        )
    if whole[0] != folders[0] and len(whole) > 1:
        raise UserError(
            f"{given}: several runs: {', '.join(map(str, whole))}; give the folder of one of them"
        )
    return whole


def runs_here(needed: str) -> list[Path]:
    """The folders in `runs/` that hold the file `needed`, the newest first."""
    files = sorted(RUNS.glob(f"*/{needed}"), key=lambda f: f.stat().st_mtime, reverse=True)
    return [file.parent for file in files]


def _here(needed: str) -> str:
    """The end of a sentence: which runs there are instead."""
    found = [str(folder) for folder in runs_here(needed)]
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return f"; there are {', '.join(found[:NAMED])}{more}" if found else ""


def check_inside(folder: Path) -> None:
    """Refuse a run's folder with links that lead out of it: a run would write where they lead.

    Locks are links to nowhere, and nobody writes through them.

    Raises:
        UserError: names the link and where it leads.
    """
    home = folder.resolve()
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_symlink() and path.suffix != ".lock":
            place = home / os.readlink(path)
            if not place.resolve().is_relative_to(home):
                raise UserError(
                    f"{path}: a link out of the run's folder, to {place}, and the run would write "
                    "there: put what it means in its place"
                )


def _name(study: Path) -> str | None:
    """Of the study whose settings a file holds."""
    try:
        name = read_json(study)["name"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return str(name)


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or nested too deep.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise ValueError("its lists are nested too deep") from error


def recall(path: Path, read: Callable[[Path], T]) -> T | None:
    """What a file of a cache holds, or None: there is none, or one that a full disk or a power cut
    has damaged. That is said, and what it held is to be made again."""
    from safetensors import SafetensorError

    try:
        return read(path)
    except FileNotFoundError:
        return None
    except (SafetensorError, UserError, ValueError, LookupError, TypeError) as error:
        note(f"{path} is damaged, what it held is made again ({error})")
        return None


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write to a temporary name beside `path`, then rename: nobody ever sees half a file.

    Raises:
        OSError: names `path` and the reason, such as a full disk.
    """
    from safetensors import SafetensorError

    with naming(path), replacing(path) as temporary:
        try:
            write(temporary)
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError say which file it is about; one of a write to an open file does not."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
