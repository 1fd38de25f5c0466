"""ComfyUI: the inputs of its core nodes for custom sampling, as JSON by node; and its workflows.

`ManualSigmas` and `KSamplerSelect` go into SamplerCustomAdvanced, with a `CFGGuider`. Guidance per
step is a chain of `CFGOverride` nodes, of which each holds for a range of the noise schedule: with
Stable Diffusion's betas the percent p is the timestep 999 (1 - p). Distilled guidance is
`FluxGuidance`. `comfyui_workflow` puts these nodes into a whole workflow.

ComfyUI starts from noise * sqrt(1 + sigma^2) where the first sigma is the model's highest, 0.234 %
more than here, reads sigmas as float32, and tells a model with betas the nearest whole timestep.
With zero terminal SNR its highest sigma is 4,519, ours 4,096: both are told the last timestep.
"""

import json
import re
from dataclasses import replace
from typing import Any

from stepsampler.errors import UserError
from stepsampler.formats import comfyui_nodes, common
from stepsampler.formats.comfyui_graph import Graph, Node, graph
from stepsampler.formats.comfyui_sampling import EDM_KINDS, SAMPLERS, manual_sigmas
from stepsampler.formats.common import Options, Reading, Target, Text
from stepsampler.grids import is_whole
from stepsampler.noise import EDMSchedule, Noise, NoiseSchedule, noise_of
from stepsampler.schedule import Schedule

DIGITS = 3  # of a percent
HIGHEST = 100.0  # of a guidance scale: its server refuses more
ENTRY = (  # of the file without links
    "expected JSON with the inputs of ManualSigmas, KSamplerSelect and CFGGuider by node, or a "
    "workflow"
)


def export(schedule: Schedule, _options: Options) -> Text:
    nodes, lost, notes = inputs(schedule)
    return Text(json.dumps(nodes, indent=2) + "\n", lost, notes)


def inputs(schedule: Schedule) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """The inputs by node, what is lost, and what is to be known of what ComfyUI makes of them."""
    sampler, lost = common.for_a_list(SAMPLERS, schedule)
    notes = []
    for i, step in enumerate(schedule.steps):
        if step.guidance_scale > HIGHEST:
            lost.append(f"guidance {step.guidance_scale:g} of step {i} ({HIGHEST:g} at most)")
    capped = [replace(s, guidance_scale=min(s.guidance_scale, HIGHEST)) for s in schedule.steps]
    schedule = replace(schedule, steps=tuple(capped))
    digits = 1 if schedule.guidance == "distilled" else 2
    rounded = {round(s.guidance_scale, digits) for s in capped}
    if rounded != {s.guidance_scale for s in capped}:
        part = "tenths" if digits == 1 else "hundredths"
        notes.append(f"ComfyUI's page rounds guidance to {part}; its server does not")
    noise = noise_of(schedule)
    if isinstance(noise, NoiseSchedule) and not is_whole(schedule, noise):
        notes.append(
            "ComfyUI tells the network the nearest whole timesteps (--whole-timesteps moves the "
            "levels there)"
        )
    sampling, why = _sampling(schedule, noise)
    if why:
        lost.append(why)
    nodes: dict[str, Any] = {
        **sampling,
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
    return nodes, tuple(lost), tuple(notes)


def _sampling(schedule: Schedule, noise: Noise | None) -> tuple[dict[str, Any], str | None]:
    """The node that says the model's kind of noise, as a checkpoint may not; or why none does."""
    model = schedule.model
    if model is None:
        return {}, None
    kind = model.prediction_type
    if isinstance(noise, NoiseSchedule) and noise.ends_in_noise:
        word = {"v_prediction": "v_prediction", "sample": "x0"}[kind]
        return {"ModelSamplingDiscrete": {"sampling": word, "zsnr": True}}, None
    if not isinstance(noise, EDMSchedule):
        return {}, None
    words = [word for word, known in EDM_KINDS.items() if known == (kind, noise.sigma_data)]
    if not words:
        return {}, f"EDM's preconditioning with sigma_data {noise.sigma_data:g} and {kind}"
    word = words[0] if model.family == "sdxl" else words[-1]
    ends = {"sigma_max": noise.sigma_max, "sigma_min": noise.sigma_min}
    return {"ModelSamplingContinuousEDM": {"sampling": word, **ends}}, None


def _overrides(schedule: Schedule) -> list[dict[str, float]] | str:
    """A range for each run of steps with one scale, cut halfway between two steps; or why not."""
    if schedule.guidance == "distilled":
        return "FluxGuidance takes one scale"
    if common.per_step_guidance_of_heun(schedule):
        return "the second call of a Heun step gets that of the next step"
    noise = noise_of(schedule)
    if not isinstance(noise, NoiseSchedule | EDMSchedule):
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


def read(text: str, target: Target) -> Reading:
    """A workflow of either kind, what `export` writes, or a bare list of sigmas."""
    if re.match(r"\s*\[\s*[\[{]", text):
        raise UserError(f"{ENTRY}, got a list of them: give one")
    if not text.lstrip().startswith("{"):
        sigmas = manual_sigmas(common.in_brackets(text))
        return Reading(common.build(sigmas, None, None, target))
    try:
        data = json.loads(text)
        return comfyui_nodes.read(_loose(data) or graph(data), target)
    except UserError:
        raise
    except common.MALFORMED as error:
        raise UserError(f"{ENTRY}: {common.malformed(error)}") from error


def _loose(data: dict[str, Any]) -> Graph | None:
    """The nodes of what `export` writes; None for a workflow."""
    named = {kind: value for kind, value in data.items() if kind in comfyui_nodes.LOOSE}
    if not named or any(isinstance(v, dict) and "class_type" in v for v in data.values()):
        return None
    nodes = {}
    for kind, value in data.items():
        for i, given in enumerate(value if isinstance(value, list) else [value]):
            key = f"{kind}/{i}" if isinstance(value, list) else kind
            nodes[key] = Node(key, kind, dict(given))
    return nodes
