"""`[space]` of a study: the box."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from stepsampler.grids import GRIDS
from stepsampler.schedule import SOLVERS
from stepsearch.config.parts import RIVALS, Range, Section

OFF, RAW = "off", "raw"  # of golden_noise; any other is an NPNet
NO_ANALYTIC = 0.9  # gains below it mean that there is no analytic step
STEEPEST = 10.0  # of log_gap: some way beyond it neighbouring sigmas coincide


class SpaceConfig(Section):
    """The box; `passes` is the budget of one image.

    `num_steps` is the number of steps, or with `max_steps` the smallest: a schedule of more steps
    guides fewer of them.
    """

    num_steps: int = Field(ge=2, le=64)  # of a schedule
    passes: int = Field(ge=2)  # of the network, an image: a guided step has two
    max_steps: int | None = Field(None, ge=2)  # None: every schedule has num_steps
    solvers: tuple[str, ...] = ("dpmpp-midpoint",)  # several: the search chooses
    # Placement: the gaps of a baseline stretched along a curve, or a family of two numbers.
    placement: Literal["curve", "power", "karras"] = "curve"
    # Of a curve: a grid, a rival, or "best", the grid that wins among the baselines at this budget.
    baseline: str = "best"
    log_gap: Range = (-1.0, 1.0)  # of a curve: how much each gap is stretched, as a logarithm
    rho: Range = (0.5, 3.0)  # of power, in timesteps, or of karras, in sigma
    first_sigma: Range | None = None  # None: where the baseline starts
    # Below the model's sigma_min: in the lower half, in logarithm, 0, in the upper sigma_min.
    final_sigma: Range = (0.02, 0.6)
    sigma_min: Range | None = None  # of karras, the last before a final 0; None: the model's
    # Of a model with two networks, the sigma below which the second one works; None: the model's
    boundary: Range | None = None
    whole_timesteps: bool = False  # levels at whole training timesteps, as other tools tell them
    # Guidance
    guidance_scale: Range = (0.6, 4.0)  # below 1 means off: w = 1, one pass instead of two
    # How the scale may go from step to step. "off": every step is unguided, as those of
    # unconditional models must be.
    guidance: Literal["per-step", "linear", "interval", "constant", "off"] = "linear"
    guidance_rescale: Range | None = None  # below 0 means none
    # Of the guided steps every so-manieth alone has both predictions; the others reuse guidance
    reuse: int = Field(1, ge=1, le=16)
    # How often the first guided step may be iterated, 3 passes each time (Foresight Guidance)
    repeats: int = Field(0, ge=0, le=8)
    # Solver
    max_order: int = Field(3, ge=1, le=4)  # of the solver
    order: Literal["constant", "per-step"] = "constant"  # one of all steps, or one each
    corrector: bool = False  # UniPC's becomes a choice; without it, it is on
    prediction: bool = False  # data or noise form of the rule becomes a choice; else its own
    analytic: Range | None = None  # gain of an analytic first step; below 0.9 means none
    analytic_at: Range | None = None  # where it lands, a share of the first gap; None: half-way
    churn: Range | None = None  # share of fresh noise at every step after the first; below 0: none
    fresh_noise: Literal["constant", "per-step"] = "constant"  # one churn of all steps, or one each
    gain: Range | None = None  # of every step, times what it takes of the predictions; 1 is none
    # Where there are several, the search chooses: "off", "raw" (from the level after the first back
    # to it, by inversion: two calls of the passes), or an NPNet by the digest of its file.
    golden_noise: tuple[str, ...] = ("off",)
    decode: bool = False  # whether the last latent is scaled by alpha becomes a choice; else not
    # Free-U, on or off at every step, with one set of gains or two to choose from
    free_u: bool = False
    free_u_sets: int = Field(1, ge=1, le=2)  # of gains
    free_u_b: Range = (1.0, 1.6)  # of the decoder's features
    free_u_s: Range = (0.2, 1.0)  # of the skips

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
        if self.guidance == "off" and self.repeats:
            raise ValueError('repeats: there is no guidance to iterate, it is "off"')
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
        if self.fresh_noise == "per-step" and not self.churn:
            raise ValueError("fresh_noise: there is no fresh noise without churn")
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
            between = "" if self.max_steps is None else f" <= max_steps = {self.max_steps}"
            raise ValueError(
                f"num_steps = {self.num_steps}{between} <= passes = {self.passes} must hold"
            )
        self._check_golden()
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

    @property
    def npnets(self) -> list[str]:
        """The networks of learned golden noise among the choices, by their digests."""
        return [name for name in self.golden_noise if name not in (OFF, RAW)]

    def _check_golden(self) -> None:
        names = self.golden_noise
        if not names or len(set(names)) < len(names):
            raise ValueError(f"golden_noise must be different names, got {list(names)}")
        for name in self.npnets:
            if not re.fullmatch("[0-9a-f]{16}", name):
                raise ValueError(
                    'golden_noise must be of "off", "raw" and the first 16 characters of the '
                    f"SHA-256 of an NPNet's file, got {name!r}"
                )
        if RAW in names and self.most_steps + 2 > self.passes:
            raise ValueError(
                f"golden_noise: raw takes 2 of the passes, so that passes must be at least "
                f"{self.most_steps + 2}, got {self.passes}"
            )
