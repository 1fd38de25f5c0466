"""Mistakes that a user can mend."""

import signal
import sys
from collections.abc import Callable

INTERRUPTED, TERMINATED = 130, 143  # exit codes of Ctrl-C and SIGTERM, as shells have them


class UserError(Exception):
    """One sentence with the place, the rule and the value; shown without a traceback."""


class Terminated(BaseException):
    """SIGTERM, with which SLURM, Docker and systemd end a command: what is open is closed."""


class NotFiniteError(UserError):
    """Images with NaN or infinity in them: the sampling overflowed."""


class DoesNotFitError(UserError):
    """A batch that is too large for the memory of its device."""


def note(text: str) -> None:
    """Say on stderr what was left out or done otherwise than asked; the work goes on."""
    print(f"note: {text}", file=sys.stderr)  # noqa: T201


def counted(n: float, noun: str) -> str:
    """1 image, 2,000 images, 2 passes."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{n:,} {noun}{plural if n != 1 else ''}"


def percent(share: float, form: str = ".1") -> str:
    """97.1 %, as all that people read has it."""
    return f"{share:{form}%}".replace("%", " %")


def is_out_of_memory(error: Exception) -> bool:
    """Of a GPU, or of a CPU, whose allocator raises a plain RuntimeError."""
    text = str(error)
    return "out of memory" in text or "can't allocate memory" in text


def run_command_line(app: Callable[..., object], name: str) -> None:
    """Run a typer app; a UserError becomes one line on stderr and exit code 2.

    SIGTERM raises `Terminated`, so that it ends a command as tidily as Ctrl-C.
    """
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        app(prog_name=name)
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    except OSError as error:  # it names the file and the reason
        known = error.filename is not None and error.strerror
        said = f"{error.filename}: {error.strerror}" if known else error
        print(f"{name}: {said}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except Terminated:
        raise SystemExit(TERMINATED) from None


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another one does not interrupt the tidying up
    raise Terminated
