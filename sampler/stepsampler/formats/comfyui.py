"""ComfyUI: the inputs of its core nodes for custom sampling, as JSON by node.

`ManualSigmas` and `KSamplerSelect` go into SamplerCustomAdvanced, with a `CFGGuider`. Guidance per
step is a chain of `CFGOverride` nodes, of which each holds for a range of the noise schedule: with
Stable Diffusion's betas the percent p is the timestep 999 (1 - p). Distilled guidance is
`FluxGuidance`.

ComfyUI starts from noise * sqrt(1 + sigma^2) where the first sigma is the model's highest, 0.2 %
more than here, and reads sigmas as float32.
"""

import json
from itertools import pairwise
from typing import Any

from stepsampler.errors import UserError
from stepsampler.formats import common
from stepsampler.formats.common import Sampler, Target, Text
from stepsampler.noise import NoiseSchedule, noise_of
from stepsampler.schedule import Schedule

SAMPLERS = {
    "euler": Sampler("ddim", 1, True),
    "heun": Sampler("heun", 2, True),
    "ipndm": Sampler("ipndm", 4, True),
    "dpmpp_2m": Sampler("dpmpp-midpoint", 2, False),  # lambda of a flow: -log sigma, not ours
}
DIGITS = 3  # of a percent


def export(schedule: Schedule, _detail: str | None, _shift: float) -> Text:
    sampler, lost = common.for_a_list(SAMPLERS, schedule)
    nodes: dict[str, Any] = {
        "ManualSigmas": {"sigmas": common.sigma_list(schedule)},
        "KSamplerSelect": {"sampler_name": sampler},
    }
    highest = common.highest_guidance(schedule)
    if schedule.guidance == "distilled":
        nodes |= {"CFGGuider": {"cfg": 1.0}, "FluxGuidance": {"guidance": highest}}
    else:
        nodes["CFGGuider"] = {"cfg": highest}
    if not common.one_guidance(schedule):
        ranges = _overrides(schedule)
        if isinstance(ranges, str):
            lost.append(f"guidance per step ({ranges}; {highest:g} instead)")
        else:
            nodes["CFGOverride"] = ranges
    return Text(json.dumps(nodes, indent=2) + "\n", tuple(lost))


def _overrides(schedule: Schedule) -> list[dict[str, float]] | str:
    """A range for each run of steps with one scale, cut halfway between two steps; or why not."""
    if schedule.guidance == "distilled":
        return "FluxGuidance takes one scale"
    noise = noise_of(schedule)
    if not isinstance(noise, NoiseSchedule):
        return "the percents of this model are not known"
    at = [1 - noise.timestep(step.sigma) / noise.last for step in schedule.steps]
    ranges: list[dict[str, float]] = []
    for i, step in enumerate(schedule.steps):
        if ranges and ranges[-1]["cfg"] == step.guidance_scale:
            continue
        cut = round((at[i - 1] + at[i]) / 2, DIGITS) if i else 0.0
        if i and not at[i - 1] < cut < at[i]:
            return f"steps {i - 1} and {i} are too close for a percent of {DIGITS} digits"
        if ranges:
            ranges[-1]["end_percent"] = cut
        ranges.append({"cfg": step.guidance_scale, "start_percent": cut, "end_percent": 1.0})
    return ranges


def read(text: str, target: Target) -> Schedule:
    """What `export` writes, or a bare list of sigmas."""
    if not text.lstrip().startswith("{"):
        return common.build(common.sigmas_from(text), None, None, target)
    try:
        nodes = json.loads(text)
        sigmas = common.sigmas_from(nodes["ManualSigmas"]["sigmas"])
        name = nodes["KSamplerSelect"]["sampler_name"]
        scale = float(nodes["CFGGuider"]["cfg"])
        ranges = [
            (float(r["cfg"]), float(r["start_percent"]), float(r["end_percent"]))
            for r in nodes.get("CFGOverride", [])
        ]
        if "FluxGuidance" in nodes:
            scale = float(nodes["FluxGuidance"]["guidance"])
    except common.MALFORMED as error:
        raise UserError(
            "expected JSON with the inputs of ManualSigmas, KSamplerSelect and CFGGuider by node, "
            f"got {type(error).__name__}: {error}"
        ) from error
    if not isinstance(name, str) or name not in SAMPLERS:
        raise UserError(f"sampler_name must be one of {', '.join(SAMPLERS)}, got {name!r}")
    scales = [scale] * (len(sigmas) - 1)
    if ranges:
        scales = _scales(sigmas, scale, ranges, target)
    if "FluxGuidance" in nodes:
        target = target._replace(guidance="distilled")
    return common.build(sigmas, scales, SAMPLERS[name], target)


def _scales(
    sigmas: list[float], scale: float, ranges: list[tuple[float, float, float]], target: Target
) -> list[float]:
    noise = target.noise
    if not isinstance(noise, NoiseSchedule):
        raise UserError("CFGOverride can be read for models with betas, not for flow models")
    if any(end < start for _, start, end in ranges) or any(
        later[1] < earlier[2] for earlier, later in pairwise(ranges)
    ):
        raise UserError("the ranges of CFGOverride must rise and not overlap")
    scales = []
    for sigma in sigmas[:-1]:
        percent = 1 - noise.timestep(sigma) / noise.last
        inside = [cfg for cfg, start, end in ranges if start <= percent < end]
        scales.append(inside[0] if inside else scale)
    return scales
