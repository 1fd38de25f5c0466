"""One image file -> its head or its pixels, or the reason why it has none."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stepsampler.support.sizes import Size, sides

# crop:      the largest centred part of the wanted shape, resized to the wanted size
# squash512: the whole image resized to 512 x 512, whatever its shape; bicubic
# none:      as it is
Fit = Literal["crop", "squash512", "none"]
Exif = Literal["apply", "ignore"]  # whether images are turned as their EXIF orientation says

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".avif"),
    *(".bmp", ".tif", ".tiff", ".ppm", ".pgm"),
)
CONVERTED_MODES = ("1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr")  # to RGB, and named
PNG = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # chunks that change no pixel as we read them
# What stands in a PNG that may have an orientation; in other kinds PIL finds it in the head.
TURNED_PNG = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type")
ORIENTATION = 0x0112
BITS_PER_SAMPLE = 258  # tag of a TIFF
DEPTH = 24  # place of a PNG's bits a channel
SRGB = (b"sRGB", "sRGB".encode("utf-16-be"))  # in the description of a profile
LARGEST = 2**29  # bytes of a file, unpacked: those of RGB with as many pixels as PIL takes at most
SHOWN = 24  # bytes of a file that is no image


class UnreadableError(Exception):
    """An image file that cannot be read; the text is the reason, in a few words."""


class Head(NamedTuple):
    """What an image file says of itself before its pixels."""

    name: str
    mode: str
    size: tuple[int, int]  # width, height, after any turn
    turned: bool  # its EXIF says that it is to be turned or mirrored
    several: bool  # frames or pages, of which the first is read
    deep: bool = False  # more than 8 bits a channel, of which the upper 8 are read
    profile: bool = False  # of colours other than sRGB, which is not applied


def check_bytes(size: int) -> None:
    """Refuse what would fill the memory, as a zip of a few MB can hold.

    Raises:
        UnreadableError: a file of more than `LARGEST` bytes.
    """
    if size > LARGEST:
        raise UnreadableError(f"{size:,} bytes, more than {LARGEST:,}")


def read_head(name: str, file: IO[bytes], exif: Exif) -> Head:
    """
    Raises:
        UnreadableError: as far as the head tells.
    """
    start = file.read(len(PNG))
    with warnings.catch_warnings(action="ignore"):
        if start == PNG:
            data = start + file.read(LARGEST)  # a zip may say less than it unpacks to
            image = _loaded(data, whole=any(tag in data for tag in TURNED_PNG))
            told = image.info.get("exif") or image.info.keys() & _TEXT_KEYS
            turn = _turn(image) if told else None
            deep = data[DEPTH] > 8
        else:
            file.seek(0)
            image = _open(file)
            turn = _turn(image)
            tags = getattr(image, "tag_v2", {})
            deep = max(tags.get(BITS_PER_SAMPLE, (8,))) > 8
    width, height = image.size
    if exif == "apply" and turn is not None and _swaps(turn):
        width, height = height, width
    # A JPEG of a camera may hold a second, small one (MPO): that is no animation.
    several = getattr(image, "is_animated", False) and image.format != "MPO"
    profile = image.info.get("icc_profile") or b""
    other = bool(profile) and not any(mark in profile for mark in SRGB)
    return Head(name, image.mode, (width, height), turn is not None, several, deep, other)


def read_pixels(data: bytes, size: Size | None, fit: Fit, exif: Exif) -> Tensor:
    """uint8 (3, height, width), brought to `size` as `fit` says.

    Raises:
        UnreadableError: no image, a damaged one, or one that does not become RGB without loss.
    """
    from PIL import Image, ImageOps

    with warnings.catch_warnings(action="ignore"):
        image = _loaded(data)
        turn = _turn(image) if exif == "apply" else None
        if turn is not None:
            image = image.transpose(turn)
        image = image.convert("RGB")
    if fit == "squash512":
        image = image.resize((512, 512), Image.Resampling.BICUBIC)
    elif fit == "crop" and size is not None:
        image = ImageOps.fit(image, sides(size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


_TEXT_KEYS = {"XML:com.adobe.xmp", "Raw profile type exif"}  # where PIL looks for EXIF too


def _loaded(data: bytes, whole: bool = True) -> Any:
    """An image of PIL with its pixels read, or (not `whole`) its head alone.

    PIL refuses a PNG for a text or a colour profile of more than 1 MB, such as the workflow in an
    image of ComfyUI: it is tried again without those. PIL's limits, which guard the memory, stay.
    """
    if not data:
        raise UnreadableError("empty")
    try:
        image = _open(io.BytesIO(data))
        if whole:
            image.load()
    except ValueError as error:
        smaller = _without_large_texts(data)
        if len(smaller) == len(data):
            raise UnreadableError("damaged or cut off") from error
        return _loaded(smaller, whole)
    except UnreadableError:
        raise
    except Exception as error:  # whatever PIL's readers of so many kinds raise
        raise UnreadableError("damaged or cut off") from error
    return image


def _open(file: IO[bytes]) -> Any:
    """
    Raises:
        ValueError: PIL finds a part too large.
        UnreadableError: all else.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(file)
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UnreadableError(f"more than {most:,} pixels, too large to be safe") from error
    except UnidentifiedImageError as error:
        file.seek(0)
        begin = file.read(SHOWN)
        raise UnreadableError(f"no image, begins with {begin!r}" if begin else "empty") from error
    except ValueError:
        raise
    except Exception as error:
        raise UnreadableError("damaged or cut off") from error
    if image.mode not in ("RGB", *CONVERTED_MODES):
        raise UnreadableError(f"mode {image.mode}, more than 8 bits a channel or no colours")
    return image


