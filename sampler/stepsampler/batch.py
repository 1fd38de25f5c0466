"""One image or video for each caption of a set, in a folder that a killed run goes on filling.

Image k shows caption k with the seed first + k. `manifest.jsonl` begins with what the images depend
on, and then has a line for each image, written after its file. Blocks of `batch_size` images are
made whole or not at all, so that a resumed run makes the same images bit for bit on a CPU.

An item of which there is no image, as it is no caption, the model refuses it or its image is not
finite, has a line in `left-out.jsonl` instead, and stops none of the others. What the model made of
it is remembered there: without that file, it is tried again.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from stepsampler.errors import UserError
from stepsampler.generate import generate
from stepsampler.models import Model, model_digest, note_cuts
from stepsampler.schedule import Schedule
from stepsampler.support.captions import Caption, LeftOut, shown
from stepsampler.support.files import write_text
from stepsampler.support.pictures import save_png
from stepsampler.support.rows import shortened

FORMAT = "stepsample.batch/1"
MANIFEST = "manifest.jsonl"
LEFT_OUT = "left-out.jsonl"
NOT_FINITE = "the image is not finite: the schedule overflows, or the number format does"
TOLD = 200  # characters of a caption that a message shows
HOPELESS = 16  # images that are not finite before any is made: then all would be


def run_batch(
    model: Model,
    schedule: Schedule,
    captions: Sequence[Caption | LeftOut],
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
        UserError: the schedule is for another kind of model, the folder belongs to another
            schedule, model, set of captions or seeds, has images of which no manifest tells, or no
            image can be made.
    """
    model.check(schedule)  # first: a folder that was begun belongs to its schedule
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
    texts = (item.text for item in captions if isinstance(item, Caption))
    note_cuts(model, texts, [negative_prompt])
    manifest = out / MANIFEST
    there, lost = _resume(manifest, identity, captions)
    done = there & set(range(len(captions)))
    _write_lost(out, lost)
    yield len(done)
    broken = 0
    with _few_encoded(model, 2 * batch_size):
        for start in range(0, len(captions), batch_size):
            block = range(start, min(start + batch_size, len(captions)))
            if all(k in done or k in lost for k in block):
                continue
            lines, failed = _make(
                model, schedule, captions, block, out, first_seed, negative_prompt
            )
            lost |= failed
            broken += sum(line["reason"] == NOT_FINITE for line in failed.values())
            done |= {line["index"] for line in lines}
            if broken >= HOPELESS and not done:
                break
            if failed:
                _append(out / LEFT_OUT, failed.values())
            _append(manifest, lines)
            yield len(done)
    if captions and not done:
        first = [LeftOut(f"number {k}", line["reason"]) for k, line in sorted(lost.items())]
        raise UserError(f"{out}: no image could be made: {shown(first)}")
    _write_lost(out, lost)


def _make(
    model: Model,
    schedule: Schedule,
    captions: Sequence[Caption | LeftOut],
    block: range,
    out: Path,
    first_seed: int,
    negative_prompt: str,
) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
    """The images of a block, written: their lines in the manifest, and what failed by index."""
    chosen = {k: item for k in block if isinstance(item := captions[k], Caption)}
    texts = {k: item.text for k, item in chosen.items()}
    failed: dict[int, str] = {}
    try:
        made = _images(model, schedule, texts, first_seed, negative_prompt)
    except UserError:
        failed = _refused(model, texts)
        if not failed:
            raise
        rest = {k: text for k, text in texts.items() if k not in failed}
        made = _images(model, schedule, rest, first_seed, negative_prompt)
    lines = []
    for k, text in texts.items():
        if k in failed:
            continue
        if k not in made:
            failed[k] = NOT_FINITE
            continue
        file = f"{k:06d}.png"
        save_png(made[k], out / file)
        record: dict[str, Any] = {"index": k, "seed": first_seed + k, "prompt": text}
        if (image := chosen[k].image) is not None:
            record["image"] = image
        lines.append(record | {"file": file, "sha256": _digest((out / file).read_bytes())})
    return lines, {k: {"index": k, "prompt": texts[k], "reason": r} for k, r in failed.items()}


def _images(
    model: Model,
    schedule: Schedule,
    texts: Mapping[int, str],
    first_seed: int,
    negative_prompt: str,
) -> dict[int, Tensor]:
    """One network batch, by index; without those that are not finite."""
    if not texts:
        return {}
    (made,) = generate(
        model,
        schedule,
        list(texts.values()),
        [first_seed + k for k in texts],
        negative_prompts=negative_prompt,
        batch_size=len(texts),
        finite_only=True,
    )
    return {seed - first_seed: row for seed, row in zip(made.seeds, made.made, strict=True)}


def _refused(model: Model, texts: Mapping[int, str]) -> dict[int, str]:
    """Why the model takes none of these prompts, such as the name of a class that it lacks."""
    reasons = {k: model.refusal(text) for k, text in texts.items()}
    return {k: reason for k, reason in reasons.items() if reason}


