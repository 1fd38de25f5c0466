"""One call of `stepsearch evaluate`: load what is asked for, measure, print, write."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from stepsampler.errors import UserError
from stepsampler.models import LatentModel, check_device, load
from stepsampler.models.loading import weighted
from stepsampler.presets import names as preset_names
from stepsampler.presets import open_schedule
from stepsearch.compare.contenders import Contender, OnFiles, OnSchedule, OnStock
from stepsearch.compare.harness import Clock, Harness, Metric
from stepsearch.compare.table import (
    as_data,
    check,
    evaluate,
    identity,
    join,
    profile,
    read_earlier,
    save,
    table,
)
from stepsearch.config import CLASSES
from stepsearch.metrics.alignment import load_alignment
from stepsearch.metrics.evaluator import load_prompts, model_digest, seeds_of
from stepsearch.metrics.features import load_extractor
from stepsearch.metrics.images import Fit, ImageFiles
from stepsearch.metrics.pretrained import ClipScore
from stepsearch.metrics.protocol import RANGES
from stepsearch.metrics.reference import load_reference


@dataclass(frozen=True)
class Request:
    """The options of the command."""

    what: Sequence[Path]  # schedule files, folders and zips of images
    stock: Sequence[int]
    model: str
    dtype: str
    size: int | None
    guidance_scale: float | None
    scheduler: str | None
    spacing: str | None
    config: str | None
    vae: str | None
    loras: Sequence[str]  # FILE or FILE:WEIGHT
    words: Sequence[str]  # files of textual inversions
    extractors: Sequence[str]
    reference: str
    fit: Fit
    prompts: str
    clip: str | None
    distances: Sequence[str]
    images: int
    part: str
    first_seed: int | None
    batch_size: int
    device: str
    cache: Path
    earlier: Sequence[Path]
    out: Path | None
    profile: bool


def run_evaluation(request: Request) -> None:
    """Score contenders, print the table and write the result.

    Raises:
        UserError: something is missing or does not fit.
    """
    check_device(request.device)
    check(request.distances, request.part, request.images)
    first = _first(request)
    presets = [p for p in request.what if not p.exists() and str(p) in preset_names()]
    for path in request.what:
        if not path.exists() and path not in presets:
            raise UserError(f"{path}: no such schedule, folder or zip, and no preset of that name")
    schedules = [p for p in request.what if p in presets or (p.is_file() and p.suffix == ".json")]
    files = [p for p in request.what if p not in schedules]
    if not (schedules or files or request.stock):
        raise UserError("nothing to score: give a schedule, a folder of images, or --stock STEPS")
    prompts = load_prompts(request.prompts)
    model = None
    size = request.size
    if schedules or request.stock:
        model = load(
            request.model,
            request.device,
            request.dtype,
            request.size,
            config=request.config,
            vae=request.vae,
            loras=request.loras,
            textual_inversions=request.words,
        )
        size = model.size
    elif request.config or request.vae or request.loras or request.words:
        raise UserError(
            "--config, --vae, --lora and --textual-inversion are of the model, but nothing that "
            "it makes is scored: give a schedule or --stock"
        )
    elif size is None and request.fit == "crop":
        size = _side(files, request.images)
    contenders = _contenders(request, model, schedules, files, first)
    fitted = None if request.fit == "none" else size
    metrics = []
    for spec in request.extractors:
        extractor = load_extractor(spec, request.device)
        reference = load_reference(request.reference, extractor, fitted, request.cache, request.fit)
        metrics.append(Metric(extractor, reference))
    clock = Clock(torch.device(request.device))
    if model is not None:
        clock.watch(model)
    harness = Harness(
        metrics,
        prompts,
        request.batch_size,
        request.cache,
        clock,
        load_alignment(CLASSES, prompts, request.device) if model else None,
        ClipScore(request.clip, request.device) if request.clip else None,
    )
    settings = {
        "model": request.model if model else None,
        "vae": request.vae,
        "lora": list(request.loras),
        "textual_inversion": list(request.words),
        "prompts": request.prompts,
        "reference": request.reference,
        "range": request.part,
        "fit": request.fit,
        "size": size,
    }
    now = identity(harness, seeds_of(first, request.images), settings)
    earlier = [read_earlier(path, now) for path in request.earlier]
    width = None if sys.stdout.isatty() else 160  # of a log file
    console = Console(soft_wrap=True, highlight=False, width=width)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=None)
        result = evaluate(
            contenders,
            harness,
            request.images,
            request.distances,
            request.part,
            request.first_seed,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    for path, data in zip(request.earlier, earlier, strict=True):
        result = join(result, data, path)
    data = as_data(result, harness, settings)
    console.print(table(result))
    for note in _notes(result.entries, metrics):
        console.print(note)
    if request.profile:
        console.print(profile(harness))
    if request.out:
        save(data, request.out)
        console.print(f"{request.out}: every number with its identity")


def _first(request: Request) -> int:
    """The first seed; the range says which real images it is compared with."""
    start, first = RANGES[request.part], request.first_seed
    if first is None:
        return start
    others = [other for other in RANGES.values() if other > start]
    last = first + request.images - 1
    if others and not start <= first <= last < min(others):
        raise UserError(
            f"--first-seed: the seeds of --range {request.part} are {start} to {min(others) - 1}, "
            f"got {first} to {last}"
        )
    return first


def _contenders(
    request: Request,
    model: LatentModel | None,
    schedules: Sequence[Path],
    files: Sequence[Path],
    first: int,
) -> list[Contender]:
    found: list[Contender] = []
    if model is not None:
        digest = model_digest(model) + _additions(request.loras, request.words)
        for path, name in zip(schedules, _names(schedules), strict=True):
            found.append(OnSchedule(name, open_schedule(path), model, digest))
        for steps in request.stock:
            found.append(
                OnStock(
                    model,
                    digest,
                    steps,
                    request.guidance_scale,
                    request.scheduler,
                    request.spacing,
                )
            )
    for path in files:
        # Without --size and a model, files are taken as they are, and must be of one size.
        size = request.size if model is None else model.size
        contender = OnFiles(path, request.images, first, size, request.fit)
        if request.clip:
            contender.read_captions()
        found.append(contender)
    return found


def _names(paths: Sequence[Path]) -> list[str]:
    """Names without suffix; with their folders, or whole paths, where those are equal."""
    shorter: list[Callable[[Path], str]] = [
        lambda path: path.name.removesuffix(".json"),
        lambda path: f"{path.absolute().parent.name}/{path.name.removesuffix('.json')}",
    ]
    names = [str(path) for path in paths]
    for form in reversed(shorter):
        short = [form(path) for path in paths]
        names = [s if short.count(s) == 1 else n for s, n in zip(short, names, strict=True)]
    return names


def _additions(loras: Sequence[str], words: Sequence[str]) -> str:
    """What `model_digest` cannot tell: the weights of LoRAs, and words among so many others."""
    files = [weighted(text) for text in loras] + [(file, Path(file).stem) for file in words]
    if not files:
        return ""
    key = hashlib.sha256()
    for file, used_as in files:
        key.update(f"{used_as} {hashlib.sha256(Path(file).read_bytes()).hexdigest()} ".encode())
    return f" {key.hexdigest()[:16]}"


def _side(files: Sequence[Path], n: int) -> int:
    """Side of the n chosen images, to which those of the reference are cropped.

    Raises:
        UserError: they are not square, or not of one size, or no images.
    """
    sizes = {}
    for path in files:
        found = ImageFiles.find(path).chosen(n)
        found.check()
        width, height = found.heads[0].size
        if height != width:
            raise UserError(
                f"{path}: its images are {width} x {height}; give --size to crop them to squares"
            )
        sizes[width] = path
    if len(sizes) > 1:
        (a, one), (b, other), *_ = sizes.items()
        raise UserError(
            f"the images of {one} are {a} x {a}, those of {other} {b} x {b}; give --size to crop "
            "them to"
        )
    return width


def _notes(entries: Sequence[dict[str, object]], metrics: Sequence[Metric]) -> list[str]:
    notes = [m.reference.note for m in metrics if m.reference.note]
    for entry in entries:
        said = entry["notes"]
        assert isinstance(said, list)
        notes += [f"{entry['name']}: {note}" for note in said]
    conservative = any(
        score["conservative"]
        for entry in entries
        for score in entry["scores"].values()  # type: ignore[attr-defined]
    )
    if conservative:
        notes.append(
            "* no more images than features (FD-infinity: four times as many): the error is "
            "conservative, it overstates the spread"
        )
    return list(dict.fromkeys(notes))
