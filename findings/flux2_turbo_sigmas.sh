#!/usr/bin/env bash
# Who is surprised: whoever takes TURBO_SIGMAS of FLUX.2 dev Turbo's card (huggingface.co/fal/FLUX.2-dev-Turbo)
# to another tool, as the card calls them "pre-shifted".
#
# The card hands them to diffusers' Flux2Pipeline, whose scheduler shifts what it is given: the
# network is told 0.80 where the list says 0.2932, and 0.75 at half the width and height. As they
# stand, as sigmas of ComfyUI for instance, they are another schedule: two steps above 0.5 and not six.
#
# Shown on random networks, nothing is downloaded but packages of PyPI. Exits with 0 as long as the
# list is shifted, by another shift at another size.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install -q --disable-pip-version-check "$@"; }
pip torch==2.13.0  # alone, it is the build for CPUs
pip diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'P' 2>/dev/null
import diffusers
import torch
from diffusers import (
    AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Pipeline, Flux2Transformer2DModel,
)

TURBO_SIGMAS = [1.0, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031]
print("diffusers", diffusers.__version__)
print("the card's list:", TURBO_SIGMAS)
torch.manual_seed(0)
net = Flux2Transformer2DModel(
    in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
    num_attention_heads=2, joint_attention_dim=24, timestep_guidance_channels=16,
    axes_dims_rope=(4, 4, 4, 4),
)
vae = AutoencoderKLFlux2(
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(8,) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=4,
)
pipe = Flux2Pipeline(  # with the config of FLUX.2 dev's scheduler
    scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    vae=vae, text_encoder=None, tokenizer=None, transformer=net,
)
pipe.set_progress_bar_config(disable=True)


def told(side):
    """What the network is told in the steps of the card's call."""
    found = []
    handle = net.register_forward_pre_hook(
        lambda _net, _args, call: found.append(round(call["timestep"].item(), 4)), with_kwargs=True
    )
    pipe(
        prompt_embeds=torch.zeros(1, 8, 24), sigmas=TURBO_SIGMAS, num_inference_steps=8,
        guidance_scale=2.5, height=side, width=side, output_type="latent",
    )
    handle.remove()
    print(f"at {side} pixels the network is told {found}")
    return found


large, small = told(1024), told(512)
raise SystemExit(not (large[3] > 0.79 and 0.74 < small[3] < 0.77))
P
