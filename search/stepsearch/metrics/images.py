"""Sets of image files: a folder or a zip, read as uint8 batches, with one clear sentence if not."""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stepsampler.batch import MANIFEST
from stepsampler.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
# Pictures too, but not read: named, so that nobody believes that they count.
LEFT_OUT = (".gif", ".jfif", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".tga", ".exr", ".npy")
CONVERTED_MODES = ("1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr")  # to RGB, and named
NAMED = 5  # files that an error or a note names
# What files raise that are damaged, encrypted, away, or no images
BROKEN = (OSError, ValueError, SyntaxError, RuntimeError, zlib.error, zipfile.BadZipFile)

# crop:      the largest centred square, resized to the wanted size (aspect ratio kept)
# squash512: the whole image resized to 512 x 512, whatever its shape; bicubic
# none:      as it is
Fit = Literal["crop", "squash512", "none"]


class Head(NamedTuple):
    """What an image file says of itself before its pixels."""

    name: str
    mode: str
    size: tuple[int, int]  # width, height


@dataclass
class ImageFiles:
    """Image files of a folder (with its subfolders) or of a zip, in the order of their names."""

    source: Path
    names: list[str]
    left_out: Sequence[str] = ()  # pictures of a kind that is not read
    total: int = 0  # of those that these were chosen of
    drawn: bool = False  # rather than the first by name

    @classmethod
    def find(cls, source: Path) -> "ImageFiles":
        """List the image files of a folder or zip.

        Raises:
            UserError: neither of them, or no image in it.
        """
        if source.is_dir():
            # What does not exist is a link to nowhere: to be named, not to be skipped.
            paths = (p for p in source.rglob("*") if p.is_file() or not p.exists())
            names = [p.relative_to(source).as_posix() for p in paths]
        elif zipfile.is_zipfile(source):
            try:
                with zipfile.ZipFile(source) as archive:
                    names = [n for n in archive.namelist() if not n.startswith("__MACOSX/")]
            except BROKEN as error:
                raise UserError(f"{source}: a damaged zip ({error})") from error
        else:
            raise UserError(f"{source}: neither a folder of images nor a zip of them")
        names.sort()
        read, left_out = (
            [n for n in names if n.lower().endswith(suffixes)] for suffixes in (SUFFIXES, LEFT_OUT)
        )
        if not read:
            others = f"; not read are {_listed(left_out)}" if left_out else ""
            raise UserError(f"{source}: no images in it ({', '.join(SUFFIXES)}){others}")
        return cls(source, read, left_out)

    def chosen(self, n: int) -> "ImageFiles":
        """n of them in the order in which they are measured.

        Drawn, as a folder may be sorted by class, while blocks and parts of the images must be as
        the whole; by the number of files alone, so that folders of as many files pair. A folder of
        `stepsample batch` is in turn of its prompts already.
        """
        total, drawn = len(self.names), not (self.source / MANIFEST).is_file()
        order = np.random.default_rng(0).permutation(total) if drawn else range(total)
        names = [self.names[i] for i in order[:n]]
        return ImageFiles(self.source, names, self.left_out, total, drawn)

    def digest(self) -> str:
        """Of the content of the files, whatever their names and their folder."""
        key = hashlib.sha256()
        for _, data in self._bytes(self.names):
            key.update(hashlib.sha256(data).digest())
        return key.hexdigest()

    @cached_property
    def note(self) -> str:
        """Which of the images these are, how many are not RGB and are made so, and what is left
        out; mostly empty.

        From the heads of the files, so that it is the same where their features are recalled.
        """
        said = []
        if len(self.names) < self.total:
            how = "drawn" if self.drawn else "the first"
            said.append(f"{len(self.names)} of {self.total} images, {how}")
        converted = [head.name for head in self.heads if head.mode in CONVERTED_MODES]
        if converted:
            count = f"{len(converted)} of {len(self.names)}"
            said.append(f"{count} images were not RGB: {_listed(converted)}")
        if self.left_out:
            kinds = f"{len(self.left_out)} files of kinds that are not read"
            said.append(f"without {kinds}: {_listed(self.left_out)}")
        return f"{self.source}: {'; '.join(said)}" if said else ""

    @cached_property
    def heads(self) -> list[Head]:
        """Of the files that are images, as far as their heads tell."""
        found = []
        archive = None if self.source.is_dir() else zipfile.ZipFile(self.source)
        with archive or nullcontext():
            for name in self.names:
                try:
                    with archive.open(name) if archive else (self.source / name).open("rb") as file:
                        image = _open(file)
                        found.append(Head(name, image.mode, image.size))
                except BROKEN:
                    continue
        return found

    def check(self, size: int | None = None, fit: Fit = "crop") -> None:
        """Look at all files before the first is used: at their heads, which is quick.

        Raises:
            UserError: files that cannot be read, counted and named; or images of mixed sizes
                where nothing brings them to one.
        """
        if len(self.heads) < len(self.names):
            raise self._unreadable()
        if fit == "crop" and size is None:
            first, *others = sorted(self.heads)
            for head in others:
                if head.size != first.size:
                    raise UserError(
                        f"{self.source}: images must be of one size, but {first.name} is "
                        f"{_size(first)} and {head.name} is {_size(head)}; give a size to crop "
                        "them to"
                    )

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
            UserError: as `check` does, and files that are broken behind their heads; whatever the
                range, all that are broken are counted.
        """
        self.check(size, fit)
        chosen = self.names if names is None else self.names[names.start : names.stop]
        rows: list[Tensor] = []
        for _, data in self._bytes(chosen):
            try:
                row = _read(data, size, fit)
            except BROKEN:
                raise self._unreadable() from None
            if rows and (len(rows) == batch or rows[0].shape != row.shape):
                yield torch.stack(rows)
                rows = []
            rows.append(row)
        if rows:
            yield torch.stack(rows)

    def _unreadable(self) -> UserError:
        """Decodes every file: slow, but then one try shows all that are broken."""
        broken = []
        for name, data in self._bytes(self.names):
            try:
                _read(data, None, "none")
            except BROKEN:
                broken.append(name)
        count = f"{len(broken)} of {len(self.names)}"
        return UserError(
            f"{self.source}: {count} files cannot be read as images: {_listed(broken)}"
        )

    def _bytes(self, names: list[str]) -> Iterator[tuple[str, bytes]]:
        """Nothing of a file that cannot be read: no image either, and named as such."""
        archive = None if self.source.is_dir() else zipfile.ZipFile(self.source)
        with archive or nullcontext():
            for name in names:
                try:
                    data = archive.read(name) if archive else (self.source / name).read_bytes()
                except BROKEN:
                    data = b""
                yield name, data


def _size(head: Head) -> str:
    return f"{head.size[0]} x {head.size[1]}"


def _open(file: IO[bytes]) -> Any:
    """An image of PIL with its head alone read.

    Raises:
        ValueError: too large, or of a mode that does not become RGB without loss.
    """
    from PIL import Image

    try:
        image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    if image.mode not in ("RGB", *CONVERTED_MODES):
        raise ValueError(f"mode {image.mode}")
    return image


def _read(data: bytes, size: int | None, fit: Fit) -> Tensor:
    from PIL import Image, ImageOps

    with _open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
    if fit == "squash512":
        image = image.resize((512, 512), Image.Resampling.BICUBIC)
    elif fit == "crop" and size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:NAMED]) + (", …" if len(names) > NAMED else "")
