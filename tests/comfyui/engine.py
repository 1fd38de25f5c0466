"""ComfyUI's engine, with the bundled pipeline or a toy of a flow model as its checkpoint."""

from types import SimpleNamespace

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfyui_version
import torch
from comfy_extras import nodes_custom_sampler, nodes_flux

VERSION = comfyui_version.__version__
CPU = torch.device("cpu")
NODES = {
    name: getattr(nodes_custom_sampler, name)
    for name in (
        "ManualSigmas",
        "KSamplerSelect",
        "CFGGuider",
        "CFGOverride",
        "RandomNoise",
        "SamplerCustomAdvanced",
    )
} | {"FluxGuidance": nodes_flux.FluxGuidance}


def call(name, *args, **inputs):
    """The first output of a core node."""
    return NODES[name].execute(*args, **inputs).args[0]


class Network(torch.nn.Module):
    """Any function of (x, t, context, guidance) as ComfyUI's `diffusion_model`; counts passes."""

    dtype = torch.float32

    def __init__(self, function):
        super().__init__()
        self.function, self.passes, self.times = function, 0, []

    def forward(self, x, t, context=None, guidance=None, **_):
        self.passes += len(x)
        self.times.append(float(t[0]))
        return self.function(x, t, context, guidance)


class Model(comfy.model_base.BaseModel):
    """With the scale of distilled guidance handed on, as ComfyUI's class for FLUX has it."""

    def extra_conds(self, **kwargs):
        out = super().extra_conds(**kwargs)
        if kwargs.get("guidance") is not None:
            out["guidance"] = comfy.conds.CONDRegular(torch.FloatTensor([kwargs["guidance"]]))
        return out


def patcher(function, kind="EPS", settings=None, latent_format=comfy.latent_formats.SD15):
    """A model of `comfy.model_base.ModelType` `kind`, with a network of our own."""
    config = SimpleNamespace(
        unet_config={"disable_unet_model_creation": True},
        sampling_settings=settings or {},
        latent_format=latent_format(),
        manual_cast_dtype=None,
        custom_operations=None,
        memory_usage_factor=1.0,
    )
    model = Model(config, comfy.model_base.ModelType[kind])
    model.diffusion_model = Network(function)
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


def conditioning(embedding, **more):
    return [[embedding, more]]


def run(nodes, model, positive, negative, seed, shape):
    """One image of what `stepsample export --to comfyui` writes, through the core nodes.

    `shape` is that of a latent; the result is in the scale of the VAE.
    """
    for override in nodes.get("CFGOverride", []):
        model = call("CFGOverride", model, **override)
    if "FluxGuidance" in nodes:
        positive = call("FluxGuidance", positive, **nodes["FluxGuidance"])
    guider = call("CFGGuider", model, positive, negative, **nodes["CFGGuider"])
    sampler = call("KSamplerSelect", **nodes["KSamplerSelect"])
    sigmas = call("ManualSigmas", **nodes["ManualSigmas"])
    return sample(guider, sampler, sigmas, seed, shape)


def sample(guider, sampler, sigmas, seed, shape):
    empty = {"samples": torch.zeros(1, *shape)}
    noise = call("RandomNoise", seed)
    return call("SamplerCustomAdvanced", noise, guider, sampler, sigmas, empty)["samples"]
