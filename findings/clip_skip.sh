#!/usr/bin/env bash
# Who is surprised: whoever passes `clip_skip` to diffusers' StableDiffusionPipeline.
#
# 1. Beside transformers 5 every such call ends in an AttributeError: the pipeline looks for
#    `text_encoder.text_model`, which transformers 5 has no longer (its parts are now the encoder's
#    own). StableDiffusionXLPipeline, which does not need it, runs.
# 2. Where it runs, `clip_skip` reaches the prompt alone: the negative prompt is read at the layer
#    that is taken without it. A1111 and ComfyUI skip for both.
#
# Shown on a random text encoder of two layers, nothing is downloaded but packages of PyPI. Exits
# with 0 as long as both are so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install -q --disable-pip-version-check "$@"; }
pip torch==2.13.0  # alone, it is the build for CPUs
pip diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'P' 2>/dev/null
import diffusers, torch, transformers
from diffusers import (
    AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

print("diffusers", diffusers.__version__, "transformers", transformers.__version__)
torch.manual_seed(0)
letters = {chr(c): c - 97 for c in range(97, 123)}
letters |= {k + "</w>": 26 + v for k, v in letters.items()}
ends = {"<|startoftext|>": 52, "<|endoftext|>": 53}
tokenizer = CLIPTokenizer(vocab=letters | ends, merges=[], model_max_length=16)
small = {"vocab_size": 54, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "max_position_embeddings": 16, "projection_dim": 32,
         "bos_token_id": 52, "eos_token_id": 53}
encoder = CLIPTextModel(CLIPTextConfig(**small)).eval()
second = CLIPTextModelWithProjection(CLIPTextConfig(**small)).eval()
blocks = {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1,
          "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
          "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "norm_num_groups": 8}
vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4,
                    down_block_types=("DownEncoderBlock2D",) * 2,
                    up_block_types=("UpDecoderBlock2D",) * 2)
sd = StableDiffusionPipeline(
    vae, encoder, tokenizer, UNet2DConditionModel(**blocks, cross_attention_dim=32),
    DDIMScheduler(), None, None, requires_safety_checker=False,
)
sd.set_progress_bar_config(disable=True)
sd("a fox", num_inference_steps=2)
print("StableDiffusionPipeline without clip_skip: an image")
try:
    sd("a fox", num_inference_steps=2, clip_skip=1)
except AttributeError as error:
    print("StableDiffusionPipeline(clip_skip=1):", repr(error))
    raises = "text_model" in str(error)
else:
    print("StableDiffusionPipeline(clip_skip=1): an image")
    raises = False

xl = StableDiffusionXLPipeline(
    vae, encoder, second, tokenizer, tokenizer,
    UNet2DConditionModel(**blocks, cross_attention_dim=64), DDIMScheduler(),
)
plain, skipped = (
    xl.encode_prompt("a fox", negative_prompt="blurry", clip_skip=n, device="cpu")[:2]
    for n in (None, 1)
)
moved = [not torch.equal(a, b) for a, b in zip(plain, skipped)]
print("StableDiffusionXLPipeline, clip_skip=1 changes the prompt's embedding:", moved[0])
print("                           ... and the negative prompt's:", moved[1])
raise SystemExit(0 if raises and moved == [True, False] else 1)
P
