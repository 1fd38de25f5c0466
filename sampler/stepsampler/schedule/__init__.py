"""The schedule file: validated, read and written with the standard library alone."""

import json
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

from stepsampler.schedule.parts import (
    MOST_INTERVALS,
    PURE_NOISE,
    FreeU,
    GoldenNoise,
    LearnedNoise,
    ModelSpec,
    StatisticsSpec,
    Step,
)
from stepsampler.schedule.reading import (
    golden_from,
    model_from,
    statistics_from,
    step_data,
    step_from,
    used,
)
from stepsampler.support.checks import ScheduleError, keys, no_object, number, one_of, parse, shown
from stepsampler.support.files import meant, write_text

__all__ = [
    "MOST_INTERVALS",
    "PURE_NOISE",
    "FreeU",
    "GoldenNoise",
    "LearnedNoise",
    "ModelSpec",
    "Schedule",
    "StatisticsSpec",
    "Step",
    "load",
]

FORMAT = "stepsearch.schedule/1"

BY_STATISTICS = "dpm-v3"  # the rule that goes by statistics of the model
# The update rules and the highest order of each; what order 2 means depends on the rule.
SOLVERS: Mapping[str, int] = {
    "ddim": 1,
    "dpmpp-midpoint": 3,
    "dpmpp-heun": 3,
    "exact": 3,
    "deis": 3,
    "unipc-bh1": 3,
    "unipc-bh2": 3,
    "ipndm": 4,
    BY_STATISTICS: 3,
    "heun": 2,  # not a multistep rule: a step of order 2 calls the network twice
}
WITH_CORRECTOR = ("unipc-bh1", "unipc-bh2", BY_STATISTICS)
WITHOUT_FORMS = ("ipndm", "heun")  # rules on dx / dsigma, neither on x0 nor on epsilon
GUIDANCE = ("classifier-free", "distilled")
DECODE = ("x", "alpha-x")
SMALLEST_GAP = 1e-9  # relative; nearer sigmas have no usable difference in log sigma
MOST_REPEATS = 100  # of a step
MAX_BYTES = 1_000_000  # of a schedule file; a thousand steps are a tenth of it


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
    _: KW_ONLY
    guidance: str = "classifier-free"  # or "distilled": the scale is an input of the network
    decode: str = "x"  # the last state goes to the decoder as it is, or as alpha * x
    golden_noise: GoldenNoise | LearnedNoise | None = None
    # Of a model with two networks: steps at this sigma or above are the first one's. None: where
    # the model itself changes it.
    boundary: float | None = None
    statistics: StatisticsSpec | None = None  # of dpm-v3

    def __post_init__(self) -> None:
        if not self.steps:
            raise ScheduleError("a schedule needs at least one step")
        one_of("solver", self.solver, tuple(SOLVERS))
        one_of("guidance", self.guidance, GUIDANCE)
        one_of("decode", self.decode, DECODE)
        if not isfinite(self.final_sigma) or self.final_sigma < 0:
            raise ScheduleError(f"final_sigma must be finite and >= 0, got {self.final_sigma}")
        if self.boundary is not None and not (isfinite(self.boundary) and self.boundary >= 0):
            raise ScheduleError(f"boundary must be finite and >= 0, got {self.boundary}")
        for i, step in enumerate(self.steps):
            self._check_step(i, step)
        for i, (sigma, sigma_next) in enumerate(pairwise(self.sigmas)):
            if not sigma * (1 - SMALLEST_GAP) > sigma_next:
                raise ScheduleError(f"step {i}: sigma must fall, got {sigma:g} -> {sigma_next:g}")
        last = self.num_steps - 1
        if self.steps[-1].corrector:
            raise ScheduleError(f"step {last}: no prediction follows the last step to correct it")
        for i, step in enumerate(self.steps):
            for what, share in (("sigma", 1.0), ("sigma * time_scale", step.time_scale)):
                if self.flow and (told := share * step.sigma) > 1:
                    raise ScheduleError(
                        f"step {i}: {what} of a flow model is at most 1, got {told:g}"
                    )
        edm = self.model is not None and self.model.sigma_data is not None
        if (self.flow or edm) and self.decode != "x":
            kind = "a flow model" if self.flow else "a model with EDM's preconditioning"
            raise ScheduleError(f"decode of {kind} must be x, got {self.decode!r}")
        if self.golden_noise:
            self._check_golden(self.golden_noise)
        self._check_statistics(self.statistics)

    def _check_step(self, i: int, step: Step) -> None:
        names = ("sigma", "guidance_scale", "guidance_rescale", "churn", "analytic", "gain")
        numbers = {name: getattr(step, name) for name in (*names, "time_scale")}
        numbers |= {f"weight {j}": weight for j, weight in enumerate(step.weights or ())}
        for name, value in numbers.items():
            if value is not None and not isfinite(value):
                raise ScheduleError(f"step {i}: {name} must be finite, got {value}")
        if step.guidance_scale < 0:
            raise ScheduleError(
                f"step {i}: guidance_scale must be >= 0, got {step.guidance_scale:g}"
            )
        if not 0 <= step.guidance_rescale <= 1:
            raise ScheduleError(
                f"step {i}: guidance_rescale must be in [0, 1], got {step.guidance_rescale:g}"
            )
        if step.guidance_reuse:
            self._check_reuse(i, step)
        if step.repeats:
            self._check_repeats(i, step)
        if step.x0_reuse and (i == 0 or self.solver == "heun" or self.steps[i - 1].corrector):
            raise ScheduleError(
                f"step {i}: x0_reuse needs a step before it, which has no corrector and is none of "
                "heun"
            )
        if step.guidance_rescale and self.guidance == "distilled":
            raise ScheduleError(f"step {i}: guidance_rescale needs classifier-free guidance")
        for name in ("gain", "time_scale"):
            if getattr(step, name) <= 0:
                raise ScheduleError(f"step {i}: {name} must be > 0, got {getattr(step, name):g}")
        if step.weights is None:
            self._check_rule(i, step)
        else:
            self._check_weights(i, step, len(step.weights))
        if step.analytic is not None and (i > 0 or self.flow or self.solver == "heun"):
            raise ScheduleError(
                f"step {i}: only the first step may be analytic, "
                "of a variance-preserving model and not with heun"
            )
        if not 0 <= step.churn <= 1:
            raise ScheduleError(f"step {i}: churn must be in [0, 1], got {step.churn:g}")
        if step.churn and (i == 0 or self.flow or self.steps[i - 1].corrector):
            raise ScheduleError(
                f"step {i}: only a later step of a variance-preserving model may have churn, "
                "and not after a corrector"
            )
        for name, gain in vars(step.free_u).items() if step.free_u else ():
            if not (isfinite(gain) and gain > 0):
                raise ScheduleError(f"step {i}: {name} of free_u must be > 0, got {gain}")

    def _check_reuse(self, i: int, step: Step) -> None:
        """Where there is nothing to reuse, or nothing to guide."""
        both = any(
            s.guidance_scale != 1 and not s.guidance_reuse and s.calls for s in self.steps[:i]
        )
        off = step.guidance_scale == 1 or self.guidance == "distilled" or step.x0_reuse
        if off or not both:
            raise ScheduleError(
                f"step {i}: guidance_reuse needs a guidance_scale, and a step before it with both "
                "predictions"
            )

    def _check_repeats(self, i: int, step: Step) -> None:
        """Guidance is iterated where a call has both predictions and there is a way back."""
        if step.repeats not in range(MOST_REPEATS + 1):
            raise ScheduleError(
                f"step {i}: repeats must be 0 to {MOST_REPEATS}, got {shown(step.repeats)}"
            )
        both = step.calls and step.guidance_scale != 1 and not step.guidance_reuse
        if not both or self.guidance == "distilled" or self.sigmas[i + 1] == 0:
            raise ScheduleError(
                f"step {i}: repeats need a call with both predictions, onto a sigma above 0"
            )
        if i and self.steps[i - 1].corrector:
            raise ScheduleError(f"step {i}: repeats and a corrector before them exclude each other")

    def _check_rule(self, i: int, step: Step) -> None:
        highest = min(i + 1, SOLVERS[self.solver]) if self.solver != "heun" else 2
        if isinstance(step.order, bool) or step.order not in range(1, highest + 1):
            raise ScheduleError(
                f"step {i}: order of {self.solver} must be 1 to {highest} here, "
                f"got {shown(step.order)}"
            )
        if step.corrector and self.solver not in WITH_CORRECTOR:
            raise ScheduleError(
                f"step {i}: {self.solver} has no corrector; {', '.join(WITH_CORRECTOR)} have"
            )
        if step.prediction is not None:
            one_of(f"step {i}: prediction", step.prediction, ("data", "noise"))
            if self.solver in WITHOUT_FORMS:
                raise ScheduleError(f"step {i}: {self.solver} has no data or noise form")
        last = i == self.num_steps - 1
        lands = self.final_sigma == 0 if last else self.steps[i + 1].churn == 1
        if lands and step.order > 1:
            before = "" if last else ", from where the next begins with fresh noise,"
            raise ScheduleError(  # lambda is infinite there
                f"step {i}: the step onto sigma 0{before} must have order 1, got {step.order}"
            )

    def _check_weights(self, i: int, step: Step, count: int) -> None:
        if not 1 <= count <= i + 1:
            raise ScheduleError(
                f"step {i}: weights must be 1 to {i + 1}, of this prediction and those before it, "
                f"got {count}"
            )
        if step.order != count:
            raise ScheduleError(
                f"step {i}: order must be {count}, as many as there are weights, "
                f"got {shown(step.order)}"
            )
        if step.corrector or self.solver == "heun":
            what = "corrector" if step.corrector else "heun"
            raise ScheduleError(f"step {i}: weights and {what} exclude each other")
        if step.prediction is not None:
            one_of(f"step {i}: prediction", step.prediction, ("data", "noise", "derivative"))

    def _check_golden(self, golden: GoldenNoise | LearnedNoise) -> None:
        if self.flow:
            raise ScheduleError("golden_noise is for variance-preserving models")
        if isinstance(golden, LearnedNoise):
            if not re.fullmatch("[0-9a-f]{16}", golden.npnet):
                raise ScheduleError(
                    "golden_noise: npnet must be the first 16 characters of a file's SHA-256, "
                    f"got {shown(golden.npnet)}"
                )
            return
        one_of("golden_noise: start", golden.start, ("prediction", "inversion"))
        if not 0 < golden.sigma < self.steps[0].sigma:
            raise ScheduleError(
                f"golden_noise: sigma must be between 0 and the first, got {golden.sigma:g}"
            )
        if not (isfinite(golden.guidance_scale) and golden.guidance_scale >= 0):
            raise ScheduleError(
                f"golden_noise: guidance_scale must be >= 0, got {golden.guidance_scale:g}"
            )

    def _check_statistics(self, named: StatisticsSpec | None) -> None:
        if (named is not None) != (self.solver == BY_STATISTICS):
            raise ScheduleError(
                f"statistics are of the solver {BY_STATISTICS}, got {self.solver}"
                if named
                else f"the solver {BY_STATISTICS} needs statistics: which, is missing"
            )
        if named is None:
            return
        if self.flow or (self.model and self.model.sigma_data):
            raise ScheduleError(f"{BY_STATISTICS} is for variance-preserving models")
        named.check()

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The `num_steps + 1` noise levels, where the last step lands included."""
        return (*(step.sigma for step in self.steps), self.final_sigma)

    @property
    def num_steps(self) -> int:
        return len(self.steps)

    @property
    def flow(self) -> bool:
        """Levels of x = (1 - sigma) x0 + sigma noise rather than of x = x0 + sigma noise."""
        return self.model is not None and self.model.prediction_type == "flow_prediction"

    @property
    def raw_noise(self) -> GoldenNoise | None:
        """Golden noise that calls the network, or None."""
        return self.golden_noise if isinstance(self.golden_noise, GoldenNoise) else None

    @property
    def npnet(self) -> str | None:
        """Which network makes golden noise, by the digest of its file; or None."""
        return self.golden_noise.npnet if isinstance(self.golden_noise, LearnedNoise) else None

    @property
    def passes(self) -> int:
        """Network passes per image: two for a guided call, one for an unguided or distilled one.

        One that reuses guidance is one pass. An analytic step has no call, nor has one that reuses
        x0; one of Heun's of order 2 has two, raw golden noise adds two. Each of a step's `repeats`
        has a guided call and an unconditional one.
        """
        golden = self.raw_noise
        more = 2 * self._per_call(golden.guidance_scale) if golden else 0
        return more + sum(map(self.passes_of, self.steps))

    def passes_of(self, step: Step) -> int:
        calls = 0 if not step.calls else step.order if self.solver == "heun" else 1
        once = calls * (1 if step.guidance_reuse else self._per_call(step.guidance_scale))
        return once + 3 * step.repeats

    def _per_call(self, w: float) -> int:
        return 1 if self.guidance == "distilled" or w == 1 else 2

    def to_json(self) -> str:
        """The file's text, without what has its default. Floats survive a round trip unchanged."""
        data: dict[str, Any] = {"format": FORMAT, "solver": self.solver}
        data |= {k: getattr(self, k) for k in ("guidance", "decode", "boundary") if used(self, k)}
        if self.model:
            data["model"] = {k: v for k, v in vars(self.model).items() if v is not None}
        if self.golden_noise:
            data["golden_noise"] = vars(self.golden_noise)
        if self.statistics:
            data["statistics"] = {k: v for k, v in vars(self.statistics).items() if v is not None}
        steps = ",\n".join("    " + json.dumps(step_data(step)) for step in self.steps)
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
        data = parse(text)
        found = data.get("format") if isinstance(data, dict) else None
        if found != FORMAT:
            raise ScheduleError(f"expected format {FORMAT!r}, got {shown(found)}")
        del data["format"]
        values = keys(data, cls, "the schedule")
        for name in ("steps", "final_sigma", "solver"):
            if name not in values:
                raise ScheduleError(f"the schedule: {name} is missing")
        if not isinstance(values["steps"], list):
            raise ScheduleError(f"steps must be a list, got {shown(values['steps'])}")
        values["steps"] = tuple(step_from(i, step) for i, step in enumerate(values["steps"]))
        values["final_sigma"] = number(values["final_sigma"], "final_sigma")
        if values.get("boundary") is not None:
            values["boundary"] = number(values["boundary"], "boundary")
        if values.get("golden_noise") is not None:
            values["golden_noise"] = golden_from(values["golden_noise"])
        if values.get("statistics") is not None:
            values["statistics"] = statistics_from(values["statistics"])
        if values.get("model") is not None:
            values["model"] = model_from(values["model"])
        if not isinstance(values.get("provenance", {}), dict):
            raise ScheduleError(f"provenance must be an object, got {shown(values['provenance'])}")
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write atomically: a temporary name beside `path`, then rename."""
        write_text(path, self.to_json())

    def _repr_html_(self) -> str:
        from stepsampler.schedule.drawing import html

        return html(self)


def load(path: str | Path) -> Schedule:
    """Read a schedule file.

    Raises:
        ScheduleError: the file cannot be read, or cannot be sampled; names the file.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ScheduleError(f"a schedule has at most {MAX_BYTES:,} bytes, this file has more")
        return Schedule.from_json(content.decode("utf-8-sig"))
    except OSError as error:
        raise ScheduleError(f"{path}: {error.strerror}{meant(path)}") from error
    except (ScheduleError, UnicodeDecodeError) as error:
        if Path(path).suffix == ".toml":
            raise ScheduleError(
                f"{path}: a schedule is a JSON file; that of a study is written by "
                "`stepsearch export`"
            ) from error
        other = None if len(content) > MAX_BYTES else no_object(content)
        raise ScheduleError(f"{path}: {other or error}") from error
