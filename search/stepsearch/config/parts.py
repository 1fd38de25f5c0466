"""What the sections of a study share: their base, a range, the names of rivals, limits."""

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
        """pydantic would take true as 1."""
        wanted = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (wanted, *get_args(wanted)):
            raise ValueError(f"must not be true or false, got {str(value).lower()}")
        return value
