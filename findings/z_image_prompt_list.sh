#!/usr/bin/env bash
# Who is surprised: whoever calls diffusers' ZImagePipeline twice with the same list of prompts.
#
# `_encode_prompt` writes the filled chat template into the list that it was handed. The second call
# fills the template with the first one's filled template: the same call makes another image. So it
# is with `negative_prompt`.
#
# Shown on random networks, nothing is downloaded but packages of PyPI. Exits with 0 as long as the
# list is changed.
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
    AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel,
)
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model
from transformers.convert_slow_tokenizer import bytes_to_unicode

print("diffusers", diffusers.__version__)
torch.manual_seed(0)
tokens = [*bytes_to_unicode().values(), "<|endoftext|>"]
tokenizer = Qwen2Tokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
tokenizer.chat_template = "{% for m in messages %}[user]{{ m.content }}[end]{% endfor %}"
encoder = Qwen3Model(Qwen3Config(
    vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, head_dim=8,
)).eval()
net = ZImageTransformer2DModel(
    in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=32,
    axes_dims=[4, 6, 6],
).eval()
for parameter in net.parameters():  # some begin at zero, where texts would not show
    parameter.data += 0.1 * torch.randn_like(parameter)
vae = AutoencoderKL(
    block_out_channels=(8, 8), norm_num_groups=4, shift_factor=0.0,
    down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
)
pipe = ZImagePipeline(FlowMatchEulerDiscreteScheduler(), vae, encoder, tokenizer, net)
pipe.set_progress_bar_config(disable=True)
prompts, made = ["a fox"], []
for _ in range(2):
    made.append(pipe(
        prompts, height=32, width=32, num_inference_steps=2, guidance_scale=0.0,
        output_type="latent", generator=torch.manual_seed(1),
    ).images)
    print("the caller's list after a call:", prompts)
change = (made[0] - made[1]).abs().max().item()
print(f"difference of the two images' latents: {change:.2g}")
raise SystemExit(not (prompts != ["a fox"] and change > 1e-4))
P
