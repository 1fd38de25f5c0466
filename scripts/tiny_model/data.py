"""Fashion-MNIST as images in [-1, 1], and the prompts that describe them.

The files are those of the Debian package `dataset-fashion-mnist` (MIT licence).
"""

import gzip
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")
SIZE = 32  # 28 x 28 padded with background

# One line per class of the data set, in its order: the first word names the class.
NAMES = (
    ("t-shirt", "tee", "short-sleeved top"),
    ("pair of trousers", "pair of pants", "pair of slacks"),
    ("pullover", "sweater", "jumper"),
    ("dress", "gown", "frock"),
    ("coat", "overcoat", "jacket"),
    ("sandal", "open shoe", "strappy sandal"),
    ("shirt", "button-up shirt", "blouse"),
    ("sneaker", "trainer", "running shoe"),
    ("bag", "handbag", "purse"),
    ("ankle boot", "boot", "high-top boot"),
)
TEMPLATES = (
    "a photo of a {}",
    "a {}",
    "{}",
    "a picture of a {}",
    "a product photo of a {}",
    "a {} on a black background",
    "a grey photograph of a {}",
    "a small photo of a {}",
    "one {} seen from the side",
)
HELD_OUT_TEMPLATES = ("an image of a {}", "a shop photograph of a {}", "a {} for sale")


def load_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Return images, uint8 of shape (n, 32, 32), and labels, int64 of shape (n,).

    `split` is "train" (60,000 images) or "t10k" (10,000).
    """
    with gzip.open(folder / f"{split}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / f"{split}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    border = (SIZE - 28) // 2
    padded = np.pad(pixels, ((0, 0), (border, border), (border, border)))
    return torch.from_numpy(padded), torch.from_numpy(labels.astype(np.int64))


def to_rgb(images: Tensor) -> Tensor:
    """(n, 32, 32) uint8 -> (n, 3, 32, 32) float in [-1, 1]."""
    return (images.float() / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)


def prompts(templates: tuple[str, ...] = TEMPLATES) -> list[tuple[str, int]]:
    """Every (prompt, class) pair; classes take turns, so that any prefix is balanced."""
    return [
        (re.sub(r"\ba (?=[aeio])", "an ", template.format(names[synonym])), label)
        for synonym in range(3)
        for template in templates
        for label, names in enumerate(NAMES)
    ]
