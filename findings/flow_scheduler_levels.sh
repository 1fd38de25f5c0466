#!/usr/bin/env bash
# Who is surprised: whoever asks a stock flow scheduler of diffusers for a few steps.
#
# FlowMatchEulerDiscreteScheduler(shift=3).set_timesteps(4), as the pipeline of Stable Diffusion 3
# calls it, runs 1, 0.8577, 0.6022, 0.0089: even timesteps end at the smallest sigma, which has
# already been shifted, and is shifted again with the others. The last of four passes begins with
# 0.9 % of noise. Even levels shifted once, as other tools have them, are 1, 0.9, 0.75, 0.5.
#
# DPMSolverMultistepScheduler and UniPCMultistepScheduler with use_flow_sigmas (Sana, Wan) cut the
# timesteps to whole numbers: at sigma 0.7496 the network is told 749 of 1000.
#
# Exits with 0 as long as both are so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install -q --disable-pip-version-check "$@"; }
pip torch==2.13.0  # alone, it is the build for CPUs
pip diffusers==0.42.1
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'P' 2>/dev/null
import diffusers
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

print("diffusers", diffusers.__version__)
euler = FlowMatchEulerDiscreteScheduler(shift=3.0)
euler.set_timesteps(4)
levels = [round(s, 4) for s in euler.sigmas.tolist()]
print("FlowMatchEulerDiscreteScheduler(shift=3), 4 steps:", levels)
same = levels == [1.0, 0.8577, 0.6022, 0.0089, 0.0]
for cls in (DPMSolverMultistepScheduler, UniPCMultistepScheduler):
    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    scheduler = cls(**options)
    scheduler.set_timesteps(4)
    told, wanted = scheduler.timesteps.tolist(), (1000 * scheduler.sigmas[:4]).tolist()
    wanted = [round(t, 2) for t in wanted]
    print(f"{cls.__name__}: 1000 sigma is {wanted}, and the network is told {told}")
    apart = max(abs(t - w) for t, w in zip(told, wanted, strict=True))
    same = same and scheduler.timesteps.dtype == torch.int64 and apart > 0.5
raise SystemExit(not same)
P
