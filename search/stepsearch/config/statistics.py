"""`[statistics]` of a study: those by which dpm-v3 goes, where the run makes them itself."""

from typing import Annotated

from pydantic import Field, field_validator

from stepsampler.schedule import MOST_INTERVALS, StatisticsSpec
from stepsearch.config.parts import SEEDS, Section


class StatisticsConfig(Section):
    """What the run makes of the model before its first image, as `stepsample statistics` does."""

    # Of those that the solver dpm-v3 goes by, a file each; 1 is without guidance. Empty: the run
    # makes none, and goes by those that `model.statistics` names.
    guidance_scales: tuple[Annotated[float, Field(ge=0)], ...] = ()
    intervals: int = Field(120, ge=4, le=MOST_INTERVALS)  # of the grid, even in log SNR
    samples: int = Field(64, ge=2, le=SEEDS)  # trajectories of the model for each scale

    @field_validator("guidance_scales")
    @classmethod
    def _differ(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        if len({f"{w:g}" for w in scales}) < len(scales):  # as in names
            raise ValueError(f"must differ, got {list(scales)}")
        return scales

    @property
    def files(self) -> tuple[str, ...]:
        """Their names in the run's folder."""
        return tuple(f"statistics-{w:g}.safetensors" for w in self.guidance_scales)

    @property
    def coming(self) -> list[StatisticsSpec]:
        """What is known of them before they are made."""
        return [StatisticsSpec(w, self.intervals) for w in self.guidance_scales]
