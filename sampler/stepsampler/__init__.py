"""Execute few-step sampling schedules exactly. Reading a schedule needs no torch.

What does need it is imported from its own module: `stepsampler.generate`, `stepsampler.models`,
`stepsampler.scheduler.StepScheduler`, `stepsampler.guided.guided`.
"""

from typing import TYPE_CHECKING

from stepsampler.errors import UserError

if TYPE_CHECKING:
    from stepsampler.schedule import (
        FORMAT,
        FreeU,
        GoldenNoise,
        LearnedNoise,
        ModelSpec,
        Schedule,
        Step,
        load,
    )
    from stepsampler.support.checks import ScheduleError
else:

    def __getattr__(name: str) -> object:
        """The names above, imported when they are asked for: `--help` asks for none of them."""
        from importlib import import_module

        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        place = "support.checks" if name == "ScheduleError" else "schedule"
        return getattr(import_module(f"{__name__}.{place}"), name)


__all__ = [
    "FORMAT",
    "FreeU",
    "GoldenNoise",
    "LearnedNoise",
    "ModelSpec",
    "Schedule",
    "ScheduleError",
    "Step",
    "UserError",
    "load",
]
