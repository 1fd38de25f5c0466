"""Execute few-step sampling schedules exactly. Reading a schedule needs no torch.

What does need it is imported from its own module: `stepsampler.generate`, `stepsampler.models`,
`stepsampler.scheduler.StepScheduler`, `stepsampler.guided.guided`.
"""

from stepsampler.errors import UserError
from stepsampler.schedule import (
    FORMAT,
    FreeU,
    GoldenNoise,
    ModelSpec,
    Schedule,
    Step,
    load,
)
from stepsampler.support.checks import ScheduleError

__all__ = [
    "FORMAT",
    "FreeU",
    "GoldenNoise",
    "ModelSpec",
    "Schedule",
    "ScheduleError",
    "Step",
    "UserError",
    "load",
]
