#!/usr/bin/env bash
# Who is surprised: whoever hands a network of their own to DiffusionPipeline.from_pretrained.
#
# `DiffusionPipeline.from_pretrained(folder, transformer=mine)` is diffusers' documented way to give
# a pipeline another network: a quantised one, one with other weights, one that lies on another
# device. For a folder of Wan it is dropped without a word: the pipeline reads the folder's own
# transformer and runs with that. Wan's networks are optional components of WanPipeline, and the base
# class looks for those in a list of its own, which is empty. `WanPipeline.from_pretrained` with the
# same arguments takes it, and so does the base class for pipelines whose network is not optional.
#
# Exits with 0 as long as all three are so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install -q --disable-pip-version-check "$@"; }
pip torch==2.13.0  # alone, it is the build for CPUs
pip diffusers==0.42.1 transformers==5.23.0 accelerate safetensors
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'P' 2>/dev/null
import diffusers
from diffusers import (
    AutoencoderKL, AutoencoderKLWan, DiffusionPipeline, DiTPipeline, DiTTransformer2DModel,
    DDIMScheduler, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel,
)

print("diffusers", diffusers.__version__)


def transformer():
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=8, freq_dim=8, ffn_dim=8, num_layers=1
    )


def dit():
    return DiTTransformer2DModel(num_attention_heads=1, attention_head_dim=4, num_layers=1)


vae = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
WanPipeline(None, None, vae, FlowMatchEulerDiscreteScheduler(), transformer()).save_pretrained("wan")
DiTPipeline(dit(), AutoencoderKL(), DDIMScheduler()).save_pretrained("dit")


def taken(cls, folder, mine, **others):
    found = cls.from_pretrained(folder, transformer=mine, **others).transformer is mine
    print(f"{cls.__name__}.from_pretrained({folder!r}, transformer=mine): mine is {'' if found else 'not '}taken")
    return found


texts = {"tokenizer": None, "text_encoder": None}
found = [
    taken(DiffusionPipeline, "wan", transformer(), **texts),
    taken(WanPipeline, "wan", transformer(), **texts),
    taken(DiffusionPipeline, "dit", dit()),
]
raise SystemExit(found != [False, True, True])
P
