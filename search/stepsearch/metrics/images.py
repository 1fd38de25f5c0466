"""Sets of image files: a folder or a zip, read as uint8 batches, with one clear sentence if not."""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stepsampler.batch import LEFT_OUT as NOT_MADE
from stepsampler.batch import MANIFEST, read_left_out
from stepsampler.errors import UserError, counted
from stepsampler.support.images.pixels import (
    CONVERTED_MODES,
    SUFFIXES,
    Exif,
    Fit,
    Head,
    UnreadableError,
    check_bytes,
    read_head,
    read_pixels,
)
from stepsampler.support.pictures import sheets
from stepsampler.support.sizes import Size

# Pictures too, but not read: named, so that nobody believes that they count.
LEFT_OUT = (".gif", ".heic", ".heif", ".jxl", ".jp2", ".tga", ".qoi", ".exr", ".npy")
# Folders that systems put among images, under their names
SYSTEMS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found")
NAMED = 5  # files that a note names
TURNED = {
    "apply": "were turned as their EXIF says",
    "ignore": "were not turned as their EXIF says (--exif ignore)",
}
REFUSED = 20  # and an error, each with its reason
# What files and zips raise that are damaged, encrypted or away
BROKEN = (OSError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile)


class BrokenFilesError(UserError):
    """Files that cannot be read as images; the others can."""

    def __init__(self, text: str, source: Path, broken: dict[str, str]) -> None:
        super().__init__(text)
        self.source, self.broken = source, broken


