#!/usr/bin/env bash
# Who is surprised: whoever puts diffusers' TaylorSeer cache on the U-Net of a Stable Diffusion.
#
# `apply_taylorseer_cache` says of itself that it is for "a given pipeline (typically the transformer
# / UNet)". With its default settings it finds nothing to hook in a UNet2DConditionModel, and says
# nothing: every step is computed whole, as before. Its lite mode hooks the blocks, and then the
# first call wants a `model.cache_context(...)`, which a U-Net does not have; with that of
# diffusers' own CacheMixin the call ends in an AttributeError, since the blocks of a U-Net return
# their skips as a tuple within a tuple. By hand, with names of modules that return one tensor, and
# that context, it works: so it is the patterns and the missing context, not the U-Net.
#
# Exits with 0 as long as all of that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install -q --disable-pip-version-check "$@"; }
pip torch==2.13.0  # alone, it is the build for CPUs
pip diffusers==0.42.1 transformers==5.23.0 accelerate safetensors
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'P' 2>/dev/null
from contextlib import nullcontext

import diffusers
import torch
from diffusers import UNet2DConditionModel
from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache
from diffusers.models.cache_utils import CacheMixin

print("diffusers", diffusers.__version__)
print("its words:", [line.strip() for line in apply_taylorseer_cache.__doc__.splitlines() if "UNet" in line][0])
inputs = torch.randn(1, 4, 16, 16), torch.randn(1, 4, 32)


def unet(**options):
    """Of Stable Diffusion's shape, small, with hooks; how many of its modules have one."""
    torch.manual_seed(0)
    net = UNet2DConditionModel(
        block_out_channels=(32, 64, 128, 128), layers_per_block=2, cross_attention_dim=32, attention_head_dim=8
    ).eval()
    options = {"cache_interval": 2, "disable_cache_before_step": 1, **options}
    apply_taylorseer_cache(net, TaylorSeerCacheConfig(**options))
    return net, sum(hasattr(part, "_diffusers_hook") for part in net.modules())


def blocks_computed(net, context=nullcontext):
    """In how many of four steps the last block but one computed; or the error."""
    calls = []
    net.up_blocks[2].resnets[0].register_forward_hook(lambda *_: calls.append(1))
    try:
        with context(), torch.no_grad():
            for t in (900, 700, 500, 300):
                net(inputs[0], t, inputs[1])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return len(calls)


def by_hand(net):
    return lambda: CacheMixin.cache_context(net, "one")


plain, hooked = unet()
default = blocks_computed(plain)
print(f"by default: {hooked} modules hooked, {default} of 4 steps computed whole")
lite, lite_hooked = unet(use_lite_mode=True)
print(f"lite: {lite_hooked} modules hooked")
bare = blocks_computed(lite)
print("  first call:", bare)
has = hasattr(lite, "cache_context")
print("  UNet2DConditionModel has cache_context:", has)
net, _ = unet(use_lite_mode=True)
lent = blocks_computed(net, by_hand(net))
print("  with CacheMixin's:", lent)
net, _ = unet(cache_identifiers=[r"up_blocks\.2"])
named = blocks_computed(net, by_hand(net))
print(f"by name, with CacheMixin's: {named} of 4 steps computed whole")
same = hooked == 0 and default == 4 and lite_hooked > 0 and "context" in str(bare) and not has
raise SystemExit(not (same and "AttributeError" in str(lent) and named < 4))
P
