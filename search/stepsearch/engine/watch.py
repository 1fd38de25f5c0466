"""Waits that nobody can tell the length of: each says what it waits for, and has an end."""

import time
from collections.abc import Callable

from stepsampler.errors import UserError

QUIET = 60.0  # seconds without anything new, after which a wait is said
DAYS = 7  # without anything new, after which it is given up


class Watch:
    """When a wait is worth a word: after `QUIET` seconds without news, then twice as long, …"""

    def __init__(self) -> None:
        self.stir()

    def stir(self) -> None:
        """There is something new."""
        self._since, self._next = time.monotonic(), QUIET

    def due(self, waiting_for: Callable[[], str]) -> str | None:
        """The sentence to say now, if any.

        Raises:
            UserError: nothing was new for `DAYS`; it says what was waited for.
        """
        waited = time.monotonic() - self._since
        if waited > 86400 * DAYS:
            raise UserError(
                f"nothing new for {DAYS} days; no longer waiting for {waiting_for()}; run again to "
                "resume"
            )
        if waited < self._next:
            return None
        self._next = 2 * waited
        return (
            f"nothing new for {waited / 60:.0f} min; waiting for {waiting_for()}; Ctrl-C ends "
            "the run, and the same command goes on"
        )
