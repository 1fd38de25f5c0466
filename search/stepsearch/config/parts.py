"""What the sections of a study share: their base, a range, the names of rivals, limits."""

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Rival = Literal["dmn", "gits", "oss", "hso", "ld3", "amed"]  # methods that compute a placement
RIVALS: tuple[str, ...] = get_args(Rival)
SEEDS = 10_000_000  # of a range of `evaluate`: more images would have those of the next one
MOST_STEPS = 999  # of a long schedule: most models have 1,000 noise levels

Range = Annotated[tuple[float, float], Field(description="low, high")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
