#!/usr/bin/env bash
# ComfyUI: KSampler and BasicScheduler take the same scheduler by the same name and the same number of
# steps, and run different ones. `ddim_uniform` of 7 steps is a list of 8, as the 1000 timesteps are
# no multiple of 7: KSampler then runs 8 steps, from sigma 14.3, and BasicScheduler, which keeps the last 7,
# drops the first and starts in the middle of the noise, at 6.57, with an empty latent. Where the number
# divides 1000 both start there: 8 steps at 7.37, 5 at 5.13.
# Seen: 7 asked for: 8 from 14.27 and 7 from 6.57; 6 asked for: 7 from 14.44 and 6 from 5.91.
source "$(dirname "${BASH_SOURCE[0]}")/lib/comfyui.sh"
$python - <<'END'
import sys
from types import SimpleNamespace

import cpu
import comfy.samplers
from comfy.model_sampling import ModelSamplingDiscrete
from comfy_extras.nodes_custom_sampler import BasicScheduler

sampling = ModelSamplingDiscrete()  # Stable Diffusion's betas
model = SimpleNamespace(get_model_object=lambda name: sampling)
seen = {}
for steps in (5, 6, 7, 8, 30):
    whole = comfy.samplers.KSampler(model, steps, "cpu", "euler", "ddim_uniform", 1.0).sigmas
    basic = BasicScheduler.execute(model, "ddim_uniform", steps, 1.0).args[0]
    seen[steps] = [(len(s) - 1, round(float(s[0]), 2)) for s in (whole, basic)]
    (n, first), (m, start) = seen[steps]
    print(f"{steps} steps asked for: KSampler runs {n} from sigma {first}, BasicScheduler {m} from {start}")
sys.exit(seen[7] != [(8, 14.27), (7, 6.57)] or seen[5] != [(5, 5.13), (5, 5.13)])
END
