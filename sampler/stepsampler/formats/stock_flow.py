"""What a stock FlowMatchEulerDiscreteScheduler makes of the sigmas it is handed, and the inverse.

It shifts them, by `shift` or by the `mu` that a pipeline passes, and where the config has
`shift_terminal` (Qwen-Image, LTX) stretches them so that the last one is that value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, isclose, isfinite
from typing import Any

from stepsampler.errors import UserError
from stepsampler.noise import FlowSchedule

REPLACING = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas")
RANDOM = "stochastic_sampling"
SMALLEST, LARGEST = 0.001, 1000.0  # of a shift: nearer to 0 or infinity, all sigmas would be one
CLOSE = 1e-6


@dataclass(frozen=True)
class Shifting:
    """The map of a scheduler's config; `terminal` is 0 where nothing is stretched."""

    noise: FlowSchedule
    terminal: float = 0.0

    @classmethod
    def of(cls, config: Mapping[str, Any], mu: float | None) -> "Shifting":
        """Read a config; `mu` is what the pipeline passes where its shift is dynamic.

        Raises:
            UserError: a config that replaces the sigmas, or whose dynamic shift is not known.
        """
        for name in (*REPLACING, RANDOM):
            if config.get(name):
                raise UserError(f"the scheduler's {name} makes other steps of any sigmas")
        shift = _number(config.get("shift"), "shift", 1.0)
        if config.get("use_dynamic_shifting"):
            if mu is None:
                raise UserError(
                    "use_dynamic_shifting: the shift is that of the call's mu, which depends on "
                    "the size of the image and is not given (of an export by --mu, of an import in "
                    "the call)"
                )
            linear = config.get("time_shift_type") == "linear"
            shift = mu if linear else exp(min(mu, 100.0))
        if not SMALLEST <= shift <= LARGEST:
            raise UserError(f"shift must be at least 0.001 and at most 1000, got {shift:g}")
        terminal = _number(config.get("shift_terminal"), "shift_terminal", 0.0)
        if not 0 <= terminal < 1:
            raise UserError(f"shift_terminal must be at least 0 and below 1, got {terminal:g}")
        return cls(FlowSchedule(shift), terminal)

    def run(self, handed: Sequence[float]) -> list[float]:
        """The sigmas that the scheduler steps through, without the last, 0.

        Raises:
            UserError: sigmas that it cannot take.
        """
        for sigma in handed:
            if not 0 < sigma <= 1:
                raise UserError(f"a sigma of a flow must be above 0 and at most 1, got {sigma:g}")
        sigmas = [self.noise.sigma(sigma * self.noise.last) for sigma in handed]
        if not self.terminal:
            return sigmas
        if sigmas[-1] == 1:
            raise UserError(
                f"shift_terminal {self.terminal:g} stretches sigmas to their last, which is 1: the "
                "scheduler's are not a number"
            )
        scale = (1 - sigmas[-1]) / (1 - self.terminal)
        return [1 - (1 - sigma) / scale for sigma in sigmas]

    def handed(self, wanted: Sequence[float]) -> list[float]:
        """What to hand over so that the scheduler steps through `wanted`.

        Raises:
            UserError: no sigmas lead there.
        """
        if self.terminal and not isclose(wanted[-1], self.terminal, rel_tol=CLOSE):
            one = "a single step has sigma 1, which shift_terminal turns into no number: " * (
                len(wanted) == 1
            )
            raise UserError(
                f"{one}shift_terminal makes the last sigma {self.terminal:g}, and the schedule's "
                f"is {wanted[-1]:g}; without --scheduler-config it is switched off"
            )
        return [self.noise.timestep(sigma) / self.noise.last for sigma in wanted]


def _number(value: Any, name: str, default: float) -> float:
    number = float(default if value is None else value)
    if not isfinite(number):
        raise UserError(f"{name} must be at least 0.001 and at most 1000, got {number:g}")
    return number
