"""The parts of a schedule as JSON, and back: each mistake is one sentence with its place."""

from dataclasses import fields
from math import inf
from typing import Any

from stepsampler.schedule.parts import (
    FreeU,
    GoldenNoise,
    LearnedNoise,
    ModelSpec,
    StatisticsSpec,
    Step,
)
from stepsampler.support.checks import ScheduleError, keys, number, numbers, shown

NUMBERS = (  # of a step
    "sigma",
    "guidance_scale",
    "guidance_rescale",
    "churn",
    "gain",
    "time_scale",
)


def used(value: Any, name: str) -> bool:
    """Whether a field has another value than by default."""
    default = next(f.default for f in fields(value) if f.name == name)
    return bool(getattr(value, name) != default)


def step_data(step: Step) -> dict[str, Any]:
    """Without what has its default."""
    always = ("sigma", "guidance_scale", "order")
    data = {f.name: getattr(step, f.name) for f in fields(step)}
    data = {k: v for k, v in data.items() if k in always or used(step, k)}
    if step.free_u:
        data["free_u"] = vars(step.free_u)
    return data


def step_from(i: int, data: Any) -> Step:
    place = f"step {i}"
    values = keys(data, Step, place)
    for name in ("sigma", "guidance_scale", "order"):
        if name not in values:
            raise ScheduleError(f"{place}: {name} is missing")
    for name in (*NUMBERS, "analytic"):
        if values.get(name) is not None:
            values[name] = number(values[name], f"{place}: {name}")
    order = values["order"]
    if isinstance(order, bool) or not isinstance(order, int):
        raise ScheduleError(f"{place}: order must be a whole number, got {shown(order)}")
    if isinstance(values.get("repeats"), bool) or not isinstance(values.get("repeats", 0), int):
        raise ScheduleError(
            f"{place}: repeats must be a whole number, got {shown(values['repeats'])}"
        )
    for name in ("corrector", "guidance_reuse", "x0_reuse"):
        if not isinstance(values.get(name, False), bool):
            raise ScheduleError(f"{place}: {name} must be true or false")
    for name in NUMBERS:
        if values.get(name, 0.0) is None:
            raise ScheduleError(f"{place}: {name} must be a number, got None")
    if values.get("weights") is not None:
        if not isinstance(values["weights"], list):
            raise ScheduleError(f"{place}: weights must be a list, got {shown(values['weights'])}")
        weights = enumerate(values["weights"])
        values["weights"] = tuple(number(w, f"{place}: weights[{j}]") for j, w in weights)
    if values.get("free_u") is not None:
        values["free_u"] = FreeU(**numbers(values["free_u"], FreeU, f"{place}: free_u"))
    return Step(**values)


def golden_from(data: Any) -> GoldenNoise | LearnedNoise:
    """Raw, or learned where a network is named."""
    if isinstance(data, dict) and "npnet" in data:
        values = keys(data, LearnedNoise, "golden_noise of an NPNet")
        if not isinstance(values["npnet"], str):
            raise ScheduleError(
                f"golden_noise: npnet must be a string, got {shown(values['npnet'])}"
            )
        return LearnedNoise(**values)
    values = keys(data, GoldenNoise, "golden_noise")
    for name in ("sigma", "guidance_scale"):
        if name not in values:
            raise ScheduleError(f"golden_noise: {name} is missing")
        values[name] = number(values[name], f"golden_noise: {name}")
    return GoldenNoise(**values)


def statistics_from(data: Any) -> StatisticsSpec:
    values = keys(data, StatisticsSpec, "statistics")
    for name in ("guidance_scale", "intervals"):
        if name not in values:
            raise ScheduleError(f"statistics: {name} is missing")
    values["guidance_scale"] = number(values["guidance_scale"], "statistics: guidance_scale")
    intervals, digest = values["intervals"], values.get("digest")
    if isinstance(intervals, bool) or not isinstance(intervals, int):
        raise ScheduleError(f"statistics: intervals must be a whole number, got {shown(intervals)}")
    if digest is not None and not isinstance(digest, str):
        raise ScheduleError(f"statistics: digest must be a string, got {shown(digest)}")
    for name in ("p_pseudo", "c_pseudo"):
        if not isinstance(values.get(name, False), bool):
            raise ScheduleError(f"statistics: {name} must be true or false")
    return StatisticsSpec(**values)


def model_from(data: Any) -> ModelSpec:
    values = keys(data, ModelSpec, "model")
    missing = [n for n in ("family", "prediction_type", "noise") if n not in values]
    if missing:
        raise ScheduleError(f"model: {missing[0]} is missing")
    for name in ("family", "prediction_type"):
        if not isinstance(values[name], str):
            raise ScheduleError(f"model: {name} must be a string, got {shown(values[name])}")
        if not values[name].isprintable():  # it stands in messages
            raise ScheduleError(f"model: {name} must be printable, got {shown(values[name])}")
    if not isinstance(values["noise"], list):
        raise ScheduleError(f"model: noise must be a list, got {shown(values['noise'])}")
    noise = tuple(number(s, f"model: noise[{i}]") for i, s in enumerate(values["noise"]))
    data = values.get("sigma_data")
    if data is not None and not 0 < number(data, "model: sigma_data") < inf:
        raise ScheduleError(f"model: sigma_data must be above 0, got {data:g}")
    return ModelSpec(values["family"], values["prediction_type"], noise, data)
