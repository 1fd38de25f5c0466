#!/bin/sh
# Surprises whoever measures or trains on photographs with Pillow: of the same picture with the same
# EXIF orientation, `Image.open(f).convert("RGB")` turns the TIFF and leaves JPEG, PNG and WebP lying on
# their side. So a folder that was converted from one lossless kind to another, with its tags kept,
# holds other pixels for all that read it so, and its FID is another one.
# Exits with 1 when that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==12.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import PIL
from PIL import Image

exif = Image.Exif()
exif[0x0112] = 6  # to be turned by a quarter, clockwise, before it is shown
stored = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
print("Pillow", PIL.__version__)
found = {}
for suffix, options in (
    ("tif", {}),
    ("png", {}),
    ("webp", {"lossless": True}),
    ("jpg", {"quality": 95}),
):
    stored.save(f"a.{suffix}", exif=exif, **options)
    with Image.open(f"a.{suffix}") as image:
        said = image.getexif().get(0x0112)
        found[suffix] = image.convert("RGB").size
    print(f"a.{suffix}: stored 64 x 48, orientation {said}, read as {found[suffix]}")
expected = {"tif": (48, 64), "png": (64, 48), "webp": (64, 48), "jpg": (64, 48)}
if found != expected:
    raise SystemExit("this has changed: all kinds, or others, are turned")
print("only the TIFF was turned")
PYTHON
