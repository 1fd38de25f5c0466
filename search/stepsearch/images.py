"""Sets of image files: a folder or a zip, read as uint8 batches, with one clear sentence if not."""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stepsampler.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CONVERTED_MODES = ("1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr")  # to RGB, and named
NAMED = 5  # files that an error or a note names

# crop:      the largest centred square, resized to the wanted size (aspect ratio kept)
# squash512: the whole image resized to 512 x 512, whatever its shape; bicubic
# none:      as it is
Fit = Literal["crop", "squash512", "none"]


@dataclass
class ImageFiles:
    """Image files of a folder (with its subfolders) or of a zip, in the order of their names."""

    source: Path
    names: list[str]

    @classmethod
    def find(cls, source: Path) -> "ImageFiles":
        """List the image files of a folder or zip.

        Raises:
            UserError: neither of them, or no image in it.
        """
        if source.is_dir():
            paths = (p for p in source.rglob("*") if p.is_file())
            names = [p.relative_to(source).as_posix() for p in paths]
        elif zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                names = [n for n in archive.namelist() if not n.startswith("__MACOSX/")]
        else:
            raise UserError(f"{source}: neither a folder of images nor a zip of them")
        names = sorted(n for n in names if n.lower().endswith(SUFFIXES))
        if not names:
            raise UserError(f"{source}: no images in it ({', '.join(SUFFIXES)})")
        return cls(source, names)

    def digest(self) -> str:
        """Of the content of the files, whatever their names and their folder."""
        key = hashlib.sha256()
        for _, data in self._bytes(self.names):
            key.update(hashlib.sha256(data).digest())
        return key.hexdigest()

    @cached_property
    def note(self) -> str:
        """How many of the images are not RGB and are made so, and the first ones; empty if none.

        From the heads of the files, so that it is the same where their features are recalled.
        """
        converted = [name for name, mode in self._modes() if mode in CONVERTED_MODES]
        if not converted:
            return ""
        count = f"{len(converted)} of {len(self.names)}"
        return f"{self.source}: {count} images were not RGB: {_listed(converted)}"

    def batches(
        self,
        size: int | None = None,
        fit: Fit = "crop",
        batch: int = 50,
        names: range | None = None,
    ) -> Iterator[Tensor]:
        """Images as uint8 batches (n, 3, height, width); `names` takes a range of the files.

        Without a size nothing is resized and all images must be of one size, except under "none",
        which yields a batch of its own for every run of equal sizes.

        Raises:
            UserError: files that cannot be read, counted and named; or images of mixed sizes.
        """
        chosen = self.names if names is None else self.names[names.start : names.stop]
        rows: list[Tensor] = []
        first: tuple[str, Tensor] | None = None
        broken: list[str] = []
        for name, data in self._bytes(chosen):
            try:
                row = _read(data, size, fit)
            except (OSError, ValueError, SyntaxError):
                broken.append(name)
                continue
            first = first or (name, row)
            if fit != "none" and row.shape != first[1].shape:
                raise UserError(
                    f"{self.source}: images must be of one size, but {first[0]} is "
                    f"{_size(first[1])} and {name} is {_size(row)}; give a size to crop them to"
                )
            if rows and (len(rows) == batch or rows[0].shape != row.shape):
                if not broken:
                    yield torch.stack(rows)
                rows = []
            rows.append(row)
        if broken:
            raise UserError(
                f"{self.source}: {len(broken)} of {len(chosen)} files cannot be read as images: "
                f"{_listed(broken)}"
            )
        if rows:
            yield torch.stack(rows)

    def _modes(self) -> Iterator[tuple[str, str]]:
        """Of the files that are images."""
        from PIL import Image

        broken = (OSError, ValueError, SyntaxError, RuntimeError, zlib.error)
        archive = None if self.source.is_dir() else zipfile.ZipFile(self.source)
        with archive or nullcontext():
            for name in self.names:
                try:
                    with archive.open(name) if archive else (self.source / name).open("rb") as file:
                        yield name, Image.open(file).mode
                except (*broken, zipfile.BadZipFile, Image.DecompressionBombError):
                    continue  # refused by name where it is read

    def _bytes(self, names: list[str]) -> Iterator[tuple[str, bytes]]:
        if self.source.is_dir():
            for name in names:
                yield name, (self.source / name).read_bytes()
            return
        with zipfile.ZipFile(self.source) as archive:
            for name in names:
                try:
                    yield name, archive.read(name)
                except (zipfile.BadZipFile, zlib.error, RuntimeError):  # damaged or encrypted
                    yield name, b""  # no image either, and named as such


def _size(image: Tensor) -> str:
    return f"{image.shape[2]} x {image.shape[1]}"


def _read(data: bytes, size: int | None, fit: Fit) -> Tensor:
    from PIL import Image, ImageOps

    try:
        opened = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    with opened:
        opened.load()
        if opened.mode not in ("RGB", *CONVERTED_MODES):
            raise ValueError(f"mode {opened.mode}")
        image = opened.convert("RGB")
    if fit == "squash512":
        image = image.resize((512, 512), Image.Resampling.BICUBIC)
    elif fit == "crop" and size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
