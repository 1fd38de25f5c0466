"""What every kind of noise has: the numbers around its network, and a highest level."""

from typing import NamedTuple

from stepsampler.errors import UserError
from stepsampler.schedule import Schedule


class Scales(NamedTuple):
    """x0 = c_skip x + c_out F(c_in x)."""

    c_in: float
    c_skip: float
    c_out: float


def check_levels(schedule: Schedule, highest: float) -> None:
    first = schedule.steps[0].sigma
    if first > highest * 1.001:
        raise UserError(f"step 0: sigma {first:g} is above the model's highest, {highest:g}")
    for i, step in enumerate(schedule.steps):
        told = step.sigma * step.time_scale
        if step.time_scale != 1 and told > highest * 1.001:
            raise UserError(
                f"step {i}: the network is told sigma {told:g} (time_scale {step.time_scale:g}), "
                f"above the model's highest, {highest:g}"
            )
