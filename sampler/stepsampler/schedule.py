"""The schedule file: validated, read and written with the standard library alone."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

from stepsampler.errors import UserError

FORMAT = "stepsearch.schedule/1"

# The update rules and the highest order of each; what order 2 means depends on the rule.
SOLVERS: Mapping[str, int] = {"ddim": 1, "dpmpp-midpoint": 3, "dpmpp-heun": 3, "exact": 3}


class ScheduleError(UserError, ValueError):
    """The schedule cannot be sampled as written."""


@dataclass(frozen=True)
class Step:
    """One call of the denoiser, and the update that follows it."""

    sigma: float  # noise level at which the denoiser is called
    guidance_scale: float = 1.0  # w in  uncond + w * (cond - uncond);  1 is none: one pass, not two
    order: int = 1  # predictions used by the update: this one and the order - 1 before it


@dataclass(frozen=True)
class ModelSpec:
    """What a schedule was made for; sampling anything else is an error, not a worse picture."""

    family: str  # "stable-diffusion", ...
    prediction_type: str  # "epsilon" or "v_prediction"
    noise: tuple[float, ...]  # sigma at five training timesteps: first, quarters, last

    def mismatch(self, other: "ModelSpec") -> str | None:
        """Say in what `other` differs, or None."""
        for name in ("family", "prediction_type"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                return f"{name.replace('_', ' ')} {ours!r}, but the model has {theirs!r}"
        close = len(self.noise) == len(other.noise) and all(
            abs(a - b) <= 1e-3 * abs(a) for a, b in zip(self.noise, other.noise, strict=True)
        )
        if not close:
            ours, theirs = (", ".join(f"{s:.4g}" for s in m.noise) for m in (self, other))
            return f"a noise schedule with sigmas {ours}, but the model has {theirs}"
        return None


@dataclass(frozen=True)
class Schedule:
    """Steps at falling noise levels; the last one lands on `final_sigma`.

    Raises:
        ScheduleError: naming the place, the rule and the value.
    """

    steps: tuple[Step, ...]
    final_sigma: float = 0.0  # may be above 0: the latent is decoded with that noise in it
    solver: str = "dpmpp-midpoint"
    model: ModelSpec | None = None  # None: for any model that reaches these sigmas
    provenance: Mapping[str, Any] = field(default_factory=dict)  # no solver reads it

    def __post_init__(self) -> None:
        if not self.steps:
            raise ScheduleError("a schedule needs at least one step")
        if self.solver not in SOLVERS:
            raise ScheduleError(f"solver must be one of {', '.join(SOLVERS)}, got {self.solver!r}")
        if not isfinite(self.final_sigma) or self.final_sigma < 0:
            raise ScheduleError(f"final_sigma must be finite and >= 0, got {self.final_sigma}")
        for i, step in enumerate(self.steps):
            if not (isfinite(step.sigma) and isfinite(step.guidance_scale)):
                raise ScheduleError(f"step {i}: numbers must be finite, got {step}")
            if step.guidance_scale < 0:
                raise ScheduleError(
                    f"step {i}: guidance_scale must be >= 0, got {step.guidance_scale:g}"
                )
            highest = min(i + 1, SOLVERS[self.solver])
            if isinstance(step.order, bool) or step.order not in range(1, highest + 1):
                raise ScheduleError(
                    f"step {i}: order of {self.solver} must be 1 to {highest} here, "
                    f"got {step.order!r}"
                )
        for i, (sigma, sigma_next) in enumerate(pairwise(self.sigmas)):
            if not sigma > sigma_next:
                raise ScheduleError(f"step {i}: sigma must fall, got {sigma:g} -> {sigma_next:g}")
        last = self.steps[-1]
        if self.final_sigma == 0 and last.order > 1:  # lambda is infinite there
            raise ScheduleError(
                f"step {len(self.steps) - 1}: the step onto sigma 0 must have order 1, "
                f"got {last.order}"
            )

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The `num_steps + 1` noise levels, where the last step lands included."""
        return (*(step.sigma for step in self.steps), self.final_sigma)

    @property
    def num_steps(self) -> int:
        return len(self.steps)

    @property
    def passes(self) -> int:
        """Network passes per image: two for a guided step, one for an unguided one."""
        return sum(1 if step.guidance_scale == 1 else 2 for step in self.steps)

    def to_json(self) -> str:
        """The file's text. Every float survives a round trip unchanged."""
        data: dict[str, Any] = {"format": FORMAT, "solver": self.solver}
        if self.model:
            data["model"] = {**vars(self.model), "noise": list(self.model.noise)}
        steps = ",\n".join("    " + json.dumps(vars(step)) for step in self.steps)
        data["final_sigma"] = self.final_sigma
        if self.provenance:
            data["provenance"] = dict(self.provenance)
        head, tail = json.dumps(data, indent=2, allow_nan=False).split('  "final_sigma"', 1)
        return f'{head}  "steps": [\n{steps}\n  ],\n  "final_sigma"{tail}\n'

    @classmethod
    def from_json(cls, text: str) -> "Schedule":
        """Read the file's text.

        Raises:
            ScheduleError: not JSON, another format, an unknown or missing key, a wrong type,
                or a schedule that cannot be sampled.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ScheduleError(f"not JSON: {error}") from error
        found = data.get("format") if isinstance(data, dict) else None
        if found != FORMAT:
            raise ScheduleError(f"expected format {FORMAT!r}, got {found!r}")
        del data["format"]
        values = _keys(data, cls, "the schedule")
        for name in ("steps", "final_sigma", "solver"):
            if name not in values:
                raise ScheduleError(f"the schedule: {name} is missing")
        if not isinstance(values["steps"], list):
            raise ScheduleError(f"steps must be a list, got {values['steps']!r}")
        values["steps"] = tuple(_step(i, step) for i, step in enumerate(values["steps"]))
        values["final_sigma"] = _number(values["final_sigma"], "final_sigma")
        if values.get("model") is not None:
            values["model"] = _model(values["model"])
        if not isinstance(values.get("provenance", {}), dict):
            raise ScheduleError(f"provenance must be an object, got {values['provenance']!r}")
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write atomically: a temporary name beside `path`, then rename."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self.to_json())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def load(path: str | Path) -> Schedule:
    """Read a schedule file.

    Raises:
        ScheduleError: the file cannot be read, or cannot be sampled; names the file.
    """
    try:
        return Schedule.from_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ScheduleError(f"{path}: {error.strerror}") from error
    except (ScheduleError, UnicodeDecodeError) as error:
        raise ScheduleError(f"{path}: {error}") from error


def _keys(data: Any, cls: type, place: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ScheduleError(f"{place} must be an object, got {data!r}")
    names = [f.name for f in fields(cls)]
    for key in data:
        if key not in names:
            raise ScheduleError(f"{place}: unknown key {key!r}; known are {', '.join(names)}")
    return dict(data)


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ScheduleError(f"{place} must be a number, got {value!r}")
    return float(value)


def _step(i: int, data: Any) -> Step:
    values = _keys(data, Step, f"step {i}")
    for name in (f.name for f in fields(Step)):
        if name not in values:
            raise ScheduleError(f"step {i}: {name} is missing")
    order = values["order"]
    if isinstance(order, bool) or not isinstance(order, int):
        raise ScheduleError(f"step {i}: order must be a whole number, got {order!r}")
    return Step(
        _number(values["sigma"], f"step {i}: sigma"),
        _number(values["guidance_scale"], f"step {i}: guidance_scale"),
        order,
    )


def _model(data: Any) -> ModelSpec:
    values = _keys(data, ModelSpec, "model")
    missing = [f.name for f in fields(ModelSpec) if f.name not in values]
    if missing:
        raise ScheduleError(f"model: {missing[0]} is missing")
    for name in ("family", "prediction_type"):
        if not isinstance(values[name], str):
            raise ScheduleError(f"model: {name} must be a string, got {values[name]!r}")
    if not isinstance(values["noise"], list):
        raise ScheduleError(f"model: noise must be a list, got {values['noise']!r}")
    noise = tuple(_number(s, f"model: noise[{i}]") for i, s in enumerate(values["noise"]))
    return ModelSpec(values["family"], values["prediction_type"], noise)
