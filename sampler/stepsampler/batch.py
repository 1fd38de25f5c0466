"""One image for each caption of a set, in a folder that a killed run goes on filling.

Image k shows caption k with the seed first + k. `manifest.jsonl` begins with what the images depend
on, and then has a line for each image, written after its file. Blocks of `batch_size` images are
made whole or not at all, so that a resumed run makes the same images bit for bit on a CPU.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stepsampler.errors import UserError
from stepsampler.generate import generate
from stepsampler.models import LatentModel, note_cuts
from stepsampler.schedule import Schedule
from stepsampler.support.captions import Caption
from stepsampler.support.files import write_text
from stepsampler.support.pictures import save_png

FORMAT = "stepsample.batch/1"
MANIFEST = "manifest.jsonl"


def run_batch(
    model: LatentModel,
    schedule: Schedule,
    captions: Sequence[Caption],
    out: Path,
    *,
    first_seed: int = 0,
    negative_prompt: str = "",
    batch_size: int = 16,
    additions: Mapping[str, Any] | None = None,
) -> Iterator[int]:
    """Fill the folder; yields how many images are there, at the start and after each block.

    `additions` are what the model was loaded with, as plain JSON values by name: a LoRA's weight,
    for one, is in none of its tensors. Any change of them makes another model.

    Raises:
        UserError: the folder belongs to another schedule, model, set of captions or seeds, or has
            images of which no manifest tells.
    """
    identity = {
        "format": FORMAT,
        "schedule": _digest(replace(schedule, provenance={}).to_json()),
        "model": model_digest(model),
        "additions": {**(additions or {}), **model.reading.chosen},
        "shape": list(model.shape),
        "first_seed": first_seed,
        "negative_prompt": negative_prompt,
        "batch_size": batch_size,
    }
    note_cuts(model, (caption.text for caption in captions), [negative_prompt])
    manifest = out / MANIFEST
    blocks = [
        range(start, min(start + batch_size, len(captions)))
        for start in range(0, len(captions), batch_size)
    ]
    done = _resume(manifest, identity, captions) & set(range(len(captions)))
    yield len(done)
    for block in blocks:
        if block[0] in done:
            continue
        texts = [captions[k].text for k in block]
        seeds = [first_seed + k for k in block]
        (made,) = generate(
            model,
            schedule,
            texts,
            seeds,
            negative_prompts=negative_prompt,
            batch_size=batch_size,
        )
        lines = []
        for k, image in zip(block, made.images, strict=True):
            file = f"{k:06d}.png"
            save_png(image, out / file)
            record: dict[str, Any] = {
                "index": k,
                "seed": first_seed + k,
                "prompt": captions[k].text,
            }
            if captions[k].image is not None:
                record["image"] = captions[k].image
            record |= {"file": file, "sha256": _digest((out / file).read_bytes())}
            lines.append(json.dumps(record))
        _append(manifest, lines)
        done |= set(block)
        yield len(done)


def _resume(manifest: Path, identity: dict[str, Any], captions: Sequence[Caption]) -> set[int]:
    """Which images are there, in whole blocks: what was cut off, lost or changed is dropped.

    The captions may be more than before, or fewer: an image beyond them stays. The last block was
    perhaps a smaller one; where captions follow it, it is no longer whole.
    """
    if not manifest.exists():
        for k in range(len(captions)):
            if (file := manifest.parent / f"{k:06d}.png").exists():
                raise UserError(
                    f"{file}: there is such an image already, but no {MANIFEST} beside it; give "
                    "another --out"
                )
        write_text(manifest, json.dumps(identity) + "\n")
        return set()
    first, *lines = manifest.read_text(encoding="utf-8").split("\n")
    try:
        known = json.loads(first)
        records = [json.loads(line) for line in lines[:-1]]  # what follows the last newline is cut
        found = {int(record["index"]): record for record in records}
        files = {k: manifest.parent / str(record["file"]) for k, record in found.items()}
        sums = {k: str(record["sha256"]) for k, record in found.items()}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{manifest}: not a manifest of `stepsample batch`: {error}") from error
    for name, value in identity.items():
        theirs = known.get(name) if isinstance(known, dict) else None
        if theirs != value:
            raise UserError(
                f"{manifest}: the folder was begun with another {name}, {theirs!r}, not {value!r}; "
                "give another --out"
            )
    for k, caption in enumerate(captions):
        shown = Caption(found[k].get("prompt"), found[k].get("image")) if k in found else caption
        if shown != caption:
            raise UserError(
                f"{manifest}: the folder was begun with other captions: number {k} is "
                f"{tuple(shown)}, not {tuple(caption)}; give another --out"
            )
    there = {k for k in found if files[k].is_file() and _digest(files[k].read_bytes()) == sums[k]}
    size, end = identity["batch_size"], max([len(captions), *(k + 1 for k in there)])
    kept = set()
    for start in {k - k % size for k in there}:
        block = range(start, min(start + size, end))
        kept |= set(block) if there.issuperset(block) else set()
    if len(kept) < len(records) or lines[-1]:
        whole = [first, *(json.dumps(found[k]) for k in sorted(kept))]
        write_text(manifest, "\n".join(whole) + "\n")
    return kept


def _append(manifest: Path, lines: Sequence[str]) -> None:
    with manifest.open("a", encoding="utf-8") as file:
        file.write("".join(line + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


def model_digest(model: LatentModel) -> str:
    """A short digest of the weights: every byte of every tensor of every network.

    Bytes, not sums: sums depend on how many threads add them.
    """
    digest = hashlib.sha256(f"{model.dtype} {model.spec}".encode())
    for name, part in sorted(model.pipeline.components.items()):
        if isinstance(part, torch.nn.Module):
            for key, tensor in part.state_dict().items():
                digest.update(f"{name}.{key} {tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor.cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _digest(content: str | bytes) -> str:
    content = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(content).hexdigest()
