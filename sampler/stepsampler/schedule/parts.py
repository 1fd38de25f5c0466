"""What a schedule is made of: its steps, golden noise, and the model that it is for."""

import re
from dataclasses import MISSING, dataclass, fields
from math import isfinite

from stepsampler.support.checks import ScheduleError, shown

# A sigma above it is nothing but noise to a network, and tools write the end of zero terminal SNR,
# which is infinite, as one: 4,096 or 4,519. All of them mean the same.
PURE_NOISE = 1000.0


@dataclass(frozen=True)
class FreeU:
    """Free-U (Si et al. 2023): gains of the U-Net's decoder features (b) and skips (s)."""

    b1: float
    b2: float
    s1: float
    s2: float


@dataclass(frozen=True)
class GoldenNoise:
    """Start from noise that the model itself has predicted («raw golden noise»).

    One step from the first sigma down to `sigma`, a second prediction there, and back up to the
    first sigma with it: two more network calls, of this guidance scale.
    """

    sigma: float
    guidance_scale: float
    start: str = "prediction"  # the first x0 plus the new noise; or "inversion": DDIM backwards


@dataclass(frozen=True)
class LearnedNoise:
    """Start from what a network has made of the noise and the prompt: no pass of the model's."""

    npnet: str  # of its file's SHA-256, the first 16 characters


MOST_INTERVALS = 10_000  # of statistics; the authors' have 120 to 1,200
SAME_SCALE = 1e-3  # of two guidance scales at most


@dataclass(frozen=True)
class StatisticsSpec:
    """Which statistics of the model DPM-Solver-v3 goes by, and how it makes its derivatives.

    Pseudo orders (Zheng et al. 2023, appendix) take plain differences between neighbours where
    whole orders take the polynomial through all; a pseudo corrector has one prediction more.
    """

    guidance_scale: float  # of which they are; 1 is none
    intervals: int  # of their grid, even in log SNR
    digest: str | None = None  # of the file; None: any of this scale and grid
    p_pseudo: bool = False  # of the predictor
    c_pseudo: bool = True  # of the corrector

    def check(self) -> None:
        """
        Raises:
            ScheduleError: a number out of its range.
        """
        if not (isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise ScheduleError(
                f"statistics: guidance_scale must be >= 0, got {self.guidance_scale:g}"
            )
        if not 1 <= self.intervals <= MOST_INTERVALS:
            raise ScheduleError(
                f"statistics: intervals must be 1 to {MOST_INTERVALS}, got {shown(self.intervals)}"
            )
        if self.digest is not None and not re.fullmatch("[0-9a-f]{16}", self.digest):
            raise ScheduleError(
                f"statistics: digest must be 16 hexadecimal digits, got {shown(self.digest)}"
            )

    def is_like(self, other: "StatisticsSpec") -> bool:
        """Whether both are of one guidance scale and one grid."""
        near = abs(self.guidance_scale - other.guidance_scale) <= SAME_SCALE
        return near and self.intervals == other.intervals

    def __str__(self) -> str:
        digest = f" ({self.digest})" if self.digest else ""
        return f"of guidance scale {self.guidance_scale:g} in {self.intervals:,} intervals{digest}"


@dataclass(frozen=True)
class Step:
    """One call of the denoiser, and the update that follows it."""

    sigma: float  # noise level at which the denoiser is called
    guidance_scale: float = 1.0  # w in  uncond + w * (cond - uncond);  1 is none: one pass, not two
    order: int = 1  # predictions used by the update: this one and the order - 1 before it
    corrector: bool = False  # correct the landing as soon as the prediction there is known
    prediction: str | None = None  # "data", "noise": what the rule extrapolates; None: its own
    analytic: float | None = None  # no network call: epsilon = this gain * x at unit variance
    churn: float = 0.0  # share of the noise at this sigma, in deviations, that is drawn anew
    guidance_rescale: float = 0.0  # phi of Lin et al. 2023, section 3.4
    free_u: FreeU | None = None
    gain: float = 1.0  # times what the update takes of the predictions (`scale_dir` of AMED)
    weights: tuple[float, ...] | None = None  # in place of the rule's, newest first; see `solvers`
    time_scale: float = 1.0  # the network is told sigma * time_scale; x and the update have sigma
    guidance_reuse: bool = False  # cond - uncond is that of the last step that had both: one pass
    x0_reuse: bool = False  # no network call: x0 is that of the step before
    # How often the step is taken with guidance and back without, before it is taken: 3 passes each
    repeats: int = 0

    @property
    def calls(self) -> bool:
        """Whether the network is called."""
        return self.analytic is None and not self.x0_reuse


class Unconditional(Step):
    """A call under the negative prompt alone: one pass. Rows of a tableau have it, no file."""


@dataclass(frozen=True)
class ModelSpec:
    """What a schedule was made for; sampling anything else is an error, not a worse picture."""

    family: str  # "stable-diffusion", ...
    prediction_type: str  # "epsilon", "v_prediction", "sample" or "flow_prediction"
    noise: tuple[float, ...]  # sigma at five training timesteps: first, quarters, last
    sigma_data: float | None = None  # of EDM's preconditioning; None: the model has another

    def __repr__(self) -> str:
        """Less what is as by default: digests of runs and batches hold it, and a further field must
        not change those of before."""
        told = [
            f for f in fields(self) if f.default is MISSING or getattr(self, f.name) != f.default
        ]
        return f"ModelSpec({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in told)})"

    def mismatch(self, other: "ModelSpec") -> str | None:
        """Say in what `other` differs, or None."""
        for name in ("family", "prediction_type"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                return f"{name.replace('_', ' ')} {ours!r}, but the model has {theirs!r}"
        if self.sigma_data != other.sigma_data:
            ours, theirs = (
                f"EDM's preconditioning with sigma_data {data:g}" if data else "none of EDM's"
                for data in (self.sigma_data, other.sigma_data)
            )
            return f"{ours}, but the model has {theirs}"
        close = len(self.noise) == len(other.noise) and all(
            abs(a - b) <= 1e-3 * abs(a) or min(a, b) > PURE_NOISE
            for a, b in zip(self.noise, other.noise, strict=True)
        )
        if not close:
            ours, theirs = (", ".join(f"{s:.4g}" for s in m.noise) for m in (self, other))
            return f"a noise schedule with sigmas {ours}, but the model has {theirs}"
        return None
