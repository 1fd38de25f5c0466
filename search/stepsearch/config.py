"""A study file (TOML) -> frozen models. Unknown keys are refused, with the nearest valid name."""

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stepsampler.errors import UserError
from stepsampler.schedule import SOLVERS


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(_Section):
    id: str = "tiny"  # "tiny", a local folder or a hub id
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    size: int | None = None  # side of the images in pixels


Range = Annotated[tuple[float, float], Field(description="low, high")]


class SpaceConfig(_Section):
    """The box; `passes` is the budget of one image.

    `num_steps` is the number of steps, or with `max_steps` the smallest: a schedule of more steps
    guides fewer of them.
    """

    num_steps: int = Field(ge=2, le=64)
    passes: int = Field(ge=2)
    max_steps: int | None = None
    baseline: str = "best"  # a grid, or "best": the winner of the baselines at this budget
    solver: str = "dpmpp-midpoint"
    log_gap: Range = (-1.0, 1.0)
    final_sigma: Range = (0.02, 0.6)  # below the model's sigma_min means exactly 0
    guidance_scale: Range = (0.6, 4.0)  # below 1 means off: w = 1, one pass instead of two
    guidance: Literal["per-step", "linear", "constant"] = "linear"
    max_order: int = Field(3, ge=1, le=3)

    @property
    def most_steps(self) -> int:
        return self.max_steps or self.num_steps

    @model_validator(mode="after")
    def _consistent(self) -> "SpaceConfig":
        for name in ("log_gap", "final_sigma", "guidance_scale"):
            low, high = getattr(self, name)
            if not low < high:
                raise ValueError(f"{name}: low must be below high, got [{low}, {high}]")
        if self.final_sigma[0] <= 0:
            raise ValueError(f"final_sigma: low must be above 0, got {self.final_sigma[0]}")
        if self.guidance_scale[0] < 0:
            raise ValueError(f"guidance_scale: low must be >= 0, got {self.guidance_scale[0]}")
        if not self.num_steps <= self.most_steps <= self.passes:
            raise ValueError(
                "num_steps <= max_steps <= passes must hold, "
                f"got {self.num_steps}, {self.max_steps} and {self.passes}"
            )
        if self.solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {self.solver!r}")
        if self.solver == "heun":
            raise ValueError(
                "solver heun calls the network twice a step; no budget counts that yet"
            )
        if self.max_order > SOLVERS[self.solver]:
            raise ValueError(f"max_order of {self.solver} is at most {SOLVERS[self.solver]}")
        return self


class EvaluationConfig(_Section):
    """What is measured. Image k of a seed range has seed first + k and prompt k of the list."""

    extractor: str = "texture"
    reference: str = "fashion-mnist"  # bundled statistics, or a folder of images
    prompts: str = "fashion-mnist"  # bundled prompts, or a text file with one prompt a line
    batch_size: int = Field(50, ge=1)
    images: int = Field(300, ge=8)  # per trial
    selection_images: int = Field(600, ge=8)
    test_images: int = Field(1000, ge=8)


class BaselinesConfig(_Section):
    """Known schedules, each at every guidance with `num_steps`, and unguided with all passes."""

    guidance_scales: tuple[float, ...] = (1.25, 1.5, 2.0, 3.0, 5.0)
    orders: tuple[int, ...] = (1, 2)
    rivals: tuple[Literal["dmn", "gits", "oss"], ...] = ()  # placements computed for the model
    rungs: tuple[int, ...] = (40, 120, 400)  # images at each round of successive halving
    keep: float = Field(0.25, gt=0, lt=1)  # share that goes on to the next rung
    test: int = Field(3, ge=1)  # the best so many enter the test
    long_steps: tuple[int, ...] = ()  # DPM-Solver++(2M) with so many steps enters it too

    @model_validator(mode="after")
    def _rising(self) -> "BaselinesConfig":
        if not self.rungs or list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"rungs must rise, got {list(self.rungs)}")
        for name in ("guidance_scales", "orders"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must differ, got {list(values)}")
        return self


class SearchConfig(_Section):
    algorithm: Literal["gp", "tpe", "cmaes", "random"] = "gp"
    trials: int = Field(60, ge=1)
    minutes: float | None = Field(None, gt=0)  # stop asking for new trials after this long
    seed: int = 0
    finalists: int = Field(8, ge=1)  # trials that are scored again on the selection seeds


class TeacherConfig(_Section):
    """The same model with many steps of DPM-Solver++(2M); the floor for alignment."""

    steps: int = Field(50, ge=2)
    guidance_scale: float = Field(2.0, ge=0)
    images: int = Field(300, ge=8)
    test: bool = False  # whether it enters the test as well


class StudyConfig(_Section):
    """A study. `name` is that of its file."""

    name: str
    model: ModelConfig = ModelConfig()
    space: SpaceConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    baselines: BaselinesConfig = BaselinesConfig()
    teacher: TeacherConfig = TeacherConfig()
    search: SearchConfig = SearchConfig()


def load_config(path: Path, overrides: dict[str, dict[str, Any]] | None = None) -> StudyConfig:
    """Read a study file; `overrides` replace values, section by section.

    Raises:
        UserError: names the file, the key, the rule and the value.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML: {error}") from error
    for section, values in (overrides or {}).items():
        before = data.get(section, {})
        data[section] = {**before, **values} if isinstance(before, dict) else before
    if "name" in data:
        raise UserError(f"{path}: unknown key 'name'; a study is named after its file")
    try:
        return StudyConfig.model_validate({"name": path.stem, **data})
    except ValidationError as error:
        raise UserError(f"{path}: {_sentence(error)}") from error


def _sentence(error: ValidationError) -> str:
    """The first problem as one sentence."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        model: type[BaseModel] = StudyConfig
        for part in first["loc"][:-1]:
            annotation = model.model_fields[str(part)].annotation
            assert isinstance(annotation, type)
            model = annotation
        near = difflib.get_close_matches(str(first["loc"][-1]), model.model_fields, 1, 0)
        return f"unknown key {place!r}; did you mean {near[0]!r}?"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("missing", "value_error"):
        return f"{place}: {message}" if place else message
    return f"{place}: {message}, got {first['input']!r}"
