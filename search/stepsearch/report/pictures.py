"""The same seeds and prompts under every schedule of a test: as one sheet, and one by one.

One by one they lie in the folder `pictures` of a run, and `pictures.json` says what each shows.
"""

import json
from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from stepsampler.support.pictures import save_png, save_sheet
from stepsearch.config import StudyConfig
from stepsearch.engine.result import Result
from stepsearch.engine.workers import Workers
from stepsearch.metrics.alignment import SHEET, load_prompts
from stepsearch.metrics.evaluator import TEST, seeds_of
from stepsearch.paths import read_json, write_whole

FOLDER, INDEX = "pictures", "pictures.json"
LARGEST = 384  # pixels of a side on a page; smaller pictures keep every pixel
PLAIN = 96  # pixels of a side up to which a picture is a PNG; larger ones are WebP
QUALITY = 80
BUDGET = 1_500_000  # bytes of all pictures of a page, before they are written as text


def write_pictures(result: Result, config: StudyConfig, workers: Workers, folder: Path) -> None:
    """Write `grid.png` and `pictures/`: the first test seeds under every schedule of the table and
    the teacher, a row each."""
    rows = result.test if result.of_kind("teacher") else [*result.test, result.teacher]
    seeds = seeds_of(TEST, SHEET)
    images = workers.images([row.candidate.schedule for row in rows], seeds)
    names = [row.candidate.name for row in rows]
    save_sheet(images, folder / "grid.png", SHEET, names)
    prompts = load_prompts(config.evaluation.prompts)
    told = [prompts[seed % len(prompts)].text for seed in seeds]
    parts = [images[k : k + SHEET] for k in range(0, len(images), SHEET)]
    each = [
        (row.candidate.name, row.candidate.kind, list(part))
        for row, part in zip(rows, parts, strict=True)
    ]
    save_each(each, folder, seeds, told)


def save_each(
    rows: Sequence[tuple[str, str, Sequence[Tensor]]],
    folder: Path,
    seeds: Sequence[int],
    prompts: Sequence[str],
) -> None:
    """Write rows of images, each uint8 (3, height, width), and what each shows.

    A row has its name, its kind and an image for each seed.
    """
    told = []
    for i, (name, kind, images) in enumerate(rows):
        files = [f"{i}-{k}.png" for k in range(len(images))]
        for file, image in zip(files, images, strict=True):
            save_png(image, folder / FOLDER / file)
        told.append({"name": name, "kind": kind, "files": files})
    write_index(folder, seeds, prompts, told)


def write_index(
    folder: Path, seeds: Sequence[int], prompts: Sequence[str], rows: Sequence[dict[str, Any]]
) -> None:
    """Say what each picture of a folder shows."""
    data = {"seeds": list(seeds), "prompts": list(prompts), "rows": list(rows)}
    text = json.dumps(data, indent=1)
    write_whole(folder / FOLDER / INDEX, lambda p: p.write_text(text, encoding="utf-8"))


def read_index(folder: Path) -> dict[str, Any] | None:
    """What `save_each` has said of a folder's pictures; None: nothing that is whole."""
    try:
        data = read_json(folder / FOLDER / INDEX)
        rows = [{key: row[key] for key in ("name", "kind", "files")} for row in data["rows"]]
        seeds, prompts = list(data["seeds"]), list(data["prompts"])
        if any(len(shown) != len(seeds) for shown in (prompts, *(row["files"] for row in rows))):
            return None
        return {"seeds": seeds, "prompts": prompts, "rows": rows}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def as_uris(paths: Sequence[Path]) -> list[str | None]:
    """Pictures as `data:` addresses within the page's budget; None for one that cannot be read.

    Small ones keep every pixel; larger ones become WebP, smaller until all of them fit.
    """
    read = [_read(path) for path in paths]
    for side in (LARGEST, 256, 192, 128, PLAIN):
        made = [None if picture is None else _encoded(picture, side) for picture in read]
        if sum(len(m[1]) for m in made if m) <= BUDGET:
            break
    return [m and f"data:image/{m[0]};base64,{b64encode(m[1]).decode()}" for m in made]


def _read(path: Path) -> Image.Image | None:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # Pillow raises all of these for a damaged file


def _encoded(picture: Image.Image, side: int) -> tuple[str, bytes]:
    """Format and bytes."""
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    kind = "png" if max(small.size) <= PLAIN else "webp"
    out = BytesIO()
    small.save(out, kind.upper(), quality=QUALITY, optimize=True)
    return kind, out.getvalue()
