#!/usr/bin/env bash
# ComfyUI: `ManualSigmas` takes a list of sigmas as text. Whoever pastes what Python or JSON prints
# for a small number, 1e-05, gets two sigmas instead of one, without a word: 1 and -5. The list is a
# step longer, rises, and the sampler runs through a negative noise level.
# Seen: "14.61, 0.5, 1e-05, 0.0" is read as 14.61, 0.5, 1, -5, 0.
source "$(dirname "${BASH_SOURCE[0]}")/lib/comfyui.sh"
$python - <<'END'
import sys

import cpu
from comfy_extras.nodes_custom_sampler import ManualSigmas

text = "14.61, 0.5, 1e-05, 0.0"
sigmas = [round(s, 3) for s in ManualSigmas.execute(text).args[0].tolist()]
print(f"ManualSigmas({text!r}) ->", sigmas)
sys.exit(sigmas != [14.61, 0.5, 1.0, -5.0, 0.0])
END
