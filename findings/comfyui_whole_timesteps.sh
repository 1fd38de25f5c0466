#!/usr/bin/env bash
# ComfyUI and k-diffusion share their samplers and the convention of sigmas, and a published list of
# sigmas is thought to mean the same in both. It does not: asked for the time of a sigma between two
# training timesteps, k-diffusion's denoiser of discrete models interpolates (its default), while
# ComfyUI takes the nearest whole one, though its own `sigma()` interpolates: timestep(sigma(t)) is
# not t. And a list that starts at the model's highest sigma starts 0.23 % stronger in ComfyUI, by
# sqrt(1 + sigma^2) instead of sigma: a last digit of the first sigma decides between two images.
# Seen: the sigma of timestep 736.29 is told as 736 by ComfyUI and as 736.29 by k-diffusion; first
# sigmas of 14.6144 and 14.6146 start from noise times 14.6144 and 14.6488.
source "$(dirname "${BASH_SOURCE[0]}")/lib/comfyui.sh"
$pip install torchdiffeq==0.2.5
$pip install --no-deps k-diffusion==0.1.1
$python - <<'END'
import importlib
import importlib.metadata
import sys
import types

import cpu
import torch
from comfy.model_sampling import EPS, ModelSamplingDiscrete
from comfy.samplers import KSAMPLER

# without what `import k_diffusion` asks for to train
package = sys.modules["k_diffusion"] = types.ModuleType("k_diffusion")
package.__path__ = [str(importlib.metadata.distribution("k-diffusion").locate_file("k_diffusion"))]
external = importlib.import_module("k_diffusion.external")
print("k-diffusion", importlib.metadata.version("k-diffusion"))


class Sampling(ModelSamplingDiscrete, EPS):
    pass


comfyui = Sampling()  # Stable Diffusion's betas
alphas = 1 / (1 + comfyui.sigmas**2)
kdiffusion = external.DiscreteEpsDDPMDenoiser(None, alphas, quantize=False)
wrong = []
for t in (736.29, 441.07, 180.71):
    sigma = comfyui.sigma(torch.tensor([t]))
    theirs = float(comfyui.timestep(sigma)), float(kdiffusion.sigma_to_t(sigma))
    print(f"sigma({t}) = {float(sigma):.5f}: ComfyUI tells the network {theirs[0]:g}, "
          f"k-diffusion {theirs[1]:.2f}")
    wrong.append(theirs[0] != round(t) or abs(theirs[1] - t) > 0.01)

model = types.SimpleNamespace(inner_model=types.SimpleNamespace(model_sampling=comfyui))
starts = []
for first in (14.6144, 14.6146):
    sigmas = torch.tensor([first, 0.0])
    keep = KSAMPLER(lambda model, x, sigmas, **_: x)  # hands back the state that it gets
    start = keep.sample(model, sigmas, {}, None, torch.ones(1, 4, 8, 8), torch.zeros(1, 4, 8, 8))
    starts.append(float(start.mean()))
    print(f"first sigma {first}: starts from noise times {starts[-1]:.4f}")
sys.exit(any(wrong) or not (starts[0] < 14.6145 and starts[1] > 14.648))
END
