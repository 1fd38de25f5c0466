"""Tiny pipelines of the stock diffusers and transformers classes, with random weights, float32.

Each call gives a fresh pipeline that the caller may change; its weights are the same every time and
are made once a process. `FAMILIES` names the builders of what our own loop samples, `STOCK`
and `VIDEOS` of pipelines that sample themselves. Nothing is downloaded.
"""

import functools
from collections.abc import Callable
from typing import Any

from stepsearch.rehearsal.miniatures.flows import flux, sana, sd3
from stepsearch.rehearsal.miniatures.later import (
    aura_flow,
    cogview4,
    hunyuan_dit,
    hunyuan_image,
)
from stepsearch.rehearsal.miniatures.newer import (
    chroma,
    flux2,
    flux2_klein,
    krea2,
    lumina2,
    qwen_image,
    z_image,
)
from stepsearch.rehearsal.miniatures.parts import autoencoder
from stepsearch.rehearsal.miniatures.stock import STOCK
from stepsearch.rehearsal.miniatures.transformers import dit, pixart_alpha, pixart_sigma
from stepsearch.rehearsal.miniatures.unets import (
    BETAS,
    ddim,
    ddpm,
    kolors,
    lcm,
    sdxl,
    stable_diffusion,
)
from stepsearch.rehearsal.miniatures.videos import VIDEOS, ltx, ltx2, wan

__all__ = [
    "BETAS",
    "EVERY",
    "FAMILIES",
    "MOVING",
    "STOCK",
    "VIDEOS",
    "aura_flow",
    "autoencoder",
    "chroma",
    "cogview4",
    "ddim",
    "ddpm",
    "dit",
    "flux",
    "flux2",
    "flux2_klein",
    "hunyuan_dit",
    "hunyuan_image",
    "kolors",
    "krea2",
    "lcm",
    "ltx",
    "ltx2",
    "lumina2",
    "pixart_alpha",
    "pixart_sigma",
    "qwen_image",
    "sana",
    "sd3",
    "sdxl",
    "stable_diffusion",
    "wan",
    "z_image",
]

FAMILIES: dict[str, Callable[..., Any]] = {
    "stable-diffusion": stable_diffusion,
    "sdxl": sdxl,
    "pixart-alpha": pixart_alpha,
    "pixart-sigma": pixart_sigma,
    "dit": dit,
    "sd3": sd3,
    "flux-dev": functools.partial(flux, True),
    "flux-schnell": functools.partial(flux, False),
    "sana": sana,
    "ddpm": ddpm,
    "ddim": ddim,
    "z-image": z_image,
    "chroma": chroma,
    "qwen-image": qwen_image,
    "flux2-dev": flux2,
    "flux2-klein": flux2_klein,
    "lumina2": lumina2,
    "krea2": krea2,
    "wan": wan,
    "wan-2.2": functools.partial(wan, 0.875),
    "wan-2.2-5b": functools.partial(wan, None, True),
    "hunyuan-image": hunyuan_image,
    "hunyuan-image-distilled": functools.partial(hunyuan_image, True),
    "cogview4": cogview4,
    "aura-flow": aura_flow,
    "hunyuan-dit": hunyuan_dit,
    "kolors": kolors,
    "ltx": ltx,
    "ltx2": ltx2,
    "ltx2.3": functools.partial(ltx2, True),
    "lcm": lcm,
}
EVERY = FAMILIES | STOCK | VIDEOS
# which make videos
MOVING = frozenset({*VIDEOS, "ltx", "ltx2", "ltx2.3", "wan", "wan-2.2", "wan-2.2-5b"})
