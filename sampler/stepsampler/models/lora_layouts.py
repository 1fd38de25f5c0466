"""LoRAs under the names of the tools that write them, as diffusers takes them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from stepsampler.errors import UserError, note
from stepsampler.models.parts import listed
from stepsampler.support.files import read_json
from stepsampler.support.weights import Header

# In the names of LoRA tensors, what stands between the layer and the end of the first factor
DOWN = re.compile(r"[._](lora_down|lora_A|lora\.down|lora_linear_layer\.down)(\.\w+)?\.weight$")
UP = re.compile(r"[._](lora_up|lora_B|lora\.up|lora_linear_layer\.up)(\.\w+)?\.weight$")
_PEFT = "base_model.model."  # before the names of layers in peft's own files
# Names that diffusers does not place, and whose they are
_LAYOUTS = (
    (
        r"(^|[._])(input_blocks|middle_block|output_blocks)[._]",
        "as its layers have CompVis' names, which are read of SDXL from kohya's scripts alone",
    ),
    (r"^lycoris_", "as its layers have LyCORIS' own names"),
)


def source_of(pipeline: Any, file: str, header: Header) -> dict[str, torch.Tensor] | str:
    """What diffusers takes: the folder of the file, or tensors that it would not understand there.

    Those are of peft's own layout, whose alpha is in another file; names that diffusers does not
    place, though they are its own; and files with tensors beside the factors: alphas of single
    layers, which are multiplied into the factors, and others, such as words that were trained
    along, which are named and left out.
    """
    peft = all(key.startswith(_PEFT) for key in header.tensors)
    kohya = any(key.startswith("lora_") for key in header.tensors)
    alphas = [] if kohya else [key for key in header.tensors if key.endswith(".alpha")]
    others = [k for k in header.tensors if "lora" not in k.lower() and not k.endswith(".alpha")]
    placed = {key: _placed(pipeline, key) for key in header.tensors}
    if not (peft or alphas or others or any(old != new for old, new in placed.items())):
        return str(Path(file).parent)
    state: dict[str, torch.Tensor] = load_file(file)
    scales = {key.removesuffix(".alpha"): float(state.pop(key)) for key in alphas}
    for key in others:
        del state[key]
    if others:
        note(f"LoRA {file!r}: {listed('tensors', sorted(others))} no factors, and left out")
    share = _peft_scale(file) if peft else None
    for key in list(state):
        layer = UP.sub("", key)
        if UP.search(key) and (share or layer in scales):
            rank = state[key].shape[1]
            state[key] = state[key] * (share(rank) if share else scales[layer] / rank)
    state = {placed[key]: value for key, value in state.items()}
    if not peft:
        return state
    network = "unet" if hasattr(pipeline, "unet") else "transformer"
    bare = {key.removeprefix(_PEFT): value for key, value in state.items()}
    heads = (f"{network}.", "text_encoder")
    return {k if k.startswith(heads) else f"{network}.{k}": v for k, v in bare.items()}


def _placed(pipeline: Any, key: str) -> str:
    """The name under which diffusers finds the layer; most are so already.

    Without the name of peft's adapter, under which diffusers drops the weights and says nothing. Of
    a U-Net: with its name in front, and factors as it has them there.
    """
    key = re.sub(r"\.(lora_[AB])\.\w+\.weight$", r".\1.weight", key)
    if not hasattr(pipeline, "unet"):
        return key
    bare = key.removeprefix("model.").removeprefix("diffusion_model.")
    if bare.split(".")[0] in dict(pipeline.unet.named_children()):
        key = f"unet.{bare}"
    if key.startswith("unet."):
        key = re.sub(r"\.(lora_linear_layer\.|lora_)(down|up)\.weight$", r".lora.\2.weight", key)
    return key


def layout(header: Header) -> str:
    """What is to be said of names that belong to other tools, with a leading comma; or nothing."""
    for pattern, said in _LAYOUTS:
        if any(re.search(pattern, key) for key in header.tensors):
            return f", {said}"
    return ""


def _peft_scale(file: str) -> Callable[[int], float]:
    """Of a rank, from the file of settings that peft writes beside its weights."""
    path = Path(file).with_name("adapter_config.json")
    try:
        config = read_json(path)
        alpha = float(config["lora_alpha"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"LoRA {file!r} is as peft writes it, with its alpha in {path.name}, which is not "
            "beside it or states none"
        ) from error
    if config.get("alpha_pattern"):
        raise UserError(
            f"LoRA {file!r}: the alpha_pattern of {path.name} is not supported; write it by "
            "save_lora_weights of a pipeline of diffusers"
        )
    power = 0.5 if config.get("use_rslora") else 1.0
    return lambda rank: alpha / rank**power
