"""Write images and sheets of images as PNG files."""

import itertools
import os
import re
import secrets
import textwrap
from collections.abc import Callable, Collection, Sequence
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from stepsampler.support.files import beginning_of_part

MAX_SHEET = 256  # images on one sheet
RATE = 16  # frames of a video a second
SHEET = "grid.png"  # of all images that one command makes, beside them
_SHEETS = re.compile(r"(.*/)?grid(-\d+)?\.png")
_IMAGES = re.compile(r"(.*/)?p\d{4,}-s\d{5,}(-\d+)?\.png")


def image_name(line: int, seed: int) -> str:
    """Of the image of prompt number `line`, from 0, and a seed."""
    return f"p{line:04d}-s{seed:05d}.png"


def sheets(names: Collection[str]) -> set[str]:
    """Those of the paths, with slashes, that are sheets: beside them lie images so named."""
    folders = {found[1] for name in names if (found := _IMAGES.fullmatch(name))}
    return {name for name in names if (of := _SHEETS.fullmatch(name)) and of[1] in folders}


def save_png(image: Tensor, path: Path) -> None:
    """Write one image, uint8 of shape (3, height, width), atomically.

    A video, (frames, 3, height, width), is an animated PNG without loss. Before its frames stands
    the middle one: what shows no animation, and reads a file as an image, takes that.
    """
    rows = image.movedim(-3, -1).numpy()
    if image.ndim == 3:
        _save(Image.fromarray(rows), path)
        return
    frames = [Image.fromarray(row) for row in rows]
    still = Image.fromarray(rows[len(rows) // 2])
    moving = {"save_all": True, "default_image": True, "append_images": frames}
    _save(still, path, **moving, duration=1000 / RATE, loop=0)


def keep_png(image: Tensor, path: Path) -> Path:
    """As `save_png`, but what is there stays: a name that another image has is counted up.

    Return where the image lies: at `path`, or the first of name-2, name-3, … that is free or has
    this very content.
    """
    return keeping(path, lambda temporary: save_png(image, temporary))


def keeping(path: Path, write: Callable[[Path], object]) -> Path:
    """Have a PNG file written that takes the place of no other content; as `keep_png`."""
    temporary = path.with_name(f"{beginning_of_part(path)}{secrets.token_hex(4)}.new")
    try:
        write(temporary)
        numbered = (path.with_stem(f"{path.stem}-{k}") for k in itertools.count(2))
        return next(at for at in itertools.chain([path], numbered) if _lies_at(at, temporary))
    finally:
        temporary.unlink(missing_ok=True)


def _lies_at(path: Path, temporary: Path) -> bool:
    """Put the file at `path`, unless another one is there; whether its content is there now."""
    if not path.exists():
        try:
            os.link(temporary, path)  # of two processes one gets the name
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.replace(temporary, path)
            return True
    return path.is_file() and path.read_bytes() == temporary.read_bytes()


def save_sheet(
    images: Tensor,
    path: Path,
    columns: int | None = None,
    labels: Sequence[str] = (),
    captions: Sequence[str] = (),
) -> None:
    """Write a sheet of images (n, 3, height, width), row by row.

    `labels` name the rows and `captions` stand above the columns. Images below 64 pixels are
    enlarged by whole factors, so that a sheet can be looked at.
    """
    columns = columns or ceil(sqrt(len(images)))
    count, _, height, width = images.shape
    rows = ceil(count / columns)
    gap = 2
    sheet = torch.full((3, rows * (height + gap), columns * (width + gap)), 255, dtype=torch.uint8)
    for k, image in enumerate(images):
        top, left = k // columns * (height + gap), k % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    picture = Image.fromarray(sheet.permute(1, 2, 0).numpy())
    factor = max(1, 64 // max(height, width))
    larger = (picture.width * factor, picture.height * factor)
    picture = picture.resize(larger, Image.Resampling.NEAREST)
    wide, high = (width + gap) * factor, (height + gap) * factor  # of one image
    measure = ImageDraw.Draw(picture)
    margin = 8 + max(int(measure.textlength(label)) for label in labels) if labels else 0
    wrapped = ["\n".join(textwrap.wrap(text, max(4, wide // 6))) for text in captions]
    above = 4 + max(int(measure.multiline_textbbox((0, 0), text)[3]) for text in wrapped or [""])
    whole = Image.new("RGB", (picture.width + margin, picture.height + above), "white")
    whole.paste(picture, (margin, above))
    draw = ImageDraw.Draw(whole)
    for row, label in enumerate(labels):
        draw.text((4, above + (row + 0.5) * high - 6), label, fill="black")
    for column, text in enumerate(wrapped):
        draw.multiline_text((margin + column * wide, 2), text, fill="black")
    _save(whole if labels or captions else picture, path)


def _save(picture: Image.Image, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{beginning_of_part(path)}{secrets.token_hex(4)}.part")
    picture.save(temporary, "PNG", **options)
    os.replace(temporary, path)
