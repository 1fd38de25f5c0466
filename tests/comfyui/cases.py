"""The schedules that are compared, the bundled model under both samplers, and what was measured."""

from dataclasses import replace
from functools import cache
from math import isclose, sqrt
from pathlib import Path

import engine
import torch

from stepsampler import GoldenNoise, load
from stepsampler.errors import UserError
from stepsampler.formats import export
from stepsampler.generate import noise_source
from stepsampler.grids import guide, make_schedule
from stepsampler.models import load as load_model
from stepsampler.presets import names, preset
from stepsampler.sample import sample

STUDIES = Path(__file__).parents[2] / "studies"
PROMPTS = {"a photo of a sneaker": 0, "a photo of a bag": 5}  # with the seed of each
TOLERANCE = 1e-4  # of latents, whose deviation is about 1
TINY = load_model("tiny")
SHAPE = TINY.shape
SCALE = engine.comfy.latent_formats.SD15().scale_factor


@cache
def condition(prompt, negative=False):
    with torch.inference_mode():
        return TINY.encode([prompt], negative)


class WholeTimesteps(type(TINY.noise)):
    """ComfyUI's own: nearest in its float32 table, whose last digits settle ties."""

    def network_time(self, sigma):
        return float(SAMPLING.timestep(torch.tensor([sigma], dtype=torch.float32)))


SAMPLING = engine.comfy.model_sampling.ModelSamplingDiscrete()
WHOLE = WholeTimesteps(TINY.noise.alphas_cumprod)


@torch.inference_mode()
def ours(schedule, prompt, as_comfyui=False, start=1.0):
    """Latents by our loop; `as_comfyui` with its start and its timesteps."""
    denoise = TINY.denoiser(condition(prompt), condition("", True))
    first, top = schedule.steps[0].sigma, TINY.noise.sigma_max
    if as_comfyui:
        denoise = replace(denoise, noise=WHOLE)
        if first > top or isclose(first, top, rel_tol=1e-5):
            start = sqrt(1 + first**2) / first
    draw = noise_source([PROMPTS[prompt]], SHAPE)
    return sample(denoise, start * draw(), schedule, draw)


def tolerance(schedule, prompt):
    """Some schedules of few steps make much of a last digit: a millionth of the start shows it."""
    shaken = ours(schedule, prompt, start=1 + 1e-6)
    return max(TOLERANCE, 5 * distance(ours(schedule, prompt), shaken))


def distance(a, b):
    return float((a - b).abs().max())


def comfy_model():
    def unet(x, t, context, _guidance):
        return TINY.net(x, t, encoder_hidden_states=context, return_dict=False)[0]

    return engine.patcher(unet)


def prompts_of(prompt):
    """Positive and negative as ComfyUI has them."""
    sides = condition(prompt), condition("", True)
    return [engine.conditioning(side["encoder_hidden_states"]) for side in sides]


def _made():
    """One of each kind of tableau; guidance for all steps, for some, and none."""
    spec = TINY.spec
    for solver, order in {
        "ddim": 1,
        "dpmpp-midpoint": 2,
        "dpmpp-heun": 2,
        "exact": 3,
        "deis": 3,
        "unipc-bh1": 2,
        "unipc-bh2": 3,
        "ipndm": 4,
        "heun": 2,
    }.items():
        plain = make_schedule(
            "karras", 6, TINY.noise, solver=solver, order=order, guidance_scale=5.0, model=spec
        )
        yield f"{solver}", plain
        yield f"{solver} unguided", guide(plain, 1.0)
        yield f"{solver} interval", guide(plain, 5.0, (0.3, 6.0))
        yield f"{solver} onto 0.01", replace(plain, final_sigma=0.01)
    base = make_schedule("linspace", 5, TINY.noise, guidance_scale=4.0, model=spec)
    first, second, *rest = base.steps
    yield "analytic", replace(base, steps=(replace(first, analytic=0.98), second, *rest))
    yield "churn", replace(base, steps=(first, replace(second, churn=0.3), *rest))
    rescaled = tuple(replace(step, guidance_rescale=0.7) for step in base.steps)
    yield "rescale", replace(base, steps=rescaled)
    gained = tuple(replace(step, gain=1.05) for step in base.steps)
    yield "gain", replace(base, steps=gained)
    own = (first, replace(second, order=2, weights=(1.6, -0.5), prediction="noise"), *rest)
    yield "weights", replace(base, steps=own)
    yield "golden", replace(base, golden_noise=GoldenNoise(8.0, 2.0))
    yield "inversion", replace(base, golden_noise=GoldenNoise(8.0, 2.0, "inversion"))
    yield "alpha-x", replace(base, final_sigma=0.2, decode="alpha-x")


def _groups():
    found = {}
    for name in names():
        entry = preset(name)
        if entry.model in ("sd15", "sdxl") and 3 <= entry.schedule.num_steps <= 10:
            group = "-".join(name.split("-")[:2])
            found.setdefault(group, {})[name] = replace(entry.schedule, model=TINY.spec)
    files = sorted(STUDIES.glob("*.schedule.json"))
    found["studies"] = {file.name.split(".")[0]: load(file) for file in files}
    found["made"] = dict(_made())
    return found


GROUPS = _groups()  # name of a group -> name -> schedule
ALL = {f"{group}: {name}": s for group, members in GROUPS.items() for name, s in members.items()}


def text_for_core_nodes(schedule):
    """What the export writes, or None where it refuses."""
    try:
        return export(schedule, "comfyui").text
    except UserError:
        return None


HEUN = "made: heun interval"
EXPORTED = {name: text for name, s in ALL.items() if (text := text_for_core_nodes(s))}
WITH_FREE_U = [name for name, s in ALL.items() if any(step.free_u for step in s.steps)]
MEASURED = {}  # (column, name) -> distances of latents


def measured(column, name, value):
    MEASURED.setdefault((column, name), []).append(value)
    return value
