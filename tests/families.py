"""How each family's stock pipeline is asked for the images that ours makes, and both answers."""

import copy
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from types import MethodType
from typing import Any

import pipelines
import torch
from pipelines import FAMILIES, MOVING, PROMPTS

from stepsampler import Schedule, Step
from stepsampler.generate import generate, seeded_noise
from stepsampler.grids import from_sigmas
from stepsampler.models import from_pipeline
from stepsampler.noise import is_flow
from stepsampler.support.scales import ALONE

SEEDS = [0, 1, 2]
CLASSES = ["2", "tench", "999"]
UNCONDITIONAL = ("ddpm", "ddim")
BETAS = ("stable-diffusion", "sdxl", "kolors", "lcm")


def plain(w: float) -> dict[str, Any]:
    return {"guidance_scale": w}


def true_cfg(w: float) -> dict[str, Any]:
    """Guidance needs a negative prompt there, be it an empty one."""
    return {"true_cfg_scale": w, "negative_prompt": [""] * len(SEEDS)}


def alone(w: float) -> dict[str, Any]:
    """Without the terms of guidance that a pipeline has beside by default."""
    return {"guidance_scale": w, **ALONE["ltx2"]}


@dataclass(frozen=True)
class Stock:
    """`scale` gives the options for our w.

    `doubles`: guidance takes a second pass. `negative`: the call takes negative prompts. `even`:
    the pipeline of a flow hands evenly spaced levels to its scheduler. `alone`: a prompt of a batch
    changes the images of the others, so that each is asked for by itself.
    """

    scale: Callable[[float], dict[str, Any]] = plain
    doubles: bool = True
    negative: bool = True
    even: bool = True
    cond_first: bool = False  # of the halves of a doubled batch
    alone: bool = False


STOCK = {
    "stable-diffusion": Stock(),
    "sdxl": Stock(),
    "pixart-alpha": Stock(),
    "pixart-sigma": Stock(),
    "dit": Stock(negative=False, cond_first=True),
    "sd3": Stock(even=False),
    "flux-dev": Stock(doubles=False, negative=False),
    "flux-schnell": Stock(true_cfg),
    "sana": Stock(even=False),
    "ddpm": Stock(lambda w: {}, doubles=False, negative=False),
    "ddim": Stock(lambda w: {}, doubles=False, negative=False),
    "z-image": Stock(lambda w: {"guidance_scale": w - 1}, cond_first=True),
    "chroma": Stock(),
    "qwen-image": Stock(true_cfg),
    "flux2-dev": Stock(doubles=False, negative=False),
    "flux2-klein": Stock(negative=False),
    "lumina2": Stock(),
    "krea2": Stock(lambda w: {"guidance_scale": w - 1}),
    "wan": Stock(even=False),
    "wan-2.2": Stock(even=False),
    "wan-2.2-5b": Stock(even=False),
    "hunyuan-image": Stock(),
    "hunyuan-image-distilled": Stock(
        lambda w: {"distilled_guidance_scale": w}, doubles=False, negative=False
    ),
    "cogview4": Stock(even=False, alone=True),
    "aura-flow": Stock(even=False),
    "hunyuan-dit": Stock(),
    "kolors": Stock(),
    "ltx": Stock(),
    "ltx2": Stock(alone),
    "ltx2.3": Stock(alone),
    "lcm": Stock(doubles=False, negative=False),
}
FRAMES = 5  # of a video
SIZES = {
    "height": pipelines.SIZE,
    "width": pipelines.SIZE,
    "num_frames": FRAMES,
    "use_resolution_binning": False,
}


def prepare(name):
    """A pipeline whose scheduler takes plain Euler (DDIM) steps from the noisiest level."""
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    pipeline = FAMILIES[name]()
    config = pipeline.scheduler.config
    if name == "lcm":
        return pipeline  # its own scheduler has no other steps than those of its authors
    if not is_flow(config):
        options = {"timestep_spacing": "trailing", "clip_sample": False}
        pipeline.scheduler = DDIMScheduler.from_config(config, **options)
    elif "flow_shift" in config:  # that scheduler truncates timesteps to integers
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=config.flow_shift)
    return pipeline


def stock_images(name, pipeline, n, guidance_scale, **options):
    """The stock pipeline's images of `PROMPTS`, with the noise that we give the seeds; 0 to 255."""
    if not STOCK[name].alone:
        return _stock_images(name, pipeline, n, guidance_scale, SEEDS, **options)
    images, lists = [], {k: v for k, v in options.items() if isinstance(v, list)}
    for k, seed in enumerate(SEEDS):
        own = {"prompt": [PROMPTS[k]], **{key: [value[k]] for key, value in lists.items()}}
        images.append(_stock_images(name, pipeline, n, guidance_scale, [seed], **options | own))
    return torch.cat(images)


