"""The size of images in pixels as one value: the side of a square, or WIDTHxHEIGHT."""

import re

from stepsampler.errors import UserError

Size = int | str
WRITTEN = re.compile(r"\s*(\d{1,6})\s*(?:[xX×]\s*(\d{1,6})\s*)?")


def sides(size: Size, name: str = "size") -> tuple[int, int]:
    """Width and height of 512, "512" or "768x1024"; `name` is what a sentence calls it.

    Raises:
        UserError: something else, or a side of no pixels.
    """
    found = WRITTEN.fullmatch(str(size))
    width, height = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not (width and height):
        raise UserError(
            f"{name} must be pixels, at least 1, such as 512 or 768x1024 (width x height), "
            f"got {size!r}"
        )
    return width, height


def size_of(width: int, height: int) -> Size:
    """The one way to write a size: equal sizes are equal values."""
    return width if width == height else f"{width}x{height}"
