"""The miniatures of `stepsearch.rehearsal`, and how the stock pipelines make their images."""

import torch
from safetensors.torch import save_file

from stepsearch.rehearsal.miniatures import *  # noqa: F403

PROMPTS = ["a photo of a sneaker", "a shirt", "bag"]
SIZE = 32  # pixels of the latent families' images here; the pixel U-Nets make 16
# What some stock pipelines must be told to make images of that size
_SQUARE = {"height": SIZE, "width": SIZE}
_NO_BINS = {**_SQUARE, "use_resolution_binning": False}
CALL = {
    "pixart-alpha": _NO_BINS,
    "pixart-sigma": _NO_BINS,
    "flux-dev": _SQUARE,
    "flux-schnell": _SQUARE,
    "sana": _NO_BINS,
}


def save_lora(path):
    """A LoRA of rank 2 on one projection of the tiny U-Net, in the layout of diffusers."""
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    generator = torch.manual_seed(2)
    down = torch.randn(2, 32, generator=generator)
    up = torch.randn(32, 2, generator=generator)
    save_file({f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}, path)
    return key.removeprefix("unet."), up @ down
