"""Letters A to J of matplotlib's fonts, coloured, turned and shifted: pictures for nothing.

The fonts come with matplotlib: DejaVu (Bitstream Vera's licence), STIX (OFL), Computer Modern.
"""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LETTERS = "ABCDEFGHIJ"
SIZE, FINE = 32, 4  # pixels of a sprite; drawn so many times as large
FONTS = ("DejaVuSans*", "DejaVuSerif*", "STIXGeneral*", "cm[rsti][sti0]*", "cmb10*")
NO_LETTERS = ("DejaVuSansDisplay", "DejaVuSerifDisplay")


def fonts() -> list[Path]:
    """Files of fonts that have the letters, by name."""
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    found = {path for pattern in FONTS for path in folder.glob(f"{pattern}.ttf")}
    return sorted(path for path in found if path.stem not in NO_LETTERS)


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` pictures, uint8 (n, 3, 32, 32), and their classes (n,): as many of each letter."""
    rng, side = np.random.default_rng(seed), SIZE * FINE
    faces = {
        (k, size): ImageFont.truetype(str(path), size * FINE)
        for k, path in enumerate(fonts())
        for size in (20, 23, 26, 29)
    }
    keys, rows = list(faces), []
    for k in range(count):
        face = faces[keys[rng.integers(len(keys))]]
        mask = Image.new("L", (side, side))
        place = tuple(side / 2 + FINE * rng.uniform(-2, 2, 2))
        ImageDraw.Draw(mask).text(place, LETTERS[k % len(LETTERS)], 255, face, anchor="mm")
        turned = mask.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC)
        ink = np.asarray(turned.resize((SIZE, SIZE), Image.Resampling.BOX), float)[..., None] / 255
        while np.abs(np.diff(colours := rng.uniform(0, 255, (2, 3)), axis=0)).sum() < 200:
            pass  # a letter that can be told from its paper
        rows.append((ink * colours[0] + (1 - ink) * colours[1]).round().astype(np.uint8))
    images = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()
    return images, torch.arange(count) % len(LETTERS)
