"""A whole ComfyUI workflow in API form: what its server takes as posted, and its page opens.

Loaders, two prompts, the sampling nodes of `comfyui`, wired, and an image to save. File names that
a server does not have are refused there: `checkpoint` is the model's.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stepsampler.errors import UserError
from stepsampler.formats.comfyui import inputs
from stepsampler.formats.common import Options, Text
from stepsampler.schedule import Schedule

Ref = list[Any]  # a node's id and its output


class Family(NamedTuple):
    """How ComfyUI loads a family, and the size of its images."""

    checkpoint: str  # as in ComfyUI's own examples
    size: int
    latent: str = "EmptyLatentImage"


FAMILIES: Mapping[str, Family] = {
    "stable-diffusion": Family("v1-5-pruned-emaonly-fp16.safetensors", 512),
    "sdxl": Family("sd_xl_base_1.0.safetensors", 1024),
    "sd3": Family("sd3.5_large_fp8_scaled.safetensors", 1024, "EmptySD3LatentImage"),
    "flux": Family("flux1-dev.safetensors", 1024, "EmptySD3LatentImage"),
}
FLUX_TEXTS = ("clip_l.safetensors", "t5xxl_fp16.safetensors")
FLUX_VAE = "ae.safetensors"
PROMPT = "a photo of a fox"


def export(schedule: Schedule, options: Options) -> Text:
    name = schedule.model.family if schedule.model else "stable-diffusion"
    if name not in FAMILIES:
        raise UserError(f"a workflow is made for {', '.join(FAMILIES)}, the schedule is for {name}")
    family = FAMILIES[name]
    given, lost, notes = inputs(schedule)
    nodes: dict[str, Any] = {}

    def add(kind: str, **values: Any) -> str:
        key = str(len(nodes) + 1)
        nodes[key] = {"class_type": kind, "inputs": values, "_meta": {"title": kind}}
        return key

    checkpoint = options.checkpoint or family.checkpoint
    if name == "flux":
        model: Ref = [add("UNETLoader", unet_name=checkpoint, weight_dtype="default"), 0]
        first, second = FLUX_TEXTS
        clip = [add("DualCLIPLoader", clip_name1=first, clip_name2=second, type="flux"), 0]
        vae = [add("VAELoader", vae_name=FLUX_VAE), 0]
    else:
        loader = add("CheckpointLoaderSimple", ckpt_name=checkpoint)
        model, clip, vae = [loader, 0], [loader, 1], [loader, 2]
    positive = [add("CLIPTextEncode", text=PROMPT, clip=clip), 0]
    negative = [add("CLIPTextEncode", text="", clip=clip), 0]
    latent = [add(family.latent, width=family.size, height=family.size, batch_size=1), 0]
    for kind in ("ModelSamplingDiscrete", "ModelSamplingContinuousEDM"):
        if kind in given:
            model = [add(kind, model=model, **given[kind]), 0]
    for override in _last_first(given.get("CFGOverride", [])):
        model = [add("CFGOverride", model=model, **override), 0]
    if "FluxGuidance" in given:
        positive = [add("FluxGuidance", conditioning=positive, **given["FluxGuidance"]), 0]
    guider = add(
        "CFGGuider", model=model, positive=positive, negative=negative, **given["CFGGuider"]
    )
    sampled = add(
        "SamplerCustomAdvanced",
        noise=[add("RandomNoise", noise_seed=0), 0],
        guider=[guider, 0],
        sampler=[add("KSamplerSelect", **given["KSamplerSelect"]), 0],
        sigmas=[add("ManualSigmas", **given["ManualSigmas"]), 0],
        latent_image=latent,
    )
    image = add("VAEDecode", samples=[sampled, 0], vae=vae)
    add("SaveImage", images=[image, 0], filename_prefix="stepsample")
    return Text(json.dumps(nodes, indent=2) + "\n", lost, notes)


def _last_first(overrides: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Where two meet, the one nearest the sampler wins: the earlier one, as in `_overrides`."""
    return list(reversed(overrides))
