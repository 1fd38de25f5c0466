"""The text of a file that another tool wrote; ComfyUI writes it into its images too."""

from pathlib import Path

from stepsampler.errors import UserError

PNG = b"\x89PNG"
MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # as PowerShell's > writes
CHUNKS = ("prompt", "workflow")  # of ComfyUI's images: the API form, and that of its page


def text_of(path: Path) -> str:
    """Read the text.

    Raises:
        UserError: names the file: neither a text nor an image with a workflow in it.
    """
    content = path.read_bytes()
    if content.startswith(PNG):
        return _of_image(path)
    try:
        return content.decode(MARKS.get(content[:2], "utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: neither a text in UTF-8 nor a PNG of ComfyUI") from error


def _of_image(path: Path) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()  # text may follow the pixels
            found = dict(getattr(image, "text", {}))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path}: the image cannot be read, it is damaged or cut off") from error
    for name in CHUNKS:
        if name in found:
            return str(found[name])
    raise UserError(f"{path}: the image has no workflow of ComfyUI in it")
