#!/usr/bin/env bash
# Who trains or loads a model with zero terminal SNR (rescale_betas_zero_snr, as v-prediction SDXL has it) and
# swaps its scheduler by the documented Other.from_config(pipe.scheduler.config) expects the option to go
# along, or a warning. It surprises that DEIS, Heun, singlestep DPM-Solver, LMS, PNDM and others keep it in
# their config, print nothing, and start from sigma 14.61, the betas as they were: images lose the blacks and
# whites that the option is for.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip --quiet --disable-pip-version-check)
"${pip[@]}" install torch==2.13.0
"${pip[@]}" install diffusers==0.42.1 transformers==5.23.0 scipy
"$work/venv/bin/python" - <<'PYTHON'
import math

import diffusers
import torch

print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
own = diffusers.EulerDiscreteScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
)
found = {}
for name in (
    "EulerDiscrete DPMSolverMultistep UniPCMultistep DDIM DEISMultistep HeunDiscrete "
    "DPMSolverSinglestep LMSDiscrete PNDM KDPM2Discrete SASolver"
).split():
    scheduler = getattr(diffusers, f"{name}Scheduler").from_config(own.config)
    last = float(scheduler.alphas_cumprod[-1])
    sigma = math.sqrt(1 / last - 1) if last else math.inf
    kept = scheduler.config.get("rescale_betas_zero_snr")
    found[name] = round(sigma, 2)
    print(f"{name:20} config says {kept}, highest sigma {sigma:.2f}")
expected = dict.fromkeys(("EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep"), 4096.0)
expected |= {"DDIM": math.inf}
expected = {name: expected.get(name, 14.61) for name in found}
if found != expected:
    raise SystemExit(f"changed: expected {expected}")
print("seven of eleven schedulers drop the option in silence")
PYTHON
