#!/usr/bin/env bash
# ComfyUI: `CFGOverride` sets the guidance of a range of sigmas, and a chain of them is the way to
# give each step its own. Heun's sampler calls the network twice a step, the second time at the sigma
# where the step lands, which is in the range of the next step: a step that was to have guidance 7
# gets 7 for one of its calls and that of its neighbour, 1, for the other.
# Seen: for steps with 1, 7, 1 the calls have 1 7 7 1 1.
source "$(dirname "${BASH_SOURCE[0]}")/lib/comfyui.sh"
$python - <<'END'
import sys
from types import SimpleNamespace

import cpu
import torch
import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
from comfy_extras import nodes_custom_sampler as nodes

config = SimpleNamespace(
    unet_config={"disable_unet_model_creation": True}, sampling_settings={}, memory_usage_factor=1.0,
    latent_format=comfy.latent_formats.SD15(), manual_cast_dtype=None, custom_operations=None,
)
model = comfy.model_base.BaseModel(config)
model.diffusion_model = torch.nn.Module()  # a network that predicts the mean of its prompt
model.diffusion_model.dtype = torch.float32
model.diffusion_model.forward = lambda x, t, context=None, **_: 0 * x + context.mean((1, 2)).view(-1, 1, 1, 1)
device = torch.device("cpu")
patcher = comfy.model_patcher.ModelPatcher(model, device, device)
seen = []
sigmas = nodes.ManualSigmas.execute("10.0, 5.0, 2.0, 0.0").args[0]
sampling = patcher.get_model_object("model_sampling")
percent = [1 - float(sampling.timestep(s)) / 999 for s in sigmas[:3]]
cuts = [0.0, (percent[0] + percent[1]) / 2, (percent[1] + percent[2]) / 2, 1.0]
for cfg, start, end in zip((1.0, 7.0, 1.0), cuts, cuts[1:]):
    patcher = nodes.CFGOverride.execute(patcher, cfg, round(start, 3), round(end, 3)).args[0]
# epsilon is 1 for the prompt and 0 without: what guidance w makes of them is w
patcher.model_options["sampler_post_cfg_function"] = [
    lambda args: seen.append(round(float(((args["input"] - args["denoised"]) / args["sigma"]).mean()))) or args["denoised"]
]
positive, negative = ([[torch.full((1, 1, 4), value), {}]] for value in (1.0, 0.0))
guider = nodes.CFGGuider.execute(patcher, positive, negative, 3.0).args[0]
heun = nodes.KSamplerSelect.execute("heun").args[0]
noise = nodes.RandomNoise.execute(0).args[0]
nodes.SamplerCustomAdvanced.execute(noise, guider, heun, sigmas, {"samples": torch.zeros(1, 4, 8, 8)})
print("guidance of the calls of three Heun steps at sigma 10, 5 and 2, meant as 1, 7, 1:", *seen)
sys.exit(seen != [1, 7, 7, 1, 1])
END
