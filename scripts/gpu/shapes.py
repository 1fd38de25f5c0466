"""Stable Diffusion 1.5 and SDXL as their configs say, with random weights, and no file of theirs.

The functions without arguments are such as a study names (`model = "gpu.shapes:sd15"`): workers
call them in processes of their own, so each says itself where its weights are made.
"""

import functools
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from stepsampler.models import resolve
from stepsearch.rehearsal.miniatures import BETAS, sdxl, stable_diffusion

# Of runwayml/stable-diffusion-v1-5 and stabilityai/stable-diffusion-xl-base-1.0
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
SCALING = {"sd15": 0.18215, "sdxl": 0.13025}
# width, inner width, layers, heads of CLIP ViT-L/14 and ViT-bigG/14
CLIPS = {"l": (768, 3072, 12, 12), "g": (1280, 5120, 32, 20)}
WORDS, TOKENS = 49408, 77


def parts(name: str) -> dict[str, Any]:
    """The networks of a pipeline, on torch's default device and in its default dtype."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    encoders = {"text_encoder": _clip("l")}
    if name == "sdxl":
        encoders["text_encoder_2"] = _clip("g", projection=1280)
    return {
        "unet": UNet2DConditionModel(**UNETS[name]),
        "vae": AutoencoderKL(
            **VAE,
            sample_size=8 * UNETS[name]["sample_size"],
            scaling_factor=SCALING[name],
        ),
        **encoders,
    }


def _clip(kind: str, projection: int | None = None) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    width, inner, layers, heads = CLIPS[kind]
    config = CLIPTextConfig(
        vocab_size=WORDS,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=TOKENS,
        bos_token_id=WORDS - 2,
        eos_token_id=WORDS - 1,
        projection_dim=projection or 768,
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def _tokenizer() -> Any:
    """The bundled model's, with as many words as CLIP's has: the others are never met."""
    from transformers import CLIPTokenizer

    bundled = Path(resolve("tiny"), "tokenizer")
    known = json.loads((bundled / "vocab.json").read_text(encoding="utf-8"))
    *words, start, end = sorted(known, key=known.__getitem__)
    words += [f"never{k}" for k in range(WORDS - 2 - len(words))]
    vocabulary = {word: k for k, word in enumerate([*words, start, end])}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        Path(folder, "merges.txt").write_bytes((bundled / "merges.txt").read_bytes())
        return CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)


def pipeline(name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """The whole pipeline, its weights made where they stay: the same at every call."""
    from diffusers import (
        EulerDiscreteScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
    )

    with torch.random.fork_rng([device] if device.type == "cuda" else []), _made(device, dtype):
        torch.manual_seed(0)
        networks = parts(name)
    tokenizer = _tokenizer()
    scheduler = EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)
    if name == "sdxl":
        made = StableDiffusionXLPipeline(
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            scheduler=scheduler,
            add_watermarker=False,
            **networks,
        )
    else:
        made = StableDiffusionPipeline(
            tokenizer=tokenizer,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **networks,
        )
    return _quiet(made.to(device, dtype))


@contextmanager
def _made(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def tiny(name: str) -> Any:
    """A miniature of the same classes, in float32 on the CPU."""
    from diffusers import EulerDiscreteScheduler

    made = {"sd15": stable_diffusion, "sdxl": sdxl}[name]()
    made.scheduler = EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)
    return _quiet(made)


def _quiet(made: Any) -> Any:
    made.set_progress_bar_config(disable=True)
    for part in made.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return made


@functools.cache
def _kept(name: str) -> Any:
    return pipeline(name, torch.device("cuda", torch.cuda.current_device()), torch.bfloat16)


def sd15() -> Any:
    """As a study's code; one of a process."""
    return _kept("sd15")


def sdxl_() -> Any:
    return _kept("sdxl")


@functools.cache
def tiny_sd15() -> Any:
    return tiny("sd15")


@functools.cache
def tiny_sdxl() -> Any:
    return tiny("sdxl")


CODE = {  # of a study, by name and whether it is dry
    ("sd15", False): "gpu.shapes:sd15",
    ("sdxl", False): "gpu.shapes:sdxl_",
    ("sd15", True): "gpu.shapes:tiny_sd15",
    ("sdxl", True): "gpu.shapes:tiny_sdxl",
}
