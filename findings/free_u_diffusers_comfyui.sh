#!/usr/bin/env bash
# Free-U in diffusers and in ComfyUI is called by the same four numbers, b1, b2, s1, s2, and both name
# the same source; on Stable Diffusion 1.x they are different functions. ComfyUI, as the source,
# goes by the number of channels: b1 and s1 wherever the features have 4 times the first number, b2
# and s2 where they have twice. diffusers goes by the level of the decoder, b1 for the first and b2
# for the second, and of SD 1.x both have 4 times. A setting found in one is another one in the other.
# Seen, block by block of a decoder of SD 1.x's shape (channels 1 2 4 4): ComfyUI 1 1 1 1 1 1 1 2 2 2 - -,
# diffusers 1 1 1 2 2 2 - - - - - -.
source "$(dirname "${BASH_SOURCE[0]}")/lib/comfyui.sh"
$pip install diffusers==0.42.1
$python - <<'END'
import importlib.metadata
import sys
from types import SimpleNamespace

import cpu
import torch
import comfy.ops
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy_extras.nodes_freelunch import FreeU
from diffusers import UNet2DConditionModel
from diffusers.models.unets import unet_2d_blocks

print("diffusers", importlib.metadata.version("diffusers"))
x, t, context = torch.randn(1, 4, 64, 64), torch.tensor([500.0]), torch.randn(1, 7, 32)
values = {"b1": 1.5, "b2": 1.25, "s1": 1.0, "s2": 1.0}  # the gains say which pair it was
kind = {1.0: "-", 1.5: "1", 1.25: "2"}


def gain(before, after):
    return kind[round(float((after[:, 0] / before[:, 0]).mean()), 3)]


unet = UNet2DConditionModel(
    block_out_channels=(32, 64, 128, 128), layers_per_block=2, cross_attention_dim=32, attention_head_dim=8
).eval()
unet.enable_freeu(**values)
diffusers, inner = [], unet_2d_blocks.apply_freeu


def recorded(level, h, skip, **more):
    before = h.clone()
    h, skip = inner(level, h, skip, **more)
    diffusers.append(gain(before, h))
    return h, skip


unet_2d_blocks.apply_freeu = recorded
with torch.no_grad():
    unet(x, t, encoder_hidden_states=context)

net = UNetModel(
    image_size=64, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=2, channel_mult=(1, 2, 4, 4),
    num_heads=8, use_spatial_transformer=True, transformer_depth=[1] * 6 + [0] * 2,
    transformer_depth_output=[1] * 9 + [0] * 3, transformer_depth_middle=1, context_dim=32, legacy=False,
    operations=comfy.ops.disable_weight_init,
)
for weight in net.parameters():
    torch.nn.init.normal_(weight, std=0.02)
patches = []
patcher = SimpleNamespace(model=SimpleNamespace(model_config=SimpleNamespace(unet_config={"model_channels": 32})))
patcher.clone = lambda: patcher
patcher.set_model_output_block_patch = patches.append
FreeU.execute(patcher, **values)
comfyui = []


def watched(h, skip, options):
    before = h.clone()
    h, skip = patches[0](h, skip, options)
    comfyui.append(gain(before, h))
    return h, skip


with torch.no_grad():
    net(x, t, context=context, transformer_options={"patches": {"output_block_patch": [watched]}})
diffusers += ["-"] * (len(comfyui) - len(diffusers))  # asked only where it is switched on
print("ComfyUI:  ", *comfyui)
print("diffusers:", *diffusers)
sys.exit(comfyui != list("1111111222--") or diffusers != list("111222------"))
END
