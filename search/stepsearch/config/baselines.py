"""`[baselines]` and `[teacher]` of a study: what others would use."""

from typing import Annotated

from pydantic import Field, model_validator

from stepsampler.schedule import SOLVERS
from stepsearch.config.parts import MOST_STEPS, SEEDS, Rival, Section

ALL = "*"  # presets: the pattern of every name


class BaselinesConfig(Section):
    """Known schedules, each at every guidance with `num_steps`, and unguided with all passes."""

    guidance_scales: tuple[float, ...] = (1.25, 1.5, 2.0, 3.0, 5.0)  # of all steps
    orders: tuple[int, ...] = (1, 2)  # of the solvers
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
            known = [name for name in SOLVERS if name != "heun"]
            if solver not in known:
                names = ", ".join(known)
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


class TeacherConfig(Section):
    """The same model with many steps of DPM-Solver++(2M); the floor for alignment."""

    steps: int = Field(50, ge=2, le=MOST_STEPS)  # many, as the quality to come near to
    guidance_scale: float = Field(2.0, ge=0)  # of all steps
    # at most; its alignment is that on the seeds of the trials, and of the selection
    images: int = Field(500, ge=8, le=SEEDS)
    test: bool = False  # whether it enters the test as well
