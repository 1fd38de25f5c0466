"""Two networks that share a trajectory: the first takes the noisy steps, the second the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stepsampler.errors import UserError
from stepsampler.schedule import Schedule, Step


@dataclass(frozen=True)
class Experts:
    """Of a pipeline with a `boundary_ratio` the networks, either of which it may lack.

    `boundary` is the pipeline's own, a sigma: steps at it or above are the first network's. None:
    all are. That of a schedule comes first.
    """

    first: Any
    second: Any
    boundary: float | None

    @classmethod
    def of(cls, pipeline: Any) -> "Experts":
        parts, config = pipeline.components, getattr(pipeline, "config", {})
        second = parts.get("transformer_2") if "boundary_ratio" in config else None
        return cls(parts.get("transformer"), second, config.get("boundary_ratio"))

    @property
    def two(self) -> bool:
        return self.first is not None and self.second is not None

    def among(self, step: Step, boundary: float | None) -> Any:
        """The network of a step under a schedule's boundary; None if the pipeline lacks it."""
        place = self.boundary if boundary is None else boundary
        return self.first if place is None or step.sigma >= place else self.second

    def check(self, schedule: Schedule) -> None:
        """
        Raises:
            UserError: a boundary where there is one network, or a step whose network is missing.
        """
        if schedule.boundary is not None and not self.two:
            raise UserError(
                f"the schedule changes the network at sigma {schedule.boundary:g} (boundary), but "
                "the model has one network"
            )
        if self.boundary is None and not self.two:
            return
        for i, step in enumerate(schedule.steps):
            if self.among(step, schedule.boundary) is None:
                name = "transformer" if self.first is None else "transformer_2"
                raise UserError(
                    f"step {i}: sigma {step.sigma:g} is for the {name}, which the pipeline lacks "
                    f"(its boundary_ratio is {self.boundary:g})"
                )

    def ratio(self, schedule: Schedule, told: Sequence[float]) -> float | None:
        """The `boundary_ratio` under which the stock pipeline has each step's network.

        `told` are the times of the steps, 0 to 1000: the pipeline goes by them, a schedule by
        sigmas. It lies between two of them, where no rounding matters.

        Raises:
            UserError: `time_scale` tells a step of the second network a later time than one of the
                first.
        """
        if not self.two or (schedule.boundary is None and self.boundary is None):
            return self.boundary
        pairs = list(zip(schedule.steps, told, strict=True))
        lowest = min(
            (t for s, t in pairs if self.among(s, schedule.boundary) is self.first), default=2000.0
        )
        highest = max(
            (t for s, t in pairs if self.among(s, schedule.boundary) is self.second), default=0.0
        )
        if lowest <= highest:
            raise UserError(
                "the pipeline changes its network by the times that are told, and time_scale has "
                f"turned their order: {lowest:g} for the first network, {highest:g} for the second"
            )
        return (lowest + highest) / 2000