@dataclass
class ImageFiles:
    """Image files of a folder (with its subfolders) or of a zip, in the order of their names.

    `names` may be those that are `broken` too, until files are chosen.
    """

    source: Path
    names: list[str]
    left_out: Sequence[str] = ()  # pictures that are not read, and why is in `note`
    total: int = 0  # of those that these were chosen of
    drawn: bool = False  # rather than the first by name
    exif: Exif = "apply"
    broken: dict[str, str] = field(default_factory=dict)  # what is known of them: name, reason
    repeated: int = 0  # names that a zip has several times

    @classmethod
    def find(cls, source: Path, exif: Exif = "apply") -> "ImageFiles":
        """List the image files of a folder or zip.

        Raises:
            UserError: neither of them, or no image in it.
        """
        if source.is_dir():
            names = list(_within(source))
        elif zipfile.is_zipfile(source):
            try:
                with zipfile.ZipFile(source) as archive:
                    names = archive.namelist()
            except BROKEN as error:
                raise UserError(f"{source}: a damaged zip ({error})") from error
        elif source.suffix.lower() == ".zip":
            raise UserError(f"{source}: not a whole zip: cut off, or of another kind")
        else:
            raise UserError(f"{source}: neither a folder of images nor a zip of them")
        every = len(names)
        names = sorted(set(names))
        pictures = [n for n in names if n.lower().endswith((*SUFFIXES, *LEFT_OUT))]
        aside = {n for n in pictures if not n.lower().endswith(SUFFIXES) or _aside(n)}
        left_out = sorted(aside | sheets(pictures))
        read = sorted(set(pictures) - set(left_out))
        if not read:
            others = f"; not read are {_listed(left_out)}" if left_out else ""
            raise UserError(f"{source}: no images in it ({', '.join(SUFFIXES)}){others}")
        return cls(source, read, left_out, exif=exif, repeated=every - len(names))

    @classmethod
    def readable(
        cls, source: Path, n: int, exif: Exif, broken: Mapping[str, str] | None = None
    ) -> "ImageFiles":
        """The n that are measured; another file in the place of each that cannot be read.

        As far as the heads tell, and as is known of earlier tries (`broken`).

        Raises:
            UserError: as `find`, and fewer than n that can be read.
        """
        found = cls.find(source, exif)
        found.broken = dict(broken or {})
        while True:
            files = found.chosen(n)
            if len(files.names) < n:
                if not found.broken:
                    count = counted(len(files.names), "image")
                    raise UserError(f"{source}: {count}, but {n} are wanted; lower --images")
                every = found.unreadable()
                left = len(found.names) - len(every.broken)
                raise UserError(f"{every}; {left} can, but {n} are wanted: lower --images")
            if not files.broken_heads:
                return files
            found.broken |= files.broken_heads

    def without(self, broken: Mapping[str, str]) -> "ImageFiles":
        """These, in their order, but for some that cannot be read."""
        names = [name for name in self.names if name not in broken]
        return replace(self, names=names, broken={**self.broken, **broken})

    def chosen(self, n: int) -> "ImageFiles":
        """n of them in the order in which they are measured.

        Drawn, as a folder may be sorted by class, while blocks and parts of the images must be as
        the whole; by the number of files alone, so that folders of as many files pair. A folder of
        `stepsample batch` is in turn of its prompts already.
        """
        total, drawn = len(self.names), not (self.source / MANIFEST).is_file()
        order = np.random.default_rng(0).permutation(total) if drawn else range(total)
        every = [self.names[i] for i in order]
        # All but the broken ones keep their places, so that they still pair.
        others = iter([name for name in every[n:] if name not in self.broken])
        names = [next(others, "") if name in self.broken else name for name in every[:n]]
        names = [name for name in names if name]
        return replace(self, names=names, total=total, drawn=drawn)

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
        if len(self.names) < self.total - len(self.broken):
            how = "drawn" if self.drawn else "the first"
            said.append(f"{len(self.names)} of {self.total} images, {how}")
        for names, what in (
            ([head.name for head in self.heads if head.mode in CONVERTED_MODES], "were not RGB"),
            ([head.name for head in self.heads if head.turned], TURNED[self.exif]),
            (
                [head.name for head in self.heads if head.several],
                "have more frames or pages than the first, which is read",
            ),
            (
                [head.name for head in self.heads if head.deep],
                "have more than 8 bits a channel, of which the upper 8 are read",
            ),
            (
                [head.name for head in self.heads if head.profile],
                "have a profile of colours other than sRGB, which is not applied",
            ),
        ):
            if names:
                of = f"{len(names)} of {counted(len(self.names), 'image')}"
                said.append(f"{of} {what}: {_listed(names)}")
        if self.broken:
            count = counted(len(self.broken), "file")
            why = [f"{name} ({reason})" for name, reason in self.broken.items()]
            said.append(f"left out, as unreadable: {count}: {_listed(why, REFUSED)}")
        if self.repeated:
            said.append(
                f"{counted(self.repeated, 'name')} again in the zip, of which the last is read"
            )
        if self.left_out:
            count = counted(len(self.left_out), "file")
            what = "of other kinds, sheets, hidden, or that a system added"
            said.append(f"without {count} {what}: {_listed(self.left_out)}")
        if lost := read_left_out(self.source):
            said.append(f"{counted(len(lost), 'caption')} without an image ({NOT_MADE})")
        return f"{self.source}: {'; '.join(said)}" if said else ""

    @cached_property
    def preparation(self) -> str:
        """What `exif` changes of these images; empty where none is turned, or none was to be."""
        return "exif" if self.exif == "apply" and any(h.turned for h in self.heads) else ""

    @property
    def heads(self) -> list[Head]:
        """Of the files that are images, as far as their heads tell."""
        return self._looked[0]

    @property
    def broken_heads(self) -> dict[str, str]:
        """Of the others the names, with reasons."""
        return self._looked[1]

    @cached_property
    def _looked(self) -> tuple[list[Head], dict[str, str]]:
        found, broken = [], {}
        archive = None if self.source.is_dir() else zipfile.ZipFile(self.source)
        with archive or nullcontext():
            for name in self.names:
                try:
                    check_bytes(self._size(archive, name))
                    with archive.open(name) if archive else (self.source / name).open("rb") as file:
                        found.append(read_head(name, file, self.exif))
                except (*BROKEN, UnreadableError) as error:
                    broken[name] = _reason(error)
        return found, broken

    def check(self, size: Size | None = None, fit: Fit = "crop") -> None:
        """Look at all files before the first is used: at their heads, which is quick.

        Raises:
            UserError: files that cannot be read, counted and named; or images of mixed sizes
                where nothing brings them to one.
        """
        if len(self.heads) < len(self.names):
            raise self.unreadable()
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
                raise self.unreadable() from None
            if rows and (len(rows) == batch or rows[0].shape != row.shape):
                yield torch.stack(rows)
                rows = []
            rows.append(row)
        if rows:
            yield torch.stack(rows)

    def unreadable(self) -> BrokenFilesError:
        """Decodes every file: slow, but then one try shows all that are broken."""
        broken = {}
        for name, data, why in self._bytes(self.names):
            try:
                if why:
                    raise UnreadableError(why)
                read_pixels(data, None, "none", self.exif)
            except UnreadableError as error:
                broken[name] = str(error)
        count = f"{len(broken)} of {counted(len(self.names), 'file')}"
        if self.total > len(self.names):
            count += f", chosen of {self.total:,},"
        why = _listed([f"{name} ({reason})" for name, reason in broken.items()], REFUSED)
        text = f"{self.source}: {count} cannot be read as images: {why}"
        return BrokenFilesError(text, self.source, broken)

    def _bytes(self, names: list[str]) -> Iterator[tuple[str, bytes, str]]:
        """Name, content, and why there is none."""
        archive = None if self.source.is_dir() else zipfile.ZipFile(self.source)
        with archive or nullcontext():
            for name in names:
                data, why = b"", ""
                try:
                    check_bytes(size := self._size(archive, name))
                    if archive:
                        with archive.open(name) as file:
                            data = file.read(size)  # it may say less than it unpacks to
                    else:
                        data = (self.source / name).read_bytes()
                except (*BROKEN, UnreadableError) as error:
                    why = _reason(error)
                yield name, data, why

    def _size(self, archive: zipfile.ZipFile | None, name: str) -> int:
        """Bytes of a file, unpacked."""
        return archive.getinfo(name).file_size if archive else (self.source / name).stat().st_size


def _within(folder: Path) -> Iterator[str]:
    """Files of a folder and its subfolders, links to folders too, each folder once.

    What does not exist is a link to nowhere: to be named, not to be skipped.
    """
    seen = {os.path.realpath(folder)}
    for at, folders, files in os.walk(folder, followlinks=True):
        for name in files:
            path = Path(at, name)
            if path.is_file() or not path.exists():
                yield path.relative_to(folder).as_posix()
        real = {name: os.path.realpath(Path(at, name)) for name in sorted(folders)}
        folders[:] = [name for name, place in real.items() if place not in seen]
        seen |= set(real.values())


def _aside(name: str) -> bool:
    """Hidden, as macOS, editors and notebooks have copies, or in a folder of a system's own."""
    parts = name.replace("\\", "/").split("/")
    return any(part.startswith(".") or part in SYSTEMS for part in parts)


def _reason(error: Exception) -> str:
    if isinstance(error, UnreadableError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "damaged in the zip, or encrypted"


def _size(head: Head) -> str:
    return f"{head.size[0]} x {head.size[1]}"


def _listed(names: Sequence[str], most: int = NAMED) -> str:
    return ", ".join(sorted(names)[:most]) + (", …" if len(names) > most else "")
