"""What the sections of a study share: their base, a range, the names of rivals, limits."""

import json
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Rival = Literal["dmn", "gits", "oss", "hso", "ld3", "amed"]  # methods that compute a placement
RIVALS: tuple[str, ...] = get_args(Rival)
SEEDS = 10_000_000  # of a range of `evaluate`: more images would have those of the next one
MOST_STEPS = 999  # of a long schedule: most models have 1,000 noise levels

Range = Annotated[tuple[float, float], Field(description="low, high")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _a_switch_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        return no_switch(value, cls.model_fields[str(info.field_name)].annotation)


def no_switch(value: Any, wanted: Any) -> Any:
    """The value of a key, of whose type `wanted` is. pydantic would take true as the number 1.

    Raises:
        ValueError: true or false, or a list with one, where no switch is wanted.
    """
    several = value if isinstance(value, list | tuple) else [value]
    if bool not in (wanted, *get_args(wanted)) and any(isinstance(v, bool) for v in several):
        rule = "be" if isinstance(value, bool) else "hold"
        raise ValueError(f"must not {rule} true or false, got {json.dumps(value)}")
    return value
