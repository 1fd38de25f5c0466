"""A study file (TOML) -> frozen models. Unknown keys are refused, with the nearest valid name."""

import difflib
import json
import tomllib
from dataclasses import Field as DataclassField
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from stepsampler.errors import UserError
from stepsampler.grids import GRIDS
from stepsampler.schedule import SOLVERS
from stepsampler.support.options import LongPrompts, ModelOptions

Rival = Literal["dmn", "gits", "oss", "hso", "ld3"]  # methods that compute a placement
RIVALS: tuple[str, ...] = get_args(Rival)
SEEDS = 10_000_000  # of a range of `evaluate`: more images would have those of the next one
CLASSES, CLIP = "classes", "clip:"  # what may judge alignment; CLIP is followed by its model
ALL = "*"  # presets: the pattern of every name
NONE = "none"  # prompts: there are none
NO_ANALYTIC = 0.9  # gains below it mean that there is no analytic step
STEEPEST = 10.0  # of log_gap: some way beyond it neighbouring sigmas coincide
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # as pydantic calls unknown keys
MOST_STEPS = 999  # of a long schedule: most models have 1,000 noise levels


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ModelConfig(ModelOptions):
    """The model, loaded as `stepsample` loads it: the fields of `ModelOptions`."""

    # Of `miniatures.EVERY`: what `stepsearch check` can dry-run without the weights
    kind: str | None = None

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except UserError as error:  # which pydantic puts into its own, with the section's name
            raise ValueError(str(error)) from error

    @staticmethod
    def called(known: "DataclassField[Any]") -> str:
        """As a study has it: the section's name stands before it."""
        return known.name


Range = Annotated[tuple[float, float], Field(description="low, high")]