def _stock_images(name, pipeline, n, guidance_scale, seeds, **options):
    known = signature(pipeline.__call__).parameters
    sizes = {key: options.pop(key, value) for key, value in SIZES.items()}
    shape = (4, sizes["height"] // 2, sizes["width"] // 2)
    sizes = {key: value for key, value in sizes.items() if key in known}
    options = {**STOCK[name].scale(guidance_scale), **sizes, **options}
    scale = options.get("guidance_scale")
    if scale is not None and "guidance_scale" not in known:  # a guider has it
        del options["guidance_scale"]
        pipeline.guider = pipeline.guider.new(guidance_scale=scale)
    if name in UNCONDITIONAL:
        options["batch_size"] = len(seeds)
    elif name == "dit":
        options["class_labels"] = [2, 0, 999]
    else:
        options.setdefault("prompt", PROMPTS)
    options = copy.deepcopy(options)  # Z-Image writes into the lists
    if name in BETAS:  # at their last timestep there is still some signal
        pipeline.scheduler.set_timesteps(n)
        left = pipeline.scheduler.alphas_cumprod[int(pipeline.scheduler.timesteps[0])]
        options["latents"] = seeded_noise(seeds, shape) * (1 - left).sqrt()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for generator in generators if name == "lcm" else ():  # whose fresh noise follows the first
        torch.randn(*shape, generator=generator)
    call = pipeline(num_inference_steps=n, generator=generators, output_type="pt", **options)
    made = call.frames if name in MOVING else call.images
    return (made * 255).round()


def networks(pipeline):
    """Of which each step calls one."""
    names = ("unet", "transformer", "transformer_2")
    found = [getattr(pipeline, name, None) for name in names]
    return [net for net in found if net is not None]


@contextmanager
def unguide(name, pipeline, steps):
    """In these steps the network says without the prompt what it says under it."""
    step, under, scheduler = [0], [], pipeline.scheduler

    def count(self, *args, **kwargs):
        if self is scheduler:  # and not a copy of it, for sound
            step[0] = (step[0] + 1) % len(scheduler.timesteps)
            under.clear()
        return type(self).step(self, *args, **kwargs)

    def hook(_net, _args, output):
        if step[0] not in steps:
            return None
        if STOCK[name].alone or len(output[0]) == len(SEEDS):  # two calls, under the prompt first
            under.append(output)
            return under[0]
        if isinstance(output, tuple):
            return tuple(map(both, output))
        return type(output)(sample=both(output[0]))

    def both(values):
        halves = values[: len(SEEDS)], values[len(SEEDS) :]
        cond = halves[0 if STOCK[name].cond_first else 1]
        return [*cond, *cond] if isinstance(cond, list) else torch.cat([cond, cond])

    handles = [net.register_forward_hook(hook) for net in networks(pipeline)]
    scheduler.step = MethodType(count, scheduler)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        del scheduler.step


@contextmanager
def counted(*nets):
    """Rows of each call of the networks."""
    rows = []

    def count(_net, _args, output):
        rows.append(len(output[0]))

    handles = [net.register_forward_hook(count) for net in nets]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def stock_schedule(model, n, *guidance):
    """The scheduler's own grid, after it has been set to n steps; one scale, or one a step."""
    scheduler = model.pipeline.scheduler
    scales = list(guidance) if len(guidance) > 1 else [*guidance] * n
    if model.prediction_type == "flow_prediction":
        sigmas = scheduler.sigmas.tolist()
    else:
        sigmas = [model.noise.sigma(int(t)) for t in scheduler.timesteps]
        last = float(scheduler.final_alpha_cumprod)
        sigmas.append(((1 - last) / last) ** 0.5)
    schedule = from_sigmas(sigmas[:-1], sigmas[-1], scales, 1, "ddim", model.spec)
    if type(scheduler).__name__ == "LCMScheduler":  # each step starts with fresh noise alone
        first, *others = schedule.steps
        fresh = [replace(step, churn=1.0) for step in others]
        schedule = replace(schedule, steps=(first, *fresh))
    return replace(schedule, guidance=model.guidance)


def our_images(model, schedule, prompts, **options):
    """Images (n, 3, height, width), or videos (n, frames, 3, height, width)."""
    batches = generate(model, schedule, prompts, SEEDS, **options)
    return torch.cat([b.images if b.videos is None else b.videos for b in batches])


def take(name, pipeline=None, size=None):
    """Our model of a tiny pipeline."""
    size = size or (None if name in UNCONDITIONAL else pipelines.SIZE)
    frames = FRAMES if name in MOVING else None
    return from_pipeline(pipeline or prepare(name), size, frames=frames)


def short_schedule(model, guidance_scale=1.0, **options):
    """Three steps for any family."""
    first = 1.0 if model.prediction_type == "flow_prediction" else 8.0
    steps = [Step(first * part, guidance_scale, **options) for part in (1.0, 0.6, 0.2)]
    return Schedule(tuple(steps), 0.0, "ddim", model.spec, guidance=model.guidance)


def prompts_of(name):
    return [""] * 3 if name in UNCONDITIONAL else CLASSES if name == "dit" else PROMPTS
