"""Two classifiers of the letters: features of one, verdicts of the other.

Each has seen real pictures of its own alone: sprites as drawn, and as many smoothed ones.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from second.model import pipeline
from second.sprites import draw
from stepsampler.errors import percent
from stepsearch.metrics.alignment import Prompt
from stepsearch.metrics.features import AXES, Extractor, file_digest
from stepsearch.metrics.networks import WIDTHS, SmallClassifier
from stepsearch.paths import write_whole

FOLDER = Path("runs/second")  # where their weights are


class Coloured(SmallClassifier):
    """The bundled classifiers' network, on colours."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        self.stages[0][0] = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        if path:
            self.load_state_dict(load_file(path))
            self.eval().requires_grad_(False)

    @staticmethod
    def prepare(images: Tensor) -> Tensor:
        return images.float() / 127.5 - 1


class Letters(Extractor):
    """Features of a classifier, pooled at four depths."""

    name = "letters"
    resizing = "none, images are 32 x 32"
    axes: int | None = AXES

    def __init__(self, device: torch.device) -> None:
        path = FOLDER / "letters.safetensors"
        self.net, self.digest = Coloured(path).to(device), file_digest(path)

    def prepare(self, images: Tensor) -> Tensor:
        return self.net.prepare(images)

    @torch.inference_mode()
    def features(self, prepared: Tensor) -> Tensor:
        return self.net.features(prepared)


class LetterJudge:
    """1 where a classifier reads the prompted letter, else 0."""

    def __init__(self) -> None:
        path = FOLDER / "judge.safetensors"
        self.net, self.digest, self.notes = Coloured(path), file_digest(path), list[str]()

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        read = self.net(self.net.prepare(images)).argmax(1).numpy()
        asked = np.array([prompt.label for prompt in prompts])
        return np.asarray(read == asked, np.float32)


def train(path: Path, seed: int, count: int, epochs: int = 6, batch: int = 100) -> None:
    """On `count` sprites of either kind; says how many it reads of others."""
    torch.manual_seed(seed)
    x, y = _pictures(count, seed)
    net = Coloured()
    total = epochs * -(-len(x) // batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=total)
    for _ in range(epochs):
        for pick in torch.randperm(len(x)).split(batch):
            loss = F.cross_entropy(net(x[pick]), y[pick], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    net.eval()
    x, y = _pictures(500, seed + 1000)
    with torch.inference_mode():
        share = (net(x).argmax(1) == y).float().mean().item()
    print(f"{path.stem} reads {percent(share)} of the letters", flush=True)
    write_whole(path, lambda p: save_file(net.state_dict(), p))


def _pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    images, labels = draw(count, seed)
    smooth = pipeline().transformer.draw(count, seed)
    return Coloured.prepare(torch.cat([images, smooth])), torch.cat([labels, labels])
