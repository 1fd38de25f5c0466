"""Networks that predict epsilon or v, as x0-predictions with guidance."""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from stepsampler.errors import UserError
from stepsampler.noise import NoiseSchedule

# (x scaled to unit variance, fractional timestep, condition) -> the network's output
Network = Callable[[Tensor, float, Tensor], Tensor]

PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class GuidedDenoiser:
    """x0 = uncond + w (cond - uncond) (Ho & Salimans 2022); w = 1 costs one pass, any other two.

    `cond` and `uncond` have shape (n, ...), one row an image; both go through the network as one
    batch of 2 n. Arithmetic outside of the network is done in the dtype of `x`.
    """

    network: Network
    noise: NoiseSchedule
    prediction_type: str
    cond: Tensor
    uncond: Tensor

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTIONS:
            raise UserError(
                f"prediction_type must be one of {', '.join(PREDICTIONS)}, "
                f"got {self.prediction_type!r}"
            )

    def __call__(self, x: Tensor, sigma: float, guidance_scale: float) -> Tensor:
        alpha = 1 / sqrt(1 + sigma**2)
        timestep = self.noise.timestep(sigma)
        scaled = alpha * x
        if guidance_scale == 1:
            output = self.network(scaled, timestep, self.cond)
        else:
            both = self.network(
                torch.cat([scaled, scaled]), timestep, torch.cat([self.uncond, self.cond])
            )
            uncond, cond = both.chunk(2)
            output = uncond + guidance_scale * (cond - uncond)
        if self.prediction_type == "epsilon":
            return x - sigma * output
        if self.prediction_type == "v_prediction":  # v = alpha * noise - sigma_vp * x0
            return alpha**2 * x - alpha * sigma * output
        return output  # the network predicts x0 itself
