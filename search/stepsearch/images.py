"""Sets of image files: a folder or a zip, read as uint8 batches, with one clear sentence if not."""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stepsampler.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CONVERTED_MODES = ("1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr")  # to RGB, and counted
NAMED = 5  # broken files that an error names

# crop:      the largest centred square, resized to the wanted size (aspect ratio kept)
# squash512: the whole image resized to 512 x 512, whatever its shape; bicubic
# none:      as it is
Fit = Literal["crop", "squash512", "none"]


@dataclass
class ImageFiles:
    """Image files of a folder (with its subfolders) or of a zip, in the order of their names."""

    source: Path
    names: list[str]
    converted: set[str] = field(default_factory=set)  # files that were not RGB, once read

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

    @property
    def note(self) -> str:
        """How many of the images read so far were made RGB; empty if none."""
        if not self.converted:
            return ""
        return f"{self.source}: {len(self.converted)} of {len(self.names)} images were not RGB"

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
                row = self._read(name, data, size, fit)
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
            listed = ", ".join(broken[:NAMED]) + (", …" if len(broken) > NAMED else "")
            raise UserError(
                f"{self.source}: {len(broken)} of {len(chosen)} files cannot be read as images: "
                f"{listed}"
            )
        if rows:
            yield torch.stack(rows)

    def _read(self, name: str, data: bytes, size: int | None, fit: Fit) -> Tensor:
        from PIL import Image, ImageOps

        try:
            opened = Image.open(io.BytesIO(data))
        except Image.DecompressionBombError as error:
            raise ValueError(str(error)) from error
        with opened:
            opened.load()
            if opened.mode != "RGB":
                if opened.mode not in CONVERTED_MODES:
                    raise ValueError(f"mode {opened.mode}")
                self.converted.add(name)
            image = opened.convert("RGB")
        if fit == "squash512":
            image = image.resize((512, 512), Image.Resampling.BICUBIC)
        elif fit == "crop" and size is not None:
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

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
