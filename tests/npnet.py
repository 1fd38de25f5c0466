"""Checkpoints in the layout of NPNet's authors, with made-up weights; signs of vectors."""

import torch
from torch import Tensor

DEPTHS = (2, 2, 6, 2)
HEADS = (3, 6, 12, 24)
WIDTHS = {"sd": (64, 768), "sdxl": (128, 2048)}  # side of the latents, width of the texts
svd = torch.linalg.svd


def signed_svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With the largest entry of each left vector above 0: a library chooses the sign otherwise."""
    left, values, right = svd(x)
    sign = left.gather(1, left.abs().argmax(1, keepdim=True)).sign()
    return left * sign, values, right * sign.mT


def shapes(side: int, width: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """Of the tensors of a checkpoint, by its part: as `state_dict` of the authors' classes says."""
    square = 2 * side
    unet_svd = {
        **_linear("mlp1.0", 64, square),
        **_linear("mlp1.2", square, 64),
        **_linear("mlp2.0", 64, square),
        **_linear("mlp2.2", square, 64),
        **_linear("mlp3.0", square, square),
        "attention.qkv.weight": (3 * square, square),
        **_linear("attention.proj", square, square),
        **{f"bn.{k}": (square,) for k in ("weight", "bias", "running_mean", "running_var")},
        "bn.num_batches_tracked": (),
        **_linear("mlp4.0", 1024, square),
        **_linear("mlp4.2", square, 1024),
    }
    swin = {"patch_embed.proj.weight": (96, 3, 4, 4), "patch_embed.proj.bias": (96,)}
    swin |= _norm("patch_embed.norm", 96)
    for i, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        c = 96 * 2**i
        if i:
            swin |= _norm(f"layers.{i}.downsample.norm", 2 * c)
            swin[f"layers.{i}.downsample.reduction.weight"] = (c, 2 * c)
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            swin |= _norm(f"{block}.norm1", c)
            swin[f"{block}.attn.relative_position_bias_table"] = (169, heads)
            swin |= _linear(f"{block}.attn.qkv", 3 * c, c)
            swin |= _linear(f"{block}.attn.proj", c, c)
            swin |= _norm(f"{block}.norm2", c)
            swin |= _linear(f"{block}.mlp.fc1", 4 * c, c)
            swin |= _linear(f"{block}.mlp.fc2", c, 4 * c)
    swin |= {**_norm("norm", 768), **_linear("head.fc", 1000, 768)}
    unet_embedding: dict[str, tuple[int, ...]] = {
        "upconv.weight": (4, 7, 1, 1),
        "upconv.bias": (4,),
        "downconv.weight": (3, 4, 1, 1),
        "downconv.bias": (3,),
        **{f"swin.{k}": v for k, v in swin.items()},
    }
    embedding = _linear("linear", 8, 77 * width)
    return {"unet_svd": unet_svd, "unet_embedding": unet_embedding, "embedding": embedding}


def _linear(name: str, out: int, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def checkpoint(side: int, width: int, third: str = "embedding") -> dict:
    """All parts, alpha and beta, as the authors save them."""
    generator = torch.Generator().manual_seed(side)

    def made(name: str, shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(shape, generator=generator)
        if not shape:
            return torch.tensor(7)
        if len(shape) == 1:
            return 1 + values / 10 if "norm" in name and "weight" in name else values / 10
        return values / shape[1] ** 0.5

    found: dict = {
        part: {k: made(k, shape) for k, shape in tensors.items()}
        for part, tensors in shapes(side, width).items()
    }
    found[third] = found.pop("embedding")
    alpha, beta = torch.tensor([0.7]), torch.tensor([0.4])
    return found | {"alpha": alpha.requires_grad_(), "beta": beta.requires_grad_()}


def inputs(side: int, width: int, n: int = 2) -> tuple[Tensor, Tensor]:
    """Noise and states of texts."""
    generator = torch.Generator().manual_seed(side + 1)
    noise = torch.randn(n, 4, side, side, generator=generator)
    return noise, torch.randn(n, 77, width, generator=generator)