class SpaceConfig(_Section):
    """The box; `passes` is the budget of one image.

    `num_steps` is the number of steps, or with `max_steps` the smallest: a schedule of more steps
    guides fewer of them.
    """

    num_steps: int = Field(ge=2, le=64)
    passes: int = Field(ge=2)
    max_steps: int | None = Field(None, ge=2)
    solvers: tuple[str, ...] = ("dpmpp-midpoint",)  # several: the search chooses
    # Placement: the gaps of a baseline stretched along a curve, or a family of two numbers.
    placement: Literal["curve", "power", "karras"] = "curve"
    # Of a curve: a grid, a rival, or "best", the grid that wins among the baselines at this budget.
    baseline: str = "best"
    log_gap: Range = (-1.0, 1.0)
    rho: Range = (0.5, 3.0)  # of power, in timesteps, or of karras, in sigma
    first_sigma: Range | None = None  # None: where the baseline starts
    final_sigma: Range = (0.02, 0.6)  # below the model's sigma_min means exactly 0
    sigma_min: Range | None = None  # of karras, the last before a final 0; None: the model's
    whole_timesteps: bool = False  # levels at whole training timesteps, as other tools tell them
    # Guidance
    guidance_scale: Range = (0.6, 4.0)  # below 1 means off: w = 1, one pass instead of two
    # "off": every step is unguided, as those of unconditional models must be.
    guidance: Literal["per-step", "linear", "interval", "constant", "off"] = "linear"
    guidance_rescale: Range | None = None  # below 0 means none
    # Of the guided steps as few as every so manieth has both predictions; the others reuse guidance
    reuse: int = Field(1, ge=1, le=16)
    # Solver
    max_order: int = Field(3, ge=1, le=4)
    order: Literal["constant", "per-step"] = "constant"
    corrector: bool = False  # UniPC's becomes a choice; without it, it is on
    prediction: bool = False  # data or noise form of the rule becomes a choice; else its own
    analytic: Range | None = None  # gain of an analytic first step; below 0.9 means none
    analytic_at: Range | None = None  # where it lands, a share of the first gap; None: half-way
    churn: Range | None = None  # share of fresh noise at every step after the first; below 0: none
    gain: Range | None = None  # of every step, times what it takes of the predictions; 1 is none
    decode: bool = False  # whether the last latent is scaled by alpha becomes a choice; else not
    # Free-U, on or off at every step, with one set of gains or two to choose from
    free_u: bool = False
    free_u_sets: int = Field(1, ge=1, le=2)
    free_u_b: Range = (1.0, 1.6)
    free_u_s: Range = (0.2, 1.0)

    @field_validator("placement", mode="before")
    @classmethod
    def _family(cls, value: object) -> object:
        if value in (*GRIDS, *RIVALS) and value not in ("power", "karras"):
            raise ValueError(
                f'must be "curve", "power" or "karras"; the curve around {value} is '
                f'baseline = "{value}"'
            )
        return value

    @property
    def most_steps(self) -> int:
        return self.max_steps or self.num_steps

    @model_validator(mode="after")
    def _consistent(self) -> "SpaceConfig":
        lowest = {"guidance_scale": 0.0, "guidance_rescale": -1.0, "churn": -1.0}
        lowest |= {"log_gap": -STEEPEST, "gain": 0.8}
        most = {"log_gap": STEEPEST, "guidance_rescale": 1.0, "gain": 1.25}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if "tuple[float, float]" not in str(field.annotation) or value is None:
                continue
            low, high = value
            if not low <= high:
                raise ValueError(f"{name}: low must not be above high, got [{low}, {high}]")
            if name not in lowest and low <= 0:
                raise ValueError(f"{name}: low must be above 0, got {low}")
            if name in lowest and low < lowest[name]:
                raise ValueError(f"{name}: low must be >= {lowest[name]:g}, got {low}")
            if high > most.get(name, high):
                raise ValueError(f"{name}: high must be <= {most[name]:g}, got {high}")
        if self.guidance == "off" and self.guidance_rescale:
            raise ValueError('guidance_rescale: there is nothing to rescale, guidance is "off"')
        if self.baseline not in ("best", *GRIDS, *RIVALS):
            names = ", ".join(("best", *GRIDS, *RIVALS))
            raise ValueError(f"baseline must be one of {names}, got {self.baseline!r}")
        for name, share in (("analytic_at", self.analytic_at), ("churn", self.churn)):
            if share and share[1] >= 1:
                raise ValueError(f"{name}: high must be below 1, got {share[1]}")
        if self.analytic and self.analytic[1] < NO_ANALYTIC:
            raise ValueError(
                f"analytic: high must be at least {NO_ANALYTIC:g}, below which there is no such "
                f"step, got {self.analytic[1]}"
            )
        if self.analytic_at and not self.analytic:
            raise ValueError("analytic_at: there is no analytic first step without analytic")
        if self.first_sigma and self.first_sigma[0] <= self.final_sigma[1]:
            raise ValueError(
                f"first_sigma: low must be above the highest final_sigma, {self.final_sigma[1]}, "
                f"got {self.first_sigma[0]}"
            )
        if self.sigma_min and self.placement != "karras":
            raise ValueError(f"sigma_min is of karras, placement is {self.placement}")
        if self.sigma_min and self.first_sigma and self.first_sigma[0] <= self.sigma_min[1]:
            raise ValueError(
                f"first_sigma: low must be above the highest sigma_min, {self.sigma_min[1]}, "
                f"got {self.first_sigma[0]}"
            )
        if not self.num_steps <= self.most_steps <= self.passes:
            raise ValueError(
                "num_steps <= max_steps <= passes must hold, "
                f"got {self.num_steps}, {self.max_steps} and {self.passes}"
            )
        known = [name for name in SOLVERS if name != "heun"]  # its steps have twice the passes
        for solver in self.solvers:
            if solver not in known:
                raise ValueError(f"solvers must be of {', '.join(known)}, got {solver!r}")
        if not self.solvers or len(set(self.solvers)) < len(self.solvers):
            raise ValueError(f"solvers must be different names, got {list(self.solvers)}")
        highest = max(SOLVERS[solver] for solver in self.solvers)
        if self.max_order > highest:
            raise ValueError(
                f"max_order of {', '.join(self.solvers)} is at most {highest}, got {self.max_order}"
            )
        return self