def _turn(image: Any) -> Any:
    """How PIL is to transpose an image by its EXIF; None: as it is, or the EXIF is damaged.

    A TIFF is turned by PIL itself as it is read: there the orientation is part of the format.
    """
    from PIL.Image import Transpose

    if image.format == "TIFF":
        return None
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        with warnings.catch_warnings(action="ignore"):
            return turns.get(image.getexif().get(ORIENTATION))
    except Exception:  # EXIF of cameras breaks in many ways; viewers show such images as they are
        return None


def _swaps(turn: Any) -> bool:
    """Width and height."""
    from PIL.Image import Transpose

    return turn in (
        Transpose.TRANSPOSE,
        Transpose.ROTATE_270,
        Transpose.TRANSVERSE,
        Transpose.ROTATE_90,
    )


def _without_large_texts(data: bytes) -> bytes:
    """A PNG without the texts and profiles that PIL finds too large; other data as they are."""
    from PIL import PngImagePlugin

    if not data.startswith(PNG):
        return data
    kept, total = [PNG], 0
    for kind, chunk in _chunks(data):
        if kind in TEXTS:
            length = _unpacked(kind, chunk[8:-4], PngImagePlugin.MAX_TEXT_CHUNK)
            total += length
            if length > PngImagePlugin.MAX_TEXT_CHUNK or total > PngImagePlugin.MAX_TEXT_MEMORY:
                continue
        kept.append(chunk)
    return b"".join(kept)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and whole of each chunk of a PNG."""
    at = len(PNG)
    while at + 8 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        yield data[at + 4 : at + 8], data[at : at + 12 + length]
        at += 12 + length


def _unpacked(kind: bytes, body: bytes, most: int) -> int:
    """Bytes of a text or profile; of more than `most`, some number above it."""
    rest = body.partition(b"\0")[2]
    if kind == b"tEXt":
        return len(rest)
    if kind == b"iTXt":
        flags, rest = rest[:2], rest[2:].split(b"\0", 2)[-1]
        if flags[:1] != b"\1":
            return len(rest)
    else:
        rest = rest[1:]  # the method of compression
    try:
        return len(zlib.decompressobj().decompress(rest, most + 1))
    except zlib.error:
        return 0
