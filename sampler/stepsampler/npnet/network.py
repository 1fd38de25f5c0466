"""NPNet (Zhou et al. 2024, «Golden Noise for Diffusion Models», arXiv 2411.09502, section 3.3).

Golden noise = svd(x) + (2 sigmoid(alpha) - 1) text + beta * branch(x + text), where `text` is x
under an adaptive group norm that the prompt's embedding sets.
"""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepsampler.errors import UserError

HIDDEN, SVD_HEADS, LAST_HIDDEN = 64, 8, 1024
LARGEST = 1024  # side of a latent, and of Swin's image
MOST_STAGES, MOST_BLOCKS = 6, 64  # of Swin


@dataclass(frozen=True)
class Swin:
    """Of the transformer branch; by default Swin-T, the authors'."""

    image_size: int = 224
    patch_size: int = 4
    window_size: int = 7
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)

    @property
    def rows(self) -> int:
        """Of its last feature map."""
        return self.image_size // self.patch_size >> (len(self.depths) - 1)


@dataclass(frozen=True)
class Layout:
    """What a network is made for: latents (channels, side, side) and texts (tokens, width)."""

    side: int
    tokens: int
    width: int
    channels: int = 4
    swin: Swin = Swin()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Layout":
        """Read what `to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError: something else.
        """
        data = json.loads(text)
        swin: dict[str, Any] = data.pop("swin")
        names = [f.name for f in fields(Swin)]
        numbers = [*data.values(), *(swin[n] for n in names[:4]), *swin["depths"]]
        numbers += swin["num_heads"]
        if not all(type(n) is int and 0 < n < 10**5 for n in numbers):
            raise ValueError("sizes must be whole numbers above 0")
        for name in ("depths", "num_heads"):
            swin[name] = tuple(swin[name])
        layout = cls(**data, swin=Swin(**swin))
        if not layout.can_be:
            raise ValueError("no network has these sizes")
        return layout

    @property
    def can_be(self) -> bool:
        """Whether the sizes go together."""
        swin, stages = self.swin, len(self.swin.depths)
        return (
            self.channels == 4  # laid out as a square
            and 0 < self.side <= LARGEST
            and 2 * self.side % SVD_HEADS == 0
            and self.tokens > 0 < self.width
            and 0 < stages == len(swin.num_heads) <= MOST_STAGES
            and sum(swin.depths) <= MOST_BLOCKS
            and 0 < swin.image_size <= LARGEST
            and swin.image_size % (swin.patch_size << (stages - 1)) == 0
            and all((swin.embed_dim << i) % heads == 0 for i, heads in enumerate(swin.num_heads))
        )

    @property
    def large(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of tensors that tell how much memory the network takes."""
        embed, patch = self.swin.embed_dim, self.swin.patch_size
        return {
            "embedding.linear.weight": (2 * self.channels, self.tokens * self.width),
            "unet_embedding.swin.patch_embed.proj.weight": (embed, 3, patch, patch),
        }

    @property
    def latent(self) -> tuple[int, int, int]:
        return self.channels, self.side, self.side

    def refusal(self, latent: tuple[int, ...], text: tuple[int, ...] | None = None) -> str | None:
        """Why it does not fit latents or texts of these shapes, if it does not."""
        if latent != self.latent:
            return f"it is for latents of {_by(self.latent)}, and the model has {_by(latent)}"
        if text is not None and text != (self.tokens, self.width):
            ours = f"{self.tokens} tokens of {self.width} numbers"
            return f"it reads texts of {ours}, and the model has {_by(text)}"
        return None


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


class NPNet(nn.Module):
    """Noise and the embedding of the positive prompt -> golden noise."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        from diffusers.models.normalization import AdaGroupNorm  # not when this module is imported

        self.layout = layout
        self.unet_svd = SVDBranch(layout)
        self.unet_embedding = TransformerBranch(layout)
        size = layout.tokens * layout.width
        self.embedding = AdaGroupNorm(size, layout.channels, 1, eps=1e-6)
        self.alpha = nn.Parameter(torch.zeros(1))
        self.beta = nn.Parameter(torch.zeros(1))

    def forward(self, noise: Tensor, states: Tensor) -> Tensor:
        """Noise (n, *latent) at unit variance and states (n, tokens, width), both of any dtype, on
        the network's device -> float32 (n, *latent).

        Raises:
            UserError: other shapes.
        """
        reason = self.layout.refusal(tuple(noise.shape[1:]), tuple(states.shape[1:]))
        if reason:
            raise UserError(f"the NPNet does not fit: {reason}")
        x = noise.float()
        text = self.embedding(x, states.float().flatten(1))
        gain = 2 * torch.sigmoid(self.alpha) - 1
        return (  # type: ignore[no-any-return]
            self.unet_svd(x) + gain * text + self.beta * self.unet_embedding(x + text)
        )


class SVDBranch(nn.Module):
    """New singular values of a latent, whose four channels are laid out as a square."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        width = layout.side * layout.channels // 2

        def through(hidden: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

        self.mlp1, self.mlp2 = through(HIDDEN), through(HIDDEN)
        self.mlp3 = nn.Sequential(nn.Linear(width, width))
        self.attention = Attention(width)
        self.mlp4 = through(LAST_HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 4, side, side) -> the same.

        A pair of singular vectors is known up to its sign, and the network sees that sign: it is
        decomposed on the CPU, so that a seed means the same noise on every device.
        """
        n, _, h, w = x.shape
        square = x.reshape(n, 2, 2, h, w).permute(0, 1, 3, 2, 4).reshape(n, 2 * h, 2 * w)
        left, values, right = (part.to(x.device) for part in torch.linalg.svd(square.cpu()))
        out = self.mlp1(left.mT) + self.mlp2(right) + self.mlp3(values)[:, None]
        values = self.mlp4(self.attention(out).mean(1)) + values
        made: Tensor = (left * values[:, None]) @ right
        return made.reshape(n, 2, h, 2, w).permute(0, 1, 3, 2, 4).reshape(n, 4, h, w)


class Attention(nn.Module):
    """Self-attention over (n, tokens, width), with queries, keys and values in one matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (3, SVD_HEADS, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(*parts)
        return self.proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class TransformerBranch(nn.Module):
    """Swin's last features, taken as the authors do.

    They have their channels last, (n, rows, columns, features), and what follows takes them as
    (n, channels, height, width): the rows are the channels of the last convolution, and each map of
    columns by features becomes a latent's by its nearest pixels.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        from transformers import SwinConfig, SwinModel

        self.layout = layout
        self.downconv = nn.Conv2d(layout.channels, 3, 1)
        # no dropped paths: they are of the training of Swin itself
        config = SwinConfig(**asdict(layout.swin), drop_path_rate=0.0)
        self.swin = SwinModel(config, add_pooling_layer=False)
        self.upconv = nn.Conv2d(layout.swin.rows, layout.channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.layout.swin.rows
        pixels = self.downconv(F.interpolate(x, [self.layout.swin.image_size] * 2))
        features = self.swin(pixels).last_hidden_state.unflatten(1, (rows, rows))
        maps = F.interpolate(features, [self.layout.side] * 2)
        return self.upconv(maps)  # type: ignore[no-any-return]
