"""What a polish sees: measurements of schedules that nearly are one another, on the same seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stepsampler.errors import UserError
from stepsampler.schedule import Schedule
from stepsearch.metrics.distance import Moments
from stepsearch.metrics.evaluator import Evaluator, Measurement


@dataclass(frozen=True)
class Seen:
    """A measurement, and of which of the alternatives it is."""

    side: int
    measurement: Measurement


# Alternatives, of which the first that the model takes is measured
Sides = Sequence[Schedule]
Heard = Callable[[float], object]  # share of a look that is done


class Looks(Protocol):
    """Where a polish has its measurements from."""

    @property
    def reference(self) -> Moments: ...

    @property
    def versions(self) -> int:
        """How often a schedule is measured, each time with other guidance."""

    def __call__(self, plans: Sequence[Sides], seeds: range, heard: Heard) -> list[Seen | str]:
        """Of each of `plans` what was seen, or why nothing was."""


@dataclass(frozen=True)
class Here:
    """Looks in this process."""

    evaluator: Evaluator

    @property
    def reference(self) -> Moments:
        return self.evaluator.reference.search

    @property
    def versions(self) -> int:
        return max(1, len(self.evaluator.scales))

    def __call__(
        self, plans: Sequence[Sides], seeds: range, heard: Heard = lambda share: None
    ) -> list[Seen | str]:
        """Calls of the network that the others have in common with the first are made once.

        If the first cannot be measured, the others are not.

        Raises:
            UserError: a schedule that the model takes was not measured, as memory ran out. That is
                no answer: workers of a run would keep it, and whoever goes on would hear it again.
        """
        found: list[Seen | str] = []
        for sides in plans:
            if not found and len(plans) == 1:
                found.append(self._seen(sides, seeds))
            elif found and not (isinstance(found[0], Seen) and found[0].measurement.finite):
                found.append("the first could not be measured")
            else:
                with self.evaluator.model.beginning_alike(first=not found):
                    found.append(self._seen(sides, seeds))
            heard(len(found) / len(plans))
        return found

    def _seen(self, sides: Sides, seeds: range) -> Seen | str:
        why = "there is no such schedule"
        for side, plan in enumerate(sides):
            try:
                self.evaluator.model.check(plan)
            except UserError as error:
                why = str(error)
            else:
                return Seen(side, self.evaluator.measure(plan, seeds))
        return why


def judged_by(found: Sequence[Measurement]) -> Callable[[Measurement], NDArray[np.float32]]:
    """What to compare of measurements: certainty where it is known of all of them, or alignment.

    Caches of earlier builds have no certainty, and it is less than the alignment of most images.
    """
    name = "aligned" if any(one.certain is None for one in found) else "certain"
    return attrgetter(name)


def joined(parts: Sequence[Sequence[Seen | str]]) -> list[Seen | str]:
    """Looks at the same plans on consecutive seeds as one: what some did not see, it has not."""
    return [_joined(plan) for plan in zip(*parts, strict=True)]


def _joined(parts: Sequence[Seen | str]) -> Seen | str:
    seen = [part for part in parts if isinstance(part, Seen)]
    if len(seen) < len(parts):
        return next(part for part in parts if isinstance(part, str))
    return Seen(seen[0].side, Measurement.join([part.measurement for part in seen]))
