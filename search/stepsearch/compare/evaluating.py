"""What `stepsearch evaluate` and `stepsearch.evaluate` do: from what is asked to its numbers."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any, cast

import torch

from stepsampler.cli.options import check_used
from stepsampler.errors import UserError
from stepsampler.models import Model, check_device, known_statistics, open_model
from stepsampler.presets import open_schedule
from stepsampler.schedule import Schedule
from stepsampler.support.images.pixels import Exif, Fit
from stepsampler.support.options import DEFAULTS, ModelOptions
from stepsampler.support.sizes import Size
from stepsearch.compare.command import (
    cuts_of,
    images_of,
    load_metrics,
    notes_of,
    schedules_on,
    size_of_files,
    sort_out,
)
from stepsearch.compare.contenders import Contender, OnArray, OnFiles, OnStock
from stepsearch.compare.harness import Clock, Harness
from stepsearch.compare.learned import SUFFIX, OnPredictor
from stepsearch.compare.table import (
    Result,
    as_data,
    check,
    compare,
    identity,
    join,
    read_earlier,
)
from stepsearch.config.measuring import CLASSES
from stepsearch.config.parts import SEEDS
from stepsearch.metrics.alignment import Prompt, load_alignment, load_prompts
from stepsearch.metrics.evaluator import (
    Metric,
    additions_digest,
    check_negative_prompt,
    model_digest,
)
from stepsearch.metrics.images import BrokenFilesError
from stepsearch.metrics.pretrained import ClipScore
from stepsearch.metrics.protocol import Progress, Seeds

SPACINGS = (None, "leading", "trailing", "linspace")


@dataclass(frozen=True)
class Asked:
    """What is to be scored, and how; the fields are the options of the command.

    `what` are schedules, names of presets, predictors, folders, zips or arrays of images.
    """

    what: Sequence[Path | Schedule] = ()
    stock: Sequence[int] = ()
    model: ModelOptions = DEFAULTS
    negative_prompt: str = ""
    scheduler: str | None = None
    timestep_spacing: str | None = None
    guidance_scale: float | None = None
    extractor: Sequence[str] = ("texture",)
    reference: str = "fashion-mnist"
    fit: str = "crop"
    exif: str = "apply"
    prompts: str = "fashion-mnist"
    clip_score: str | None = None
    clip_long_prompts: str = "cut"
    distance: Sequence[str] = ("fd",)
    images: int = 1000
    seeds: str = "test"
    first_seed: int | None = None
    batch_size: int = 50
    device: str = "cpu"
    cache: Path = Path("runs/evaluate")
    earlier: Sequence[Path] = ()  # results to compare with

    def check(self) -> None:
        """Refuse what can be refused before anything is loaded.

        Raises:
            UserError: names the option, the rule and the value.
        """
        if self.fit not in ("crop", "squash512", "none"):
            raise UserError(f"--fit must be crop, squash512 or none, got {self.fit!r}")
        if self.exif not in ("apply", "ignore"):
            raise UserError(f"--exif must be apply or ignore, got {self.exif!r}")
        if self.timestep_spacing not in SPACINGS:
            raise UserError(
                "--timestep-spacing must be leading, trailing or linspace, got "
                f"{self.timestep_spacing!r}"
            )
        of_stock = (self.guidance_scale, self.scheduler, self.timestep_spacing)
        if not self.stock and of_stock != (None, None, None):
            raise UserError(
                "--guidance-scale, --scheduler and --timestep-spacing are of --stock, which is "
                "not given"
            )
        if self.clip_score is None and self.clip_long_prompts != "cut":
            raise UserError("--clip-long-prompts is of --clip-score, which is not given")
        _in_range("--images", self.images, 2, SEEDS)
        _in_range("--batch-size", self.batch_size, 1)
        for steps in self.stock:
            _in_range("--stock", steps, 1)
        for name, value, low, high in (
            ("--guidance-scale", self.guidance_scale, 0, inf),
            ("--first-seed", self.first_seed, 0, 2**62),
        ):
            if value is not None:
                _in_range(name, value, low, high)


def _in_range(name: str, value: float, low: float, high: float = inf) -> None:
    if not (isfinite(value) and low <= value <= high):
        most = "" if high == inf else f" and at most {high:,}"
        raise UserError(f"{name} must be at least {low}{most}, got {value}")


@dataclass(frozen=True)
class Evaluated:
    """What was measured, and by what."""

    asked: Asked
    result: Result
    harness: Harness
    settings: dict[str, Any]
    contenders: Sequence[Contender]
    prompts: Sequence[Prompt]
    metrics: Sequence[Metric]

    @property
    def data(self) -> dict[str, Any]:
        """As the result file has it."""
        return as_data(self.result, self.harness, self.settings)

    @property
    def notes(self) -> list[str]:
        """What is to be said below the table."""
        return notes_of(self.result.entries, self.metrics)

    @property
    def whole(self) -> bool:
        """Whether nothing was left out."""
        unreadable = [metric.reference.unreadable for metric in self.metrics]
        unreadable += [len(c.files.broken) for c in self.contenders if isinstance(c, OnFiles)]
        return not (self.result.left_out or any(unreadable))


def evaluate(
    asked: Asked,
    say: Callable[[str], object],
    measuring: Callable[[], AbstractContextManager[Progress]],
) -> Evaluated:
    """Score everything on the same seeds. `say` hears what should be known before the images.

    Raises:
        UserError: something is missing, does not fit, or does not compare.
    """
    asked.check()
    check_device(asked.device)
    fitting, turning = cast(Fit, asked.fit), cast(Exif, asked.exif)  # checked above
    check(asked.distance, asked.images)
    chosen = Seeds.of(asked.seeds, asked.images, asked.first_seed)
    plans = [w for w in asked.what if isinstance(w, Schedule)]
    given = [w for w in asked.what if not isinstance(w, Schedule)]
    learned = [path for path in given if path.suffix == SUFFIX]
    schedules, files = sort_out([path for path in given if path not in learned])
    made = bool(schedules or plans or asked.stock or learned)  # by the model
    if not made and not files:
        raise UserError("nothing to score: give a schedule, a folder of images, or --stock STEPS")
    texts = load_prompts(asked.prompts)
    clock = Clock(torch.device(asked.device))
    of_model: list[Contender] = []
    size = side = asked.model.size
    judge = None  # of files: without a model and --size, as they are
    if made:
        by = known_statistics(asked.model)
        check_used(asked.model, [*plans, *(open_schedule(path, by) for path in schedules)])
        loaded = open_model(asked.model, asked.device)
        check_negative_prompt(loaded, asked.negative_prompt)
        clock.watch(loaded)
        size = side = loaded.size
        judge = load_alignment(CLASSES, texts, asked.device)
        of_model = _of_model(asked, loaded, [*schedules, *plans], learned)
    elif flags := [
        *(flag for flag in asked.model.flags if flag not in ("--size", "--dtype")),
        *(["--negative-prompt"] if asked.negative_prompt else []),
    ]:
        raise UserError(
            f"{', '.join(flags)}: of the model, but nothing that it makes is scored: give a "
            "schedule or --stock"
        )
    elif size is None and asked.fit == "crop":
        size = size_of_files(files, asked.images, turning)
    captioned = asked.clip_score is not None
    broken: dict[Path, dict[str, str]] = {}  # files that turn out to be behind their heads

    def on_files() -> list[OnFiles | OnArray]:
        prepared = (chosen.range, side, fitting, turning)
        return images_of(files, *prepared, captioned=captioned, broken=broken)

    contenders = [*of_model, *on_files()]
    fitted = None if asked.fit == "none" else size
    real = (asked.reference, fitted, fitting, turning)
    metrics = load_metrics(asked.extractor, *real, asked.cache, asked.device)
    clip = None
    if asked.clip_score:
        clip = ClipScore(asked.clip_score, asked.device, asked.clip_long_prompts)
    harness = Harness(metrics, texts, asked.batch_size, asked.cache, clock, judge, clip)
    settings = _settings(asked, size, made)
    now = identity(harness, chosen.range, settings)
    earlier = [(read_earlier(path, now), path) for path in asked.earlier]
    for cut in (clip.crops(size) if clip else []) + cuts_of(contenders, harness, chosen.range):
        say(cut)
    with measuring() as progress:
        while True:
            try:
                result = compare(contenders, harness, chosen, asked.distance, progress)
                break
            except BrokenFilesError as error:  # what was measured is in the cache
                broken.setdefault(error.source, {}).update(error.broken)
                contenders = [*of_model, *on_files()]
    for data, path in earlier:
        result = join(result, data, path)
    return Evaluated(asked, result, harness, settings, contenders, texts, metrics)


def _of_model(
    asked: Asked, loaded: Model, schedules: Sequence[Path | Schedule], learned: Sequence[Path]
) -> list[Contender]:
    """Those whose images the model makes."""
    more = (asked.model.loras, asked.model.textual_inversions, asked.negative_prompt)
    digest = " ".join([model_digest(loaded), *additions_digest(loaded, *more)])
    told = asked.negative_prompt
    found: list[Contender] = [*schedules_on(loaded, digest, schedules, told)]
    found += [OnPredictor(path, loaded, digest, told) for path in learned]
    own = (asked.guidance_scale, asked.scheduler, asked.timestep_spacing, told)
    return found + [OnStock(loaded, digest, steps, *own) for steps in asked.stock]


def _settings(asked: Asked, size: Size | None, made: bool) -> dict[str, Any]:
    return {
        **asked.model.told,
        "model": asked.model.id if made else None,
        "negative_prompt": asked.negative_prompt,
        "prompts": asked.prompts,
        "reference": asked.reference,
        "range": asked.seeds,
        "fit": asked.fit,
        "exif": asked.exif,
        "size": size,
    }
