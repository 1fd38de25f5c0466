"""Mistakes that a user can mend."""

import sys
import warnings
from collections.abc import Callable
from typing import Any


class UserError(Exception):
    """One sentence with the place, the rule and the value; shown without a traceback."""


class Notice(UserWarning):
    """One sentence that a user should know of; shown without a place in the code."""


class NotFiniteError(UserError):
    """Images with NaN or infinity in them: the sampling overflowed."""


def note(text: str) -> None:
    """Say on stderr what was left out or done otherwise than asked; the work goes on."""
    print(f"note: {text}", file=sys.stderr)  # noqa: T201


def is_out_of_memory(error: RuntimeError) -> bool:
    """Of a GPU, or of a CPU, whose allocator raises a plain RuntimeError."""
    text = str(error)
    return "out of memory" in text or "can't allocate memory" in text


def run_command_line(app: Callable[..., object], name: str) -> None:
    """Run a typer app; a UserError becomes one line on stderr and exit code 2.

    A Notice becomes a line there too.
    """
    other = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **named: Any) -> None:
        if issubclass(category, Notice):
            print(f"{name}: {message}", file=sys.stderr)  # noqa: T201
        else:
            other(message, category, *place, **named)

    warnings.showwarning = show
    try:
        app(prog_name=name)
    except (UserError, OSError) as error:  # an OSError names the file and the reason
        print(f"{name}: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        warnings.showwarning = other
