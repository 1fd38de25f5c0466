"""Sets of image files: a folder or a zip, read as uint8 batches, with one clear sentence if not."""

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stepsampler.batch import LEFT_OUT as NOT_MADE
from stepsampler.batch import MANIFEST, read_left_out
from stepsampler.errors import UserError
from stepsampler.support.sizes import Size
from stepsearch.metrics.pixels import (
    CONVERTED_MODES,
    Exif,
    Fit,
    Head,
    UnreadableError,
    read_head,
    read_pixels,
)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
# Pictures too, but not read: named, so that nobody believes that they count.
LEFT_OUT = (".gif", ".jfif", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".tga", ".exr", ".npy")
NAMED = 5  # files that a note names
TURNED = {
    "apply": "were turned as their EXIF says",
    "ignore": "were not turned as their EXIF says (--exif ignore)",
}
REFUSED = 20  # and an error, each with its reason
# What files and zips raise that are damaged, encrypted or away
BROKEN = (OSError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile)


@dataclass
class ImageFiles:
    """Image files of a folder (with its subfolders) or of a zip, in the order of their names."""

    source: Path
    names: list[str]
    left_out: Sequence[str] = ()  # pictures of a kind that is not read
    total: int = 0  # of those that these were chosen of
    drawn: bool = False  # rather than the first by name
    exif: Exif = "apply"

    @classmethod
    def find(cls, source: Path, exif: Exif = "apply") -> "ImageFiles":
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
                    names = archive.namelist()
            except BROKEN as error:
                raise UserError(f"{source}: a damaged zip ({error})") from error
        else:
            raise UserError(f"{source}: neither a folder of images nor a zip of them")
        names.sort()
        pictures = [n for n in names if n.lower().endswith((*SUFFIXES, *LEFT_OUT))]
        read = [n for n in pictures if n.lower().endswith(SUFFIXES) and not _of_macos(n)]
        left_out = sorted(set(pictures) - set(read))
        if not read:
            others = f"; not read are {_listed(left_out)}" if left_out else ""
            raise UserError(f"{source}: no images in it ({', '.join(SUFFIXES)}){others}")
        return cls(source, read, left_out, exif=exif)

    def chosen(self, n: int) -> "ImageFiles":
        """n of them in the order in which they are measured.

        Drawn, as a folder may be sorted by class, while blocks and parts of the images must be as
        the whole; by the number of files alone, so that folders of as many files pair. A folder of
        `stepsample batch` is in turn of its prompts already.
        """
        total, drawn = len(self.names), not (self.source / MANIFEST).is_file()
        order = np.random.default_rng(0).permutation(total) if drawn else range(total)
        names = [self.names[i] for i in order[:n]]
        return ImageFiles(self.source, names, self.left_out, total, drawn, self.exif)

    def digest(self) -> str:
        """Of the content of the files, whatever their names and their folder."""
        key = hashlib.sha256()
        for _, data, _ in self._bytes(self.names):
            key.update(hashlib.sha256(data).digest())
        return key.hexdigest()

    @cached_property
    def note(self) -> str:
        """Which of the images these are, how many are not as one expects, and what is left out;
        mostly empty.

        From the heads of the files, so that it is the same where their features are recalled.
        """
        said = []
        if len(self.names) < self.total:
            how = "drawn" if self.drawn else "the first"
            said.append(f"{len(self.names)} of {self.total} images, {how}")
        for names, what in (
            ([head.name for head in self.heads if head.mode in CONVERTED_MODES], "were not RGB"),
            ([head.name for head in self.heads if head.turned], TURNED[self.exif]),
            (
                [head.name for head in self.heads if head.several],
                "have more frames or pages than the first, which is read",
            ),
        ):
            if names:
                said.append(f"{len(names)} of {len(self.names)} images {what}: {_listed(names)}")
        if self.left_out:
            count = f"{len(self.left_out)} file{'s' * (len(self.left_out) > 1)}"
            what = "of other kinds, or that macOS added"
            said.append(f"without {count} {what}: {_listed(self.left_out)}")
        if lost := read_left_out(self.source):
            said.append(f"{len(lost)} captions have no image ({NOT_MADE})")
        return f"{self.source}: {'; '.join(said)}" if said else ""

    @cached_property
    def preparation(self) -> str:
        """What `exif` changes of these images; empty where none is turned, or none was to be."""
        return "exif" if self.exif == "apply" and any(h.turned for h in self.heads) else ""

    @cached_property
    def heads(self) -> list[Head]:
        """Of the files that are images, as far as their heads tell."""
        found = []
        archive = None if self.source.is_dir() else zipfile.ZipFile(self.source)
        with archive or nullcontext():
            for name in self.names:
                try:
                    with archive.open(name) if archive else (self.source / name).open("rb") as file:
                        found.append(read_head(name, file, self.exif))
                except (*BROKEN, UnreadableError):
                    continue
        return found

    def check(self, size: Size | None = None, fit: Fit = "crop") -> None:
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
        size: Size | None = None,
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
        for _, data, why in self._bytes(chosen):
            try:
                if why:
                    raise UnreadableError(why)
                row = read_pixels(data, size, fit, self.exif)
            except UnreadableError:
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
        for name, data, why in self._bytes(self.names):
            try:
                if why:
                    raise UnreadableError(why)
                read_pixels(data, None, "none", self.exif)
            except UnreadableError as error:
                broken.append(f"{name} ({error})")
        count = f"{len(broken)} of {len(self.names)}"
        return UserError(
            f"{self.source}: {count} files cannot be read as images: {_listed(broken, REFUSED)}"
        )

    def _bytes(self, names: list[str]) -> Iterator[tuple[str, bytes, str]]:
        """Name, content, and why there is none."""
        archive = None if self.source.is_dir() else zipfile.ZipFile(self.source)
        with archive or nullcontext():
            for name in names:
                data, why = b"", ""
                try:
                    data = archive.read(name) if archive else (self.source / name).read_bytes()
                except OSError as error:
                    why = error.strerror or "not to be read"
                except BROKEN:
                    why = "damaged in the zip, or encrypted"
                yield name, data, why


def _of_macos(name: str) -> bool:
    """What macOS puts beside files in archives and on foreign disks, under the names of images."""
    *folders, last = name.split("/")
    return last.startswith("._") or "__MACOSX" in folders


def _size(head: Head) -> str:
    return f"{head.size[0]} x {head.size[1]}"


def _listed(names: Sequence[str], most: int = NAMED) -> str:
    return ", ".join(sorted(names)[:most]) + (", …" if len(names) > most else "")
