"""The images of a folder that are as large as they are wanted, each with its text."""

import hashlib
import io
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from stepsampler.errors import UserError, counted, note
from stepsampler.support.images.pixels import (
    SUFFIXES,
    UnreadableError,
    check_bytes,
    read_head,
    read_pixels,
)
from stepsampler.support.sizes import Size, sides

NAMED = 20  # refused files that a note names


class Picture(NamedTuple):
    """A file, the text beside it (`name.txt` of `name.png`; empty without), and its digest."""

    path: Path
    text: str
    digest: str


class Pictures(NamedTuple):
    """Those of a folder by name, at most as many as are wanted, and the refused among them."""

    found: list[Picture]
    refused: list[str]  # name (reason)

    def pixels(self, places: range, size: Size) -> Tensor:
        """uint8 (n, 3, height, width), the centred part of the shape; those after the last are the
        first again."""
        paths = [self.found[k % len(self.found)].path for k in places]
        rows = [read_pixels(path.read_bytes(), size, "crop", "apply") for path in paths]
        return torch.stack(rows)

    @classmethod
    def read(cls, folder: Path, size: Size, most: int) -> "Pictures":
        """Look at the images of a folder, not of its subfolders, until there are `most`.

        Each is decoded once, so that none fails later. What is refused is told on stderr.

        Raises:
            UserError: no folder, or no image in it that can be taken.
        """
        if not folder.is_dir():
            raise UserError(f"{folder}: no folder of images")
        paths = sorted(p for p in folder.iterdir() if p.name.lower().endswith(SUFFIXES))
        found: list[Picture] = []
        refused: list[str] = []
        for path in (p for p in paths if not p.name.startswith(".")):
            if len(found) == most:
                break
            try:
                digest = _checked(path, size)
                text = path.with_suffix(".txt")
                words = text.read_text(encoding="utf-8-sig") if text.is_file() else ""
            except (UnreadableError, OSError, UnicodeError) as error:
                why = getattr(error, "strerror", None) or error
                refused.append(f"{path.name} ({why})")
                continue
            found.append(Picture(path, " ".join(words.split()), digest))
        listed = ", ".join(refused[:NAMED]) + (", …" if len(refused) > NAMED else "")
        if not found:
            why = f": {listed}" if refused else f" ({', '.join(SUFFIXES)})"
            raise UserError(f"{folder}: no image that can be taken{why}")
        if refused:
            note(f"{folder}: left out are {counted(len(refused), 'file')}: {listed}")
        return cls(found, refused)


def _checked(path: Path, size: Size) -> str:
    """
    Raises:
        UnreadableError: it cannot be read, or is smaller than wanted: enlarged it is blurred.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UnreadableError("no file")
    check_bytes(path.stat().st_size)
    data = path.read_bytes()
    width, height = read_head(path.name, io.BytesIO(data), "apply").size
    wide, high = sides(size)
    if width < wide or height < high:
        raise UnreadableError(f"{width} x {height}, smaller than {wide} x {high}")
    read_pixels(data, size, "crop", "apply")
    return hashlib.sha256(data).hexdigest()
