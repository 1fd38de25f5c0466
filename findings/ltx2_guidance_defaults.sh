#!/usr/bin/env bash
# Who is surprised: whoever calls diffusers' LTX2Pipeline with guidance_scale=1, or with one term of
# the sound's guidance at 0.
#
# The documentation of its call says that guidance is enabled by guidance_scale > 1, that stg_scale
# is 0.0 and modality_scale 1.0 by default, which disables them, and that the scales of the sound are
# None, which takes those of the pictures. The signature has 1.0, 3.0 and, for the sound, 7.0, 1.0 and
# 3.0: so a call with guidance_scale=1 makes four passes a step instead of one, and one with all three
# scales of the pictures at «off» still makes four. And audio_stg_scale=0.0 (or audio_guidance_rescale)
# is taken for None, since the code says `audio_stg_scale or stg_scale`: the sound's term cannot be
# switched off while the pictures keep theirs.
#
# Shown on a random pipeline, nothing is downloaded but packages of PyPI. Exits with 0 as long as these
# calls do more than they are told to.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install -q --disable-pip-version-check "$@"; }
pip torch==2.13.0  # alone, it is the build for CPUs
pip diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'P' 2>/dev/null
import inspect
import re

import diffusers
import torch
from diffusers import (
    AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, FlowMatchEulerDiscreteScheduler, LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

print("diffusers", diffusers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
net = LTX2VideoTransformer3DModel(
    in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8,
    cross_attention_dim=16, audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2,
    audio_attention_head_dim=4, audio_cross_attention_dim=8, num_layers=2, caption_channels=8,
    rope_type="split", perturbed_attn=True,
)
connectors = LTX2TextConnectors(
    caption_channels=8, text_proj_in_factor=2, video_connector_num_attention_heads=2,
    video_connector_attention_head_dim=4, video_connector_num_layers=1,
    video_connector_num_learnable_registers=None, audio_connector_num_attention_heads=2,
    audio_connector_attention_head_dim=4, audio_connector_num_layers=1,
    audio_connector_num_learnable_registers=None, rope_type="split",
)
vae = AutoencoderKLLTX2Video(
    latent_channels=4, block_out_channels=(8,), down_block_types=("LTX2VideoDownBlock3D",),
    decoder_block_out_channels=(8,), layers_per_block=(1,), decoder_layers_per_block=(1, 1),
    spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,),
    decoder_inject_noise=(False, False), downsample_type=("spatial",),
    upsample_type=("spatiotemporal",), upsample_residual=(False,), upsample_factor=(1,), patch_size=1,
)
sound = AutoencoderKLLTX2Audio(
    base_channels=4, ch_mult=(1,), num_res_blocks=1, latent_channels=2, mel_bins=8
)
vocoder = LTX2Vocoder(
    in_channels=16, hidden_channels=32, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2],
    resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]],
)
pipe = LTX2Pipeline(
    FlowMatchEulerDiscreteScheduler(), vae, sound, None, None, connectors, net, vocoder
)
pipe.set_progress_bar_config(disable=True)
rows = []
net.register_forward_pre_hook(
    lambda _net, _args, named: rows.append(len(named["hidden_states"])), with_kwargs=True
)
mask = torch.ones(1, 6, dtype=torch.long)
texts = {
    "prompt_embeds": torch.randn(1, 6, 16), "prompt_attention_mask": mask,
    "negative_prompt_embeds": torch.randn(1, 6, 16), "negative_prompt_attention_mask": mask,
}


def passes(**options):
    """Of one step."""
    rows.clear()
    pipe(
        **texts, height=32, width=32, num_frames=5, num_inference_steps=1, output_type="latent",
        generator=torch.manual_seed(0), spatio_temporal_guidance_blocks=[1], **options,
    )
    return sum(rows)


off = {"guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0}
sound_too = dict.fromkeys(f"audio_{name}" for name in off)
text, known = LTX2Pipeline.__call__.__doc__, inspect.signature(LTX2Pipeline.__call__).parameters
wrong = 0
for name in (*off, *sound_too):
    said = re.search(rf"\b(?<!_){name} \(.*?defaults to `?([\w.]+)`?\)", text)[1]
    print(f"{name}: documented {said}, in the signature {known[name].default}")
    wrong += said != str(known[name].default)
unguided = passes(guidance_scale=1.0)
pictures = passes(**off)
none = passes(**off, **sound_too)
print(f"passes of a step: {unguided} with guidance_scale=1, {pictures} with all of {off},")
print(f"{none} with None for the sound's as well")
passes(stg_scale=1.0, audio_stg_scale=0.0, audio_guidance_rescale=0.0)
print("asked for audio_stg_scale 0.0 and audio_guidance_rescale 0.0, the call has",
      pipe.audio_stg_scale, "and", pipe.audio_guidance_rescale)
taken = pipe.audio_stg_scale == 1.0 and pipe.audio_guidance_rescale == 0.7
raise SystemExit(not (wrong and unguided == pictures == 4 and none == 1 and taken))
P
