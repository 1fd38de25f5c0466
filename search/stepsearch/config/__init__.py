"""A study file (TOML) -> frozen models. Unknown keys are refused, with the nearest valid name."""

import difflib
import json
import re
import tomllib
from dataclasses import Field as DataclassField
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from stepsampler.errors import UserError
from stepsampler.schedule import BY_STATISTICS
from stepsampler.support.files import meant
from stepsampler.support.options import ModelOptions
from stepsampler.support.rows import shortened
from stepsearch.config.baselines import BaselinesConfig, TeacherConfig
from stepsearch.config.code import named
from stepsearch.config.measuring import EvaluationConfig, SearchConfig
from stepsearch.config.parts import SEEDS, Section, no_switch
from stepsearch.config.places import line_of
from stepsearch.config.space import SpaceConfig
from stepsearch.config.statistics import StatisticsConfig

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

LONGEST = 400  # characters of what is wrong with a study
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # as pydantic calls unknown keys
TYPES = ("bool", "float", "int", "str")  # that a value may be of: part of a place for pydantic
# What is wrong with a value, as pydantic calls it and as we say it
RULES = {
    "missing": "must be given",
    "tuple_type": 'must be a list, such as ["a", "b"] or [0.5, 2.0]',
    "too_long": "must have no more than {max_length} values",
    "string_type": "must be text",
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ModelConfig(ModelOptions):
    """The model, loaded as `stepsample` loads it: the fields of `ModelOptions`."""

    # Of `miniatures.EVERY`: what `stepsearch check` can dry-run without the weights
    kind: str | None = None
    code: str | None = None  # "module:function" that returns the pipeline, with --allow-code

    @field_validator("*", mode="before")
    @classmethod
    def _a_switch_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        known = next(f for f in fields(ModelConfig) if f.name == info.field_name)
        return no_switch(value, known.type)

    def __post_init__(self) -> None:
        if self.code is not None:  # also its name: nothing is looked for under it
            object.__setattr__(self, "id", named(self.code))
        try:
            super().__post_init__()
        except UserError as error:  # which pydantic puts into its own, with the section's name
            raise ValueError(str(error)) from error

    @staticmethod
    def called(known: "DataclassField[Any]") -> str:
        """As a study has it: the section's name stands before it."""
        return known.name


MODEL = ModelConfig()


class StudyConfig(Section):
    """A study. `name` is that of its file."""

    name: str
    model: ModelConfig = MODEL
    space: SpaceConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    baselines: BaselinesConfig = BaselinesConfig()
    teacher: TeacherConfig = TeacherConfig()
    statistics: StatisticsConfig = StatisticsConfig()
    search: SearchConfig = SearchConfig()

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        """Of a run in `runs`, and no other place."""
        if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
            raise ValueError(f"must be the name of a file, such as mine.toml, got {name!r}")
        return name

    @field_validator("model", mode="before")
    @classmethod
    def _by_code(cls, value: Any) -> Any:
        return {"code": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _rungs_are_of_one_objective(self) -> "StudyConfig":
        if self.evaluation.rungs and self.search.both:
            raise ValueError("evaluation.rungs are for one objective, not for a front")
        looked_at = self.search.polish_iterations * self.evaluation.images
        if self.search.polish and looked_at > SEEDS:
            raise ValueError(
                f"search.polish_iterations times evaluation.images must be at most {SEEDS:,}, got "
                f"{looked_at:,}"
            )
        self._check_patterns()
        if self.space.guidance == "off" and self.evaluation.guidance_scales:
            raise ValueError(
                'evaluation.guidance_scales: there is no guidance to scale, space.guidance is "off"'
            )
        for name, solvers in (("space", self.space.solvers), ("baselines", self.baselines.solvers)):
            if BY_STATISTICS in solvers and self.evaluation.guidance_scales:
                raise ValueError(
                    f"{name}.solvers: {BY_STATISTICS} goes by statistics of one guidance scale, "
                    "but the study is one over evaluation.guidance_scales"
                )
        own = self.statistics.files
        if own and any(Path(place).name not in own for place in self.model.statistics):
            raise ValueError(
                "model.statistics: names files, but statistics.guidance_scales lets the run make "
                "some: keep one of both"
            )
        return self

    def _check_patterns(self) -> None:
        box = self.space
        if not self.search.patterns:
            return
        for key, wanted in (("guidance", "per-step"), ("placement", "curve")):
            if (value := getattr(box, key)) != wanted:
                raise ValueError(
                    f'search.patterns need space.{key} = "{wanted}", got {json.dumps(value)}'
                )
        if box.whole_timesteps:
            raise ValueError("search.patterns have levels between space.whole_timesteps")
        least = max(box.num_steps, box.passes // 2)
        if not least < box.most_steps < box.passes:
            raise ValueError(
                "search.patterns have guided steps and others: space.max_steps must be above "
                f"{least} and below passes = {box.passes}, got {json.dumps(box.max_steps)}"
            )

    @property
    def by_statistics(self) -> bool:
        """Whether a solver goes by statistics of the model."""
        return BY_STATISTICS in (*self.space.solvers, *self.baselines.solvers)

    def naming_own(self, folder: Path) -> "StudyConfig":
        """The same with those statistics named that the run in a folder makes itself, if any."""
        if not self.statistics.files:
            return self
        files = tuple(str(folder / name) for name in self.statistics.files)
        return self.model_copy(update={"model": replace(self.model, statistics=files)})

    @property
    def teacher_scale(self) -> float:
        """The teacher's guidance scale; 1 where nothing is guided."""
        return 1.0 if self.space.guidance == "off" else self.teacher.guidance_scale


def load_config(
    path: str | Path, overrides: dict[str, dict[str, Any]] | None = None
) -> StudyConfig:
    """Read a study file; `overrides` replace values, section by section.

    Raises:
        UserError: names the file with the line, or `--set`, the key, the rule and the value.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        data = tomllib.loads(text)
    except IsADirectoryError as error:
        raise UserError(
            f"{path}: must be a study file, got a folder; that of a run is for --run"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}{meant(path, '.toml')}") from error
    except ValueError as error:  # also of an integer of thousands of digits
        raise UserError(f"{path}: not TOML, as a study file is: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path}: its lists are nested too deep") from error
    for section, values in (overrides or {}).items():
        before = data.get(section, {})
        data[section] = {**before, **values} if isinstance(before, dict) else before
    if "name" in data:
        raise UserError(f"{path}: unknown key 'name'; a study is named after its file")
    try:
        return StudyConfig.model_validate({"name": path.stem, **data})
    except ValidationError as error:
        problem = _first(error)
        section, key, *_ = (*map(str, problem["loc"]), "", "")
        if not key:  # of a whole section: its sentence begins with the key
            key = re.split(r"\W", problem["msg"].removeprefix("Value error, "), maxsplit=1)[0]
        given = key in (overrides or {}).get(section, {})
        line = None if given else line_of(text, [section, key])
        place = "--set" if given else f"{path}, line {line}" if line else str(path)
        raise UserError(f"{place}: {_sentence(problem)}") from error


def in_words(error: ValidationError) -> str:
    """What is wrong, as one sentence without its place."""
    return _sentence(_first(error))


def _first(error: ValidationError) -> "ErrorDetails":
    """The problem to name: an unknown key, as others may come of it, or else the first."""
    problems = error.errors()
    return next((p for p in problems if p["type"] in UNKNOWN), problems[0])


def _sentence(first: "ErrorDetails") -> str:
    """A problem as one sentence, which the value of a file must not fill."""
    return shortened(" ".join(_said(first).split()), LONGEST)


def _said(first: "ErrorDetails") -> str:
    place = ".".join(str(part) for part in first["loc"] if part not in TYPES)
    if first["type"] in UNKNOWN:
        known: dict[str, FieldInfo] = StudyConfig.model_fields
        for part in first["loc"][:-1]:
            known = _keys(known[str(part)].annotation)
        key = str(first["loc"][-1])
        for name, section in StudyConfig.model_fields.items():  # a known key in another section
            if key in _keys(section.annotation):
                return f"unknown key {place!r}; did you mean '{name}.{key}'?"
        near = difflib.get_close_matches(key, known, 1, 0)
        return f"unknown key {place!r}; did you mean {near[0]!r}?"
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if first["type"] in RULES:
        message = RULES[first["type"]].format_map(first.get("ctx", {}))
    if first["type"] in ("missing", "value_error"):
        return f"{place}: {message}" if place else message
    if first["type"] in ("model_type", "dataclass_type"):
        return f"{place}: must be a section, [{place}] with its keys, got {first['input']!r}"
    return f"{place}: {message}, got {first['input']!r}"


def _keys(section: Any) -> dict[str, FieldInfo]:
    """The keys of a section, be it a model or a dataclass; none of what is no section."""
    return getattr(section, "__pydantic_fields__", {})