@contextmanager
def _few_encoded(model: Model, most: int) -> Iterator[None]:
    """Each caption comes once: a set of any length takes the memory of a few."""
    before, model.most_encoded = model.most_encoded, most
    try:
        yield
    finally:
        model.most_encoded = before


def read_manifest(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the images depend on, and the line of each; what a kill cut off is left out.

    Raises:
        UserError: not a manifest of `stepsample batch`.
    """
    try:
        first, *lines = path.read_text(encoding="utf-8-sig").split("\n")
        known = json.loads(first)
        records = [json.loads(line) for line in lines[:-1]]  # what follows the last newline is cut
        for record in records:
            for name, kind in (("index", int), ("prompt", str), ("file", str), ("sha256", str)):
                if not isinstance(record[name], kind):
                    raise TypeError(f"{name} must be {kind.__name__}")
        if not isinstance(known, dict):
            raise TypeError("the first line must be an object")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a manifest of `stepsample batch`: {error}") from error
    return known, records


def read_left_out(out: Path) -> list[dict[str, Any]]:
    """The items of a folder of which there is no image: `index`, `reason`, and where the caption
    stands (`place`) or, if the model is why, the `prompt`.

    Raises:
        UserError: not such a list.
    """
    path = out / LEFT_OUT
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines()]
        for line in lines:
            if not isinstance(line["index"], int) or not isinstance(line["reason"], str):
                raise TypeError("index must be a number and reason a text")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a list of `stepsample batch`: {error}") from error
    return lines


def _write_lost(out: Path, lost: Mapping[int, dict[str, Any]]) -> None:
    if lost:
        lines = (json.dumps(line) + "\n" for _, line in sorted(lost.items()))
        write_text(out / LEFT_OUT, "".join(lines))
    else:
        (out / LEFT_OUT).unlink(missing_ok=True)


def _resume(
    manifest: Path, identity: dict[str, Any], captions: Sequence[Caption | LeftOut]
) -> tuple[set[int], dict[int, dict[str, Any]]]:
    """Which images are there, in whole blocks, and what was left out: what was cut off, lost or
    changed is dropped.

    The captions may be more than before, or fewer: an image beyond them stays. The last block was
    perhaps a smaller one; where captions follow it, it is no longer whole.
    """
    lost: dict[int, dict[str, Any]] = {
        k: {"index": k, "place": item.place, "reason": item.reason}
        for k, item in enumerate(captions)
        if isinstance(item, LeftOut)
    }
    if not manifest.exists():
        for k in range(len(captions)):
            if (file := manifest.parent / f"{k:06d}.png").exists():
                raise UserError(
                    f"{file}: there is such an image already, but no {MANIFEST} beside it; give "
                    "another --out"
                )
        write_text(manifest, json.dumps(identity) + "\n")
        return set(), lost
    known, records = read_manifest(manifest)
    for name, value in identity.items():
        theirs = known.get(name)
        if theirs != value:
            if isinstance(value, dict) and isinstance(theirs, dict):
                apart = [k for k in theirs | value if theirs.get(k) != value.get(k)]
                theirs, value = ({k: d.get(k) for k in apart} for d in (theirs, value))
            raise UserError(
                f"{manifest}: the folder was begun with another {name}, {json.dumps(theirs)}, not "
                f"{json.dumps(value)}; give another --out"
            )
    found = {record["index"]: record for record in records}
    for k, record in found.items():
        earlier = Caption(record["prompt"], record.get("image"))
        if k < len(captions) and earlier != captions[k]:
            raise UserError(
                f"{manifest}: the folder was begun with other captions: number {k} was "
                f"{_told(earlier)}, and is now {_told(captions[k])}; give another --out"
            )
    # Of earlier runs: what the model refused of these captions, and all that is beyond them.
    for line in read_left_out(manifest.parent):
        k = line["index"]
        if k >= len(captions) or line.get("prompt") == captions[k][0]:
            lost.setdefault(k, line)
    there = {
        k
        for k, record in found.items()
        if (file := manifest.parent / record["file"]).is_file()
        and _digest(file.read_bytes()) == record["sha256"]
    }
    settled = there | set(lost)
    size, end = identity["batch_size"], max([len(captions), *(k + 1 for k in settled)])
    whole = set()
    for start in {k - k % size for k in settled}:
        block = range(start, min(start + size, end))
        whole |= set(block) if settled.issuperset(block) else set()
    kept = there & whole
    if len(kept) < len(records) or not manifest.read_bytes().endswith(b"\n"):
        lines = (json.dumps(line) + "\n" for line in (known, *(found[k] for k in sorted(kept))))
        write_text(manifest, "".join(lines))
    # A block that is made again is made as it was, with what failed in it.
    return kept, {k: line for k, line in lost.items() if k in whole or "prompt" not in line}


def _told(item: Caption | LeftOut) -> str:
    """For a message, in words."""
    if isinstance(item, LeftOut):
        return f"none: {item.place} ({item.reason})"
    image = f" of {shortened(item.image)}" if item.image is not None else ""
    return f"«{shortened(item.text, TOLD)}»{image}"


def _append(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


def _digest(content: str | bytes) -> str:
    content = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(content).hexdigest()