class EvaluationConfig(_Section):
    """What is measured. Image k of a seed range has seed first + k and prompt k of the list."""

    extractor: str = "texture"
    reference: str = "fashion-mnist"  # bundled statistics, or a folder of images
    exif: Literal["apply", "ignore"] = "apply"  # whether these are turned as their EXIF says
    prompts: str = "fashion-mnist"  # bundled prompts, a text or caption file, or "none"
    # What says whether images show their prompts: the judge of the bundled classes, or clip:MODEL.
    alignment: str = CLASSES
    clip_long_prompts: LongPrompts = "cut"  # of alignment by CLIP
    negative_prompt: str = ""
    batch_size: int = Field(50, ge=1)
    images: int = Field(300, ge=8, le=SEEDS)  # per trial
    rungs: tuple[int, ...] = ()  # images after which a trial may end, such as 60, 125 and `images`
    selection_images: int = Field(600, ge=8, le=SEEDS)
    test_images: int = Field(1000, ge=8, le=SEEDS)
    # Every schedule is measured at each of these means of its guidance; its distance is the mean of
    # theirs, or the worst. Empty: as it is.
    guidance_scales: tuple[float, ...] = ()
    over: Literal["mean", "worst"] = "mean"

    @field_validator("alignment")
    @classmethod
    def _judged(cls, spec: str) -> str:
        if spec != CLASSES and (not spec.startswith(CLIP) or spec == CLIP):
            raise ValueError(f'must be "classes" or "clip:MODEL", got {json.dumps(spec)}')
        return spec

    @model_validator(mode="after")
    def _guided(self) -> "EvaluationConfig":
        scales = self.guidance_scales
        if len(set(scales)) < len(scales) or not all(w > 1 for w in scales):
            raise ValueError(f"guidance_scales must differ and be above 1, got {list(scales)}")
        return self

    @model_validator(mode="after")
    def _rising(self) -> "EvaluationConfig":
        rungs = list(self.rungs)
        if rungs and (rungs != sorted(set(rungs)) or rungs[0] < 8 or rungs[-1] != self.images):
            raise ValueError(
                f"rungs must rise from at least 8 to images = {self.images}, got {rungs}"
            )
        return self


