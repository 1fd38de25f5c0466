"""The authors' checkpoints, which are pickles, to files of ours: for those who ask for it.

Only here is a pickle read, and only by the reader of torch that makes tensors and runs nothing.
"""

import pickle
import struct
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepsampler.errors import UserError
from stepsampler.npnet.files import TOKENS, fill, write_npnet
from stepsampler.npnet.network import Layout, NPNet
from stepsampler.support.weights import SUFFIX

# The authors wrote the third one in two ways
PARTS = {
    "unet_svd": "unet_svd",
    "unet_embedding": "unet_embedding",
    "embedding": "embedding",
    "embeeding": "embedding",
}
NUMBERS = ("alpha", "beta")
# What torch's reader raises of a file that is cut off, or that somebody made up
BROKEN = (
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    OSError,
    AttributeError,
    TypeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    MemoryError,
    struct.error,
)


def convert(source: Path, out: Path) -> Layout:
    """Write an authors' checkpoint as safetensors; returns what it is made for.

    Raises:
        UserError: no such checkpoint, one with anything but tensors in it, or another layout.
    """
    if out.suffix != SUFFIX:
        raise UserError(f"--out must name a {SUFFIX} file, got {str(out)!r}")
    place = f"checkpoint {str(source)!r}"
    tensors = _flat(_read(source, place), place)
    layout = _layout(tensors, place)
    network = NPNet(layout)
    fill(network, tensors, place)
    write_npnet(out, network, {"source": source.name})
    return layout


def _read(source: Path, place: str) -> Any:
    if not source.is_file():
        raise UserError(f"{place}: no such file")
    if source.suffix == SUFFIX:
        raise UserError(f"{place} is {SUFFIX} already; what is converted is the authors' .pth")
    try:
        with warnings.catch_warnings(action="ignore"):  # of kinds of pickles, which are refused
            return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{place} holds other things than weights, which could run code: it is not read"
        ) from error
    except BROKEN as error:
        raise UserError(f"{place} is no checkpoint of torch, or is cut off") from error


def _flat(data: Any, place: str) -> dict[str, Tensor]:
    """All tensors by name."""
    found: dict[str, Tensor] = {}
    for name, value in data.items() if isinstance(data, dict) else ():
        if name in PARTS and isinstance(value, dict):
            found |= {f"{PARTS[name]}.{k}": v for k, v in value.items()}
        elif name in NUMBERS:
            found[name] = _number(value, f"{place}: {name}")
        else:
            raise UserError(f"{place} has {str(name)!r}, which no NPNet has")
    missing = {*PARTS.values(), *NUMBERS} - {key.split(".")[0] for key in found}
    if missing:
        raise UserError(f"{place} is no NPNet: it has no {', '.join(sorted(missing))}")
    for key, value in found.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{place}: {key} is no tensor")
        odd = value.is_quantized or value.is_meta or value.is_complex()
        if odd or value.layout is not torch.strided:
            raise UserError(f"{place}: {key} is no tensor of plain numbers")
    return found


def _number(value: Any, place: str) -> Tensor:
    try:
        return torch.as_tensor(value).reshape(1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{place} must be one number") from error


def _layout(tensors: dict[str, Tensor], place: str) -> Layout:
    """From the shapes; Swin is the authors' in any case."""
    needed = ("unet_svd.mlp1.0.weight", "embedding.linear.weight")
    for key in needed:
        if key not in tensors or tensors[key].ndim != 2:
            raise UserError(f"{place} has no {key}")
    square, text = (tensors[key].shape[1] for key in needed)
    if text % TOKENS:
        raise UserError(
            f"{place}: embedding.linear.weight reads {text} numbers, not {TOKENS} tokens of CLIP"
        )
    layout = Layout(square // 2, TOKENS, text // TOKENS)
    if not layout.can_be:
        sizes = f"latents of side {layout.side} and texts of width {layout.width}"
        raise UserError(f"{place} is no NPNet: none is for {sizes}")
    return layout
