"""The axis of golden noise: what a choice is in a schedule, and what it takes of the passes."""

from dataclasses import replace

from stepsampler.schedule import GoldenNoise, LearnedNoise, Schedule
from stepsearch.config.space import OFF, RAW


def golden_noise(
    kind: str, second: float, scale: float, spare: int, distilled: bool
) -> tuple[GoldenNoise | LearnedNoise | None, int]:
    """Golden noise of a kind, and its passes.

    Raw is inversion from the level `second`, guided as the most guided step is (`scale`), if that
    leaves passes to guide one: `spare` is what is left where no step is guided. If not, it is
    unguided.
    """
    if kind == OFF:
        return None, 0
    if kind != RAW:
        return LearnedNoise(kind), 0
    guided = GoldenNoise(second, max(scale, 1.0), "inversion")
    if distilled:
        return guided, 2
    if guided.guidance_scale > 1 and spare > 4:
        return guided, 4
    return replace(guided, guidance_scale=1.0), 2


def kind_of(schedule: Schedule) -> str:
    """Which of the choices a schedule has."""
    return RAW if schedule.raw_noise else schedule.npnet or OFF
