#!/usr/bin/env bash
# Who is surprised: whoever hands sigmas to the scheduler of Qwen-Image or LTX-Video.
#
# diffusers' FlowMatchEulerDiscreteScheduler takes `sigmas=` and does not run them: it shifts them
# (by `shift`, or by the `mu` of the call), and where the config has `shift_terminal` stretches them
# so that the last one is that value, whatever was handed over. Two sigmas [1, 0.5] thus become
# [1, 0.02], and [1, 0.1] as well. A list of one sigma, 1, becomes NaN without a word: 0 is divided
# by 0. No pipeline says so; one step is what step-distilled models ask for.
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
from diffusers import FlowMatchEulerDiscreteScheduler

print("diffusers", diffusers.__version__)
config = {  # of Qwen/Qwen-Image
    "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192, "shift": 1.0,
    "shift_terminal": 0.02, "time_shift_type": "exponential", "use_dynamic_shifting": True,
}


def stepped(sigmas):
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    scheduler.set_timesteps(sigmas=sigmas, mu=0.8)
    found = [round(s, 4) for s in scheduler.sigmas.tolist()]
    print(f"sigmas={sigmas} are run as {found}")
    return found


last = [stepped(sigmas)[-2] for sigmas in ([1.0, 0.5], [1.0, 0.1], [1.0, 0.75, 0.5, 0.25])]
one = stepped([1.0])
raise SystemExit(not (last == [0.02] * 3 and one[0] != one[0]))
P
