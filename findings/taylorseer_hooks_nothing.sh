#!/usr/bin/env bash
# Who is surprised: whoever enables diffusers' TaylorSeer cache on a video model or a U-Net.
#
# "If neither is provided, all attention-like modules are hooked by default", the docstring of
# `TaylorSeerCacheConfig` says. By default the whole name of a module must match "^blocks.*attn" or
# "^transformer_blocks.*attn". The attentions of Wan, LTX-Video, CogVideoX, CogView 4 and Mochi are
# named attn1 and attn2, those of a U-Net lie deeper as well: no hook is set, nothing is said at any
# level of logging, `is_cache_enabled` is True, and every step costs what it did. On FLUX, whose
# attention is named attn, the same call works. `apply_mag_cache`, which finds no blocks in a U-Net
# either, at least warns of it.
#
# A U-Net has no `enable_cache`; it is handed to `apply_taylorseer_cache`, whose docstring says
# "typically the transformer / UNet". Shown on random networks, nothing is downloaded but packages
# of PyPI. Exits with 0 as long as nothing is hooked and nothing is said of it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install -q --disable-pip-version-check "$@"; }
pip torch==2.13.0  # alone, it is the build for CPUs
pip diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'P' 2>/dev/null
import logging

import diffusers
import torch
from diffusers import (
    CogVideoXTransformer3DModel, CogView4Transformer2DModel, FluxTransformer2DModel,
    LTXVideoTransformer3DModel, MagCacheConfig, MochiTransformer3DModel, TaylorSeerCacheConfig,
    UNet2DConditionModel, WanTransformer3DModel, apply_mag_cache, apply_taylorseer_cache,
)

STEPS = 12
print("diffusers", diffusers.__version__, "torch", torch.__version__)
heads = {"num_attention_heads": 2, "num_layers": 2}
made = {
    "Wan": lambda: WanTransformer3DModel(
        **heads, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
        ffn_dim=32,
    ),
    "LTX-Video": lambda: LTXVideoTransformer3DModel(
        **heads, attention_head_dim=8, in_channels=4, out_channels=4, cross_attention_dim=16,
        caption_channels=16,
    ),
    "CogVideoX": lambda: CogVideoXTransformer3DModel(
        **heads, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=4,
        text_embed_dim=8, sample_width=8, sample_height=8, sample_frames=5,
    ),
    "CogView 4": lambda: CogView4Transformer2DModel(
        **heads, attention_head_dim=8, in_channels=4, out_channels=4, text_embed_dim=8,
        time_embed_dim=8, condition_dim=4,
    ),
    "Mochi": lambda: MochiTransformer3DModel(
        **heads, attention_head_dim=8, in_channels=4, text_embed_dim=8, time_embed_dim=4,
        pooled_projection_dim=16,
    ),
    "U-Net": lambda: UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=32,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ),
    "FLUX": lambda: FluxTransformer2DModel(
        num_attention_heads=2, num_layers=2, num_single_layers=1, attention_head_dim=16,
        in_channels=16, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    ),
}
inputs = {
    "Wan": lambda: (torch.randn(1, 4, 1, 8, 8), torch.randn(1, 3, 16)),
    "U-Net": lambda: (torch.randn(1, 4, 8, 8), torch.randn(1, 3, 32)),
    "FLUX": lambda: (torch.randn(1, 4, 16), torch.randn(1, 3, 32)),
}


class Heard(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


diffusers.utils.logging.set_verbosity_debug()
heard = Heard()
diffusers.utils.logging.get_logger("diffusers").addHandler(heard)


def hooks(net):
    known = [m._diffusers_hook.hooks for m in net.modules() if hasattr(m, "_diffusers_hook")]
    return sum("taylorseer_cache" in names for names in known)


def enable(net):
    config = TaylorSeerCacheConfig(cache_interval=4, disable_cache_before_step=3)
    if hasattr(net, "enable_cache"):
        net.enable_cache(config)
    else:
        apply_taylorseer_cache(net, config)


def passes(name, cached):
    """How often the first attention of the network computes in so many steps, and the outputs."""
    torch.manual_seed(0)
    net = made[name]().eval()
    if cached:
        enable(net)
    calls = []
    first = next(m for n, m in net.named_modules() if n.endswith("to_q"))
    first.register_forward_hook(lambda *_: calls.append(1))
    image, texts = inputs[name]()
    more = {}
    if name == "FLUX":
        more = {"pooled_projections": torch.zeros(1, 32), "txt_ids": torch.zeros(3, 3),
                "img_ids": torch.zeros(4, 3)}
    outputs = []
    context = net.cache_context("cond") if hasattr(net, "cache_context") else torch.no_grad()
    with torch.no_grad(), context:
        for step in range(STEPS):
            time = torch.tensor([900.0 - 50 * step])
            time = time / 1000 if name == "FLUX" else time
            outputs.append(net(image, encoder_hidden_states=texts, timestep=time, **more)[0])
    return len(calls), torch.stack(outputs)


counted, said = {}, {}
for name, make in made.items():
    net = make()
    del heard.lines[:]
    enable(net)
    counted[name], said[name] = hooks(net), list(heard.lines)
    state = f"is_cache_enabled {net.is_cache_enabled}" if hasattr(net, "enable_cache") else "handed"
    print(f"{name:10} {state:22} modules hooked: {counted[name]}, said: {said[name] or 'nothing'}")

same = {}
for name in inputs:
    (before, plain), (after, cached) = passes(name, False), passes(name, True)
    same[name] = before == after and torch.equal(plain, cached)
    print(f"{name:10} the first attention computes in {before} of {STEPS} steps, "
          f"with TaylorSeer in {after}; outputs are equal: {torch.equal(plain, cached)}")

del heard.lines[:]
apply_mag_cache(made["U-Net"](), MagCacheConfig(mag_ratios=[1.0] * STEPS, num_inference_steps=STEPS))
print("MagCache on the U-Net says:", heard.lines)
others = [name for name in made if name != "FLUX"]
warned = any("No transformer blocks" in line for line in heard.lines)
silent = not any(said[name] or counted[name] for name in others)
promised = "all attention-like modules are hooked by default" in TaylorSeerCacheConfig.__doc__
raise SystemExit(not (
    silent and warned and promised and counted["FLUX"] and same == {"Wan": 1, "U-Net": 1, "FLUX": 0}
))
P
