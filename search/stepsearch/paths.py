"""Where bundled files and models lie, and how files are written whole."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from stepsampler.support.files import replacing


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
