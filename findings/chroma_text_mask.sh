#!/usr/bin/env bash
# Who is surprised: whoever hands diffusers' ChromaTransformer2DModel a mask, as ChromaPipeline does.
#
# The mask of the texts' padding, 1 for a token that counts and 0 for one that does not, is made of
# floats (`dtype` of the text encoder, joined with ones for the image). The attention of torch masks
# by booleans and ADDS floats: all padding is attended to, and tokens that count get 1 more in the
# exponent. The pipeline's own comment says that padding is masked out. With the same mask in
# booleans the padding has no influence.
#
# Shown on a random transformer, nothing is downloaded but packages of PyPI. Exits with 0 as long as
# padding shows in the output under the pipeline's mask.
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

import diffusers
import torch
from diffusers import ChromaPipeline, ChromaTransformer2DModel

print("diffusers", diffusers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
net = ChromaTransformer2DModel(
    in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
    num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 4, 8),
    approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1,
).eval()
texts = torch.randn(1, 8, 32)  # three tokens that count, five of padding
texts_2 = texts.clone()
texts_2[:, 3:] = torch.randn(1, 5, 32)
mask = (torch.arange(8) < 3)[None]
made = ChromaPipeline._prepare_attention_mask(None, 1, 4, torch.float32, mask.float())
print("the pipeline's mask:", made.dtype, made.tolist())


def run(states, mask):
    with torch.no_grad():
        return net(
            hidden_states=image, timestep=torch.tensor([0.5]), encoder_hidden_states=states,
            txt_ids=torch.zeros(8, 3), img_ids=torch.zeros(4, 3), attention_mask=mask,
            return_dict=False,
        )[0]


image = torch.randn(1, 4, 16)
floats = (run(texts, made) - run(texts_2, made)).abs().max().item()
booleans = (run(texts, made.bool()) - run(texts_2, made.bool())).abs().max().item()
print(f"change of the output by other padding: {floats:.2g} with it, {booleans:.2g} with booleans")
said = "all except the first padding token are masked out" in inspect.getsource(ChromaPipeline)
print("the comment is there:", said)
raise SystemExit(not (floats > 1e-4 and booleans < 1e-6 and said))
P
