"""What `stepsearch evaluate` builds once and hands down: contenders and metrics; and its notes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stepsampler.errors import UserError, counted, note
from stepsampler.models import Model
from stepsampler.presets import names as preset_names
from stepsampler.presets import nearest, open_schedule
from stepsampler.schedule import Schedule
from stepsampler.support.images.pixels import Exif, Fit
from stepsampler.support.sizes import Size, size_of
from stepsearch.compare.contenders import Contender, OnArray, OnFiles, OnSchedule, OnStock
from stepsearch.compare.harness import Harness
from stepsearch.metrics.alignment import frames_note
from stepsearch.metrics.evaluator import Metric
from stepsearch.metrics.features import load_extractor
from stepsearch.metrics.images import ImageFiles
from stepsearch.metrics.reference import load_reference


def sort_out(what: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Schedules, which may be names of presets, and folders or zips of images.

    Raises:
        UserError: something is none of these.
    """
    presets = [path for path in what if not path.exists() and str(path) in preset_names()]
    for path in what:
        if not path.exists() and path not in presets:
            hint = f"; {nearest(str(path))}" if path.parent == Path() and not path.suffix else ""
            raise UserError(
                f"{path}: no such schedule, folder or zip, and no preset of that name{hint}"
            )
    schedules = [p for p in what if p in presets or (p.is_file() and p.suffix == ".json")]
    return schedules, [path for path in what if path not in schedules]


def schedules_on(
    model: Model, digest: str, schedules: Sequence[Path | Schedule], negative_prompt: str
) -> list[OnSchedule]:
    """A contender for each schedule, its file or a preset, by the shortest names that differ."""
    known = [found.spec for found in model.statistics]
    found = []
    for given, name in zip(schedules, _names([*map(_called, schedules)]), strict=True):
        plan = given if isinstance(given, Schedule) else open_schedule(given, known)
        if lacks := plan.provenance.get("lacks"):
            note(f"{name} lacks {lacks}")
        found.append(OnSchedule(name, plan, model, digest, negative_prompt))
    return found


def _called(given: Path | Schedule) -> Path:
    """Of a schedule what it says of itself."""
    if isinstance(given, Path):
        return given
    said = str(given.provenance.get("source") or "").replace("/", "-")
    return Path(said or f"{given.solver}, {counted(given.num_steps, 'step')}")


def images_of(
    files: Sequence[Path],
    seeds: range,
    size: Size | None,
    fit: Fit,
    exif: Exif,
    captioned: bool,
    broken: Mapping[Path, Mapping[str, str]],
) -> list[OnFiles | OnArray]:
    """A contender for each folder, zip or .npz; with `captioned`, it says what its images show.

    Without a size, files are taken as they are and must be of one size. `broken` are files that
    earlier tries found unreadable.
    """
    found: list[OnFiles | OnArray] = []
    for path in files:
        if _is_array(path):
            if captioned:
                raise UserError(f"--clip-score: {path}: it is not known what its images show")
            if fit == "squash512":
                raise UserError(
                    f"{path}: its images are taken as they are: give --fit crop or none"
                )
            found.append(OnArray(path, len(seeds), seeds.start, size))
            continue
        of = OnFiles(path, len(seeds), seeds.start, size, fit, exif, broken.get(path))
        if captioned:
            of.read_captions()
        found.append(of)
    return found


def _is_array(path: Path) -> bool:
    return path.suffix == ".npz" and not path.is_dir()


def load_metrics(
    extractors: Sequence[str],
    reference: str,
    size: Size | None,
    fit: Fit,
    exif: Exif,
    cache: Path,
    device: str,
) -> list[Metric]:
    """Extractors with the statistics of real images, which are brought to `size`."""
    metrics = []
    for spec in extractors:
        extractor = load_extractor(spec, device)
        real = load_reference(reference, extractor, size, cache, fit, exif)
        metrics.append(Metric(extractor, real))
    return metrics


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


def size_of_files(files: Sequence[Path], n: int, exif: Exif) -> Size:
    """Of the n chosen images, to which those of the reference are cropped.

    Raises:
        UserError: they are not of one size, or no images.
    """
    sizes = {}
    for path in files:
        if _is_array(path):
            height, width = OnArray(path, n, 0).images.shape[2:]
            sizes[width, height] = path
            continue
        found = ImageFiles.readable(path, n, exif)
        found.check()
        sizes[found.heads[0].size] = path
    if len(sizes) > 1:
        (a, one), (b, other), *_ = sizes.items()
        raise UserError(
            f"the images of {one} are {a[0]} x {a[1]}, those of {other} {b[0]} x {b[1]}; give "
            "--size to crop them to"
        )
    return size_of(*next(iter(sizes)))


def cuts_of(contenders: Sequence[Contender], harness: Harness, seeds: range) -> list[str]:
    """A sentence for each encoder that does not see the end of some prompts, before any image."""
    found: list[str] = []
    for contender in contenders:
        texts = harness.shown(contender, seeds) if contender.captioned else []
        if isinstance(contender, OnSchedule | OnStock):
            found += contender.model.cuts(texts, [contender.negative_prompt])
            found += [frames_note(1)] if contender.model.videos else []
        if harness.clip:
            found += harness.clip.cuts(texts)
    return list(dict.fromkeys(found))


def notes_of(entries: Sequence[dict[str, object]], metrics: Sequence[Metric]) -> list[str]:
    """What is to be said of references and contenders below the table, each once."""
    notes = [m.reference.note for m in metrics if m.reference.note]
    for entry in entries:
        said = entry["notes"]
        assert isinstance(said, list)
        head = f"{entry['name']}: "  # notes of files begin with it
        notes += [head + note.removeprefix(head) for note in said]
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
