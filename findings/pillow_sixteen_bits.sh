#!/usr/bin/env bash
# Who is surprised: whoever looks at Pillow's `mode` to see whether an image has more than 8 bits.
#
# A PNG of 16 bits a channel in colour is opened as mode RGB: the upper 8 bits of each channel, and
# nothing in mode, info or warnings tells that the lower ones are gone. The same file in grey is
# opened as I;16, with all of them; so a check of the mode finds one kind and misses the other.
#
# Nothing is downloaded but packages of PyPI. Exits with 0 as long as it is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pillow==12.0.0
cd "$folder"
venv/bin/python - <<'P'
import io
import struct
import warnings
import zlib

import PIL
from PIL import Image

warnings.simplefilter("error")
print("Pillow", PIL.__version__)


def png(channels, value):
    """2 x 2 pixels of 16 bits a channel, all of one value."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", 2, 2, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    row = b"\0" + struct.pack(">H", value) * channels * 2
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row * 2)) + chunk(b"IEND", b"")
    return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + parts))


colour, grey = png(3, 0x12FF), png(1, 0x12FF)
pixel, other = colour.getpixel((0, 0)), grey.getpixel((0, 0))
print("colour:", colour.mode, pixel, colour.info)
print("grey:  ", grey.mode, other, grey.info)
lost = (colour.mode, pixel, colour.info) == ("RGB", (0x12,) * 3, {})
raise SystemExit(not (lost and (grey.mode, other) == ("I;16", 0x12FF)))
P