class BaselinesConfig(_Section):
    """Known schedules, each at every guidance with `num_steps`, and unguided with all passes."""

    guidance_scales: tuple[float, ...] = (1.25, 1.5, 2.0, 3.0, 5.0)
    orders: tuple[int, ...] = (1, 2)
    solvers: tuple[str, ...] = ("dpmpp-midpoint",)  # each at every order, up to its highest
    rivals: tuple[Rival, ...] = ()  # placements computed for the model
    gains: tuple[Annotated[float, Field(ge=0.8, le=1.25)], ...] = (1.0,)  # of all steps; 1: none
    presets: tuple[str, ...] = (ALL,)  # names, or patterns such as seed-sd-*: all that fit
    rungs: tuple[int, ...] = (40, 120, 400)  # images at each round of successive halving
    keep: float = Field(0.25, gt=0, lt=1)  # share that goes on to the next rung
    test: int = Field(3, ge=1)  # the best so many enter the test
    long_steps: tuple[int, ...] = ()  # DPM-Solver++(2M) with so many steps enters it too

    @model_validator(mode="after")
    def _rising(self) -> "BaselinesConfig":
        rungs = list(self.rungs)
        if not rungs or rungs != sorted(set(rungs)) or rungs[0] < 2 or rungs[-1] > SEEDS:
            raise ValueError(f"rungs must rise from at least 2 to at most {SEEDS}, got {rungs}")
        return self

    @model_validator(mode="after")
    def _listed(self) -> "BaselinesConfig":
        for name in ("orders", "solvers", "gains"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one, got []")
        for solver in self.solvers:
            if solver not in SOLVERS or solver == "heun":
                names = ", ".join(name for name in SOLVERS if name != "heun")
                raise ValueError(f"solvers must be of {names}, got {solver!r}")
        highest = max(SOLVERS[solver] for solver in self.solvers)
        if not all(1 <= order <= highest for order in self.orders):
            raise ValueError(
                f"orders of {', '.join(self.solvers)} are 1 to {highest}, got {list(self.orders)}"
            )
        if any(scale < 0 for scale in self.guidance_scales):
            raise ValueError(f"guidance_scales must be >= 0, got {list(self.guidance_scales)}")
        if not all(1 <= n <= MOST_STEPS for n in self.long_steps):
            raise ValueError(f"long_steps must be 1 to {MOST_STEPS}, got {list(self.long_steps)}")
        lists = ("guidance_scales", "orders", "solvers", "rivals", "gains", "presets", "long_steps")
        for name in lists:
            values = list(getattr(self, name))
            shown = {f"{v:g}" if isinstance(v, float) else v for v in values}  # as in names
            if len(shown) != len(values):
                raise ValueError(f"{name} must differ, got {values}")
        return self


class SearchConfig(_Section):
    algorithm: Literal["gp-local", "gp", "tpe", "cmaes", "gp-cmaes", "nsga2", "random"] = "gp-local"
    trials: int = Field(60, ge=1)
    minutes: float | None = Field(None, gt=0)  # stop asking for new trials after this long
    seed: int = Field(0, ge=0)
    finalists: int = Field(8, ge=1)  # trials that are scored again on the selection seeds
    start_from: str | None = None  # folder of a finished run whose best trials come first
    patience: int | None = Field(None, ge=1)  # trials without a gain beyond the noise; then stop
    # Both: a Pareto front of trials. Else alignment is a floor under the one objective.
    objectives: tuple[Literal["fd", "alignment"], ...] = ("fd",)
    alignment_drop: float = Field(0.01, ge=0, le=1)  # share that may be lost to the teacher's

    @property
    def both(self) -> bool:
        """Whether alignment is an objective beside FD."""
        return len(self.objectives) > 1

    @model_validator(mode="after")
    def _one_or_both(self) -> "SearchConfig":
        if self.objectives not in (("fd",), ("fd", "alignment")):
            raise ValueError(
                'objectives must be ["fd"] or ["fd", "alignment"], '
                f"got {json.dumps(self.objectives)}"
            )
        if self.both and self.algorithm.endswith("cmaes"):
            raise ValueError(
                f"algorithm: {self.algorithm} has one objective; gp-local, gp, tpe, nsga2 and "
                "random take both"
            )
        if self.both and self.patience is not None:
            raise ValueError("patience is for one objective, not for a front")
        return self


class TeacherConfig(_Section):
    """The same model with many steps of DPM-Solver++(2M); the floor for alignment."""

    steps: int = Field(50, ge=2, le=MOST_STEPS)
    guidance_scale: float = Field(2.0, ge=0)
    # at most; its alignment is that on the seeds of the trials, and of the selection
    images: int = Field(500, ge=8, le=SEEDS)
    test: bool = False  # whether it enters the test as well


MODEL = ModelConfig()


class StudyConfig(_Section):
    """A study. `name` is that of its file."""

    name: str
    model: ModelConfig = MODEL
    space: SpaceConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    baselines: BaselinesConfig = BaselinesConfig()
    teacher: TeacherConfig = TeacherConfig()
    search: SearchConfig = SearchConfig()

    @model_validator(mode="after")
    def _rungs_are_of_one_objective(self) -> "StudyConfig":
        if self.evaluation.rungs and self.search.both:
            raise ValueError("evaluation.rungs are for one objective, not for a front")
        if self.space.guidance == "off" and self.evaluation.guidance_scales:
            raise ValueError(
                'evaluation.guidance_scales: there is no guidance to scale, space.guidance is "off"'
            )
        return self

    @property
    def teacher_scale(self) -> float:
        """The teacher's guidance scale; 1 where nothing is guided."""
        return 1.0 if self.space.guidance == "off" else self.teacher.guidance_scale


def load_config(path: Path, overrides: dict[str, dict[str, Any]] | None = None) -> StudyConfig:
    """Read a study file; `overrides` replace values, section by section.

    Raises:
        UserError: names the file, the key, the rule and the value.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML, as a study file is: {error}") from error
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
    """The first problem as one sentence; an unknown key first, as others may come of it."""
    problems = error.errors()
    first = next((p for p in problems if p["type"] in UNKNOWN), problems[0])
    place = ".".join(str(part) for part in first["loc"])
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
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("missing", "value_error"):
        return f"{place}: {message}" if place else message
    message = message.replace("Input should be a valid tuple", 'must be a list, such as ["a", "b"]')
    return f"{place}: {message.replace('Input should be', 'must be')}, got {first['input']!r}"


def _keys(section: Any) -> dict[str, FieldInfo]:
    """The keys of a section, be it a model or a dataclass; none of what is no section."""
    return getattr(section, "__pydantic_fields__", {})
