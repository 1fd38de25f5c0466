"""A schedule and a range of seeds -> features and alignment, cached on disk: the search's measure.

Model, reference and prompts are loaded once, so that a missing file fails before the first image;
noise follows from the seed. The cache makes a killed run resume where it was.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from stepsampler.errors import NotFiniteError, UserError
from stepsampler.generate import Batch, BatchSize, fitting, generate
from stepsampler.grids import is_guided, make_schedule, scale_guidance
from stepsampler.models import Model, check_device, weights_of
from stepsampler.models.additions import weighted
from stepsampler.models.pixels import strips
from stepsampler.schedule import Schedule
from stepsampler.support.pictures import save_sheet
from stepsampler.support.sizes import Size
from stepsearch.config import StudyConfig
from stepsearch.config.code import open_model_of
from stepsearch.config.measuring import NONE, EvaluationConfig
from stepsearch.config.parts import SEEDS
from stepsearch.metrics.ahead import made_ahead
from stepsearch.metrics.alignment import (
    ClipAlignment,
    Prompt,
    check_frames,
    frames_note,
    load_alignment,
    load_prompts,
    observe,
)
from stepsearch.metrics.features import Extractor, load_extractor, load_measure, unseen
from stepsearch.metrics.pretrained import settings_of
from stepsearch.metrics.reference import Reference, load_reference
from stepsearch.paths import recall, write_whole

# Disjoint ranges of seeds: what the search sees, what chooses among its best, what reports; and
# what compares the reported ones of several runs.
SEARCH, SELECTION, TEST, FRONT = 0, SEEDS, 2 * SEEDS, 3 * SEEDS
PROBE = 3  # steps of the schedule with which the fastest batch is looked for


@dataclass(frozen=True)
class Measurement:
    """Projected features (n, axes) and, per image, how well it shows what was asked (n,), in 0..1.

    Of a study over guidance scales, or over several frames of videos: features (n, versions, axes),
    a version for each frame of each scale; alignment is the mean over them.
    `aligned` is NaN where nothing judges it. Of test seeds there are features under the rulers too,
    by the names of their distances.
    """

    features: NDArray[np.float32]
    aligned: NDArray[np.float32]
    sheet: Path | None = None  # a picture of the first images
    rulers: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    certain: NDArray[np.float32] | None = None  # the judge's certainty; None where it is unknown

    @classmethod
    def join(cls, parts: "Sequence[Measurement]") -> "Measurement":
        """Measurements of consecutive seeds as one."""
        known = [p.certain for p in parts if p.certain is not None]
        certain = np.concatenate(known) if len(known) == len(parts) else None
        return cls(
            np.concatenate([p.features for p in parts]),
            np.concatenate([p.aligned for p in parts]),
            parts[0].sheet,
            {name: np.concatenate([p.rulers[name] for p in parts]) for name in parts[0].rulers},
            certain,
        )

    @property
    def finite(self) -> bool:
        """Whether the images could be measured at all."""
        return bool(np.isfinite(self.features).all())

    @property
    def alignment(self) -> float:
        """Share of the images that show what was asked, or mean cosine of CLIP; NaN if unknown."""
        return float(self.aligned.mean())


@dataclass(frozen=True, eq=False)
class Metric:
    """An extractor with the statistics of real images under it."""

    extractor: Extractor
    reference: Reference

    @property
    def identity(self) -> str:
        return f"{self.extractor.name} {self.extractor.digest} {self.reference.fingerprint}"


class Evaluator:
    """Measures schedules of one study on one device.

    Raises:
        UserError: reference, prompts or model are missing or do not fit.
    """

    def __init__(self, config: StudyConfig, cache: Path, device: str = "cpu") -> None:
        evaluation = config.evaluation
        check_device(device)
        self.extractor = load_measure(evaluation, device)
        self.cache, self.fits = cache, BatchSize(evaluation.batch_size, self._probe)
        # How many images of how many are made, after each batch; what is recalled is not made
        self.heard: Callable[[int, int], object] = lambda made, of: None
        self.prompts = load_prompts(evaluation.prompts)
        self.negative_prompt = evaluation.negative_prompt
        model = self._settings = config.model
        self._device = device
        self.model = open_model_of(model, device)
        if not self.model.conditional and evaluation.prompts != NONE:
            raise UserError(
                f'evaluation.prompts must be "{NONE}", the model is unconditional, got '
                f'"{evaluation.prompts}"'
            )
        check_negative_prompt(self.model, self.negative_prompt)
        size = self.model.size
        self.reference = load_reference(
            evaluation.reference, self.extractor, size, cache, exif=evaluation.exif
        )
        self.scales, self.frames = evaluation.guidance_scales, evaluation.video_frames
        check_frames(self.model, self.frames)
        self.reference = self.reference.joined_by(evaluation.over)
        self.judge = load_alignment(
            evaluation.alignment, self.prompts, device, evaluation.clip_long_prompts
        )
        if config.search.both and self.judge is None:
            raise UserError(
                "search.objectives: alignment is unknown, because the prompts of "
                f"{evaluation.prompts!r} have no classes that a judge could find; "
                'evaluation.alignment = "clip:MODEL" judges any'
            )
        parts = [
            model_digest(self.model),
            self.reference.fingerprint,
            self.judge.digest if self.judge else "",
            str(self.model.shape),
            str(evaluation.batch_size),
            *(prompt.text for prompt in self.prompts),
            *additions_digest(
                self.model, model.loras, model.textual_inversions, self.negative_prompt
            ),
        ]
        parts += [f"frames {self.frames}"] if self.frames > 1 else []
        parts += [known.digest for known in self.model.statistics if config.by_statistics]
        # What a user should know, once; afterwards nobody is told of these prompts again.
        self.notes = self.model.cuts([p.text for p in self.prompts], [self.negative_prompt])
        self.notes += [frames_note(self.frames)] if self.model.videos else []
        self.notes += self.judge.notes if self.judge else []
        self.notes += self.judge.clip.crops(size) if isinstance(self.judge, ClipAlignment) else []
        self.notes += [self.reference.note] if self.reference.note else []
        self.rulers, why = load_rulers(evaluation, self.model.size, cache, device)
        self.notes += why
        self.identity = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def measure(self, schedule: Schedule, seeds: range) -> Measurement:
        """Generate the images of `seeds` (seed s has prompt s modulo their number), or recall.

        In a study over guidance scales, at each of them; without guidance all are the same.
        """
        if not self.scales:
            return self._measured(schedule, seeds)
        guided = any(map(is_guided, schedule.steps))
        parts = [
            self._measured(scale_guidance(schedule, scale) if guided else schedule, seeds)
            for scale in self.scales
        ]

        def versions(rows: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
            return np.concatenate([x.reshape(len(seeds), self.frames, -1) for x in rows], axis=1)

        known = [part.certain for part in parts if part.certain is not None]
        return Measurement(
            versions(part.features for part in parts),
            np.mean([part.aligned for part in parts], axis=0, dtype=np.float32),
            parts[0].sheet,
            {name: versions(part.rulers[name] for part in parts) for name in parts[0].rulers},
            np.mean(known, axis=0, dtype=np.float32) if len(known) == len(parts) else None,
        )

    def _measured(self, schedule: Schedule, seeds: range) -> Measurement:
        path = self.cache / f"{self._key(schedule, seeds)}.safetensors"
        sheet = path.with_suffix(".png")

        rulers = self.rulers if seeds.start >= TEST else ()

        def read(path: Path) -> Measurement | None:
            return _measurement(load_file(path), rulers, sheet)

        known = recall(path, read)
        if known is not None:
            return known
        try:
            tensors, first = self.fits.fit(partial(self._measure, schedule, seeds, rulers))
            save_sheet(first, sheet, len(first))
        except NotFiniteError:  # such a measurement has no sheet
            versions = (self.frames,) if self.frames > 1 else ()
            unknown = np.full((len(seeds), *versions, 1), np.nan, np.float32)
            rows = np.repeat(unknown, len(self.reference.search.mean), axis=-1)
            tensors = {"features": rows, "aligned": np.full(len(seeds), np.nan, np.float32)}
            tensors |= {ruler.identity: unknown.copy() for ruler in rulers}
        write_whole(path, lambda p: save_file(tensors, p))
        found = _measurement(tensors, rulers, sheet)
        assert found is not None
        return found

    def in_float32(self) -> Model:
        """The model, loaded once more where it computes in 16 bits: those blur gradients."""
        if self.model.dtype == torch.float32:
            return self.model
        options = replace(self._settings, dtype="float32", compile=False)
        return open_model_of(options, self._device)

    def images(self, schedule: Schedule, seeds: range) -> torch.Tensor:
        """The images, uint8 (n, 3, height, width), or three frames of the videos, for sheets."""

        def made(size: int) -> torch.Tensor:
            return torch.cat([strips(batch.made) for batch in self._batches(schedule, seeds, size)])

        return self.fits.fit(made)

    @property
    def saved(self) -> int:
        """Network passes so far that were not made: their answer was known."""
        return self.model.saved

    @property
    def batch_size(self) -> int:
        """Images of a network call: the study's or the fastest, less where memory ran out."""
        return self.fits.size

    def _probe(self, size: int) -> None:
        """Measure one batch, for its speed alone."""
        plan = make_schedule("linspace", PROBE, self.model.noise, order=1, model=self.model.spec)
        # without the first one, whose answer is known the second time
        plan = replace(plan, guidance=self.model.guidance, steps=plan.steps[1:])
        with suppress(NotFiniteError):
            self._measure(plan, seeds_of(SEARCH, size), (), size)

    def _batches(self, schedule: Schedule, seeds: range, size: int) -> Iterator[Batch]:
        texts = [self.prompt(seed).text for seed in seeds]
        return generate(
            self.model,
            schedule,
            texts,
            seeds,
            negative_prompts=self.negative_prompt,
            batch_size=size,
        )

    def _told(self, batches: Iterator[Batch], images: int) -> Iterator[torch.Tensor]:
        made = 0
        for batch in batches:
            made += len(batch.made)
            self.heard(made, images)
            yield batch.made

    def prompt(self, seed: int) -> Prompt:
        return self.prompts[seed % len(self.prompts)]

    def _measure(
        self, schedule: Schedule, seeds: range, rulers: Sequence[Metric], size: int
    ) -> tuple[dict[str, NDArray[np.float32]], torch.Tensor]:
        batches = self._told(self._batches(schedule, seeds, size), len(seeds))
        prompts = [self.prompt(seed) for seed in seeds]
        # extractor and judge beside it, too
        fits, ahead = fitting(self.model, size), made_ahead(batches, self.model.device)
        with fits, self.model.remembering(), ahead as made:
            extractors = [self.extractor, *(ruler.extractor for ruler in rulers)]
            judges = self.judge.views if self.judge else ()
            (features, *others), judged, first = observe(
                made, extractors, judges, prompts, self.frames
            )
        judged = judged or [np.full(len(seeds), np.nan, np.float32)]
        passes = self.model.passes(schedule)
        if passes != schedule.passes:
            name = type(self.model.pipeline).__name__
            raise UserError(
                f"a {name} takes {passes:g} network passes where the schedule says "
                f"{schedule.passes}: a study would compare unequal costs; `stepsearch evaluate` "
                "counts them"
            )
        projected = self.reference.project(features).astype(np.float32)
        seen = {
            ruler.identity: ruler.reference.project(rows).astype(np.float32)
            for ruler, rows in zip(rulers, others, strict=True)
        }
        known = {"features": projected, "aligned": judged[0], "certain": judged[-1].copy()}
        return known | seen, first

    def _key(self, schedule: Schedule, seeds: range) -> str:
        bare = replace(schedule, provenance={}, model=None).to_json()
        text = f"{bare}\n{seeds.start} {seeds.stop}\n{self.identity}"
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def load_rulers(
    options: EvaluationConfig, size: Size | None, cache: Path, device: str
) -> tuple[list[Metric], list[str]]:
    """What the test of a study looks through and its search does not; a sentence for what is not
    to be had. No run fails for want of a ruler."""
    rulers, why = [], []
    for name in unseen(options):
        try:
            extractor = load_extractor(name, device)
            known = load_reference(options.reference, extractor, size, cache, exif=options.exif)
            rulers.append(Metric(extractor, known.joined_by(options.over)))
        except UserError as error:
            why.append(f"no ruler {name!r} beside what the search sees: {error}")
    return rulers, why


def _measurement(
    tensors: Mapping[str, NDArray[np.float32]], rulers: Sequence[Metric], sheet: Path
) -> Measurement | None:
    """What a file of the cache holds; None where a ruler is missing: it was not asked for then."""
    if not all(ruler.identity in tensors for ruler in rulers):
        return None
    seen = {ruler.reference.metric: tensors[ruler.identity] for ruler in rulers}
    certain = tensors.get("certain")  # of earlier builds there is none
    return Measurement(tensors["features"], tensors["aligned"], sheet, seen, certain)


def model_digest(model: Model) -> str:
    """A short digest: configurations, and a few numbers of every tensor of every network."""
    compiled = " compiled" if model.compiled else ""
    digest = hashlib.sha256(f"{model.dtype}{compiled} {model.spec}{model.way}".encode())
    for name, part in sorted(model.pipeline.components.items()):
        digest.update(f"{name} {settings_of(part)}".encode())
    for part in model.networks:
        for _, tensor in weights_of(part):
            flat = tensor.flatten()
            few = flat[:: max(1, len(flat) // 64)]
            digest.update(few.double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def additions_digest(
    model: Model, loras: Sequence[str], words: Sequence[str], negative_prompt: str = ""
) -> list[str]:
    """What `model_digest` cannot tell and changes images; nothing where all is as by default.

    The weights of LoRAs, words among so many others, how prompts are read, the negative prompt.
    """
    key = hashlib.sha256()
    for file, used_as in [
        *(weighted(text) for text in loras),
        *((file, Path(file).stem) for file in words),
    ]:
        key.update(f"{used_as} {hashlib.sha256(Path(file).read_bytes()).hexdigest()} ".encode())
    found = [key.hexdigest()[:16]] if loras or words else []
    found += [f"{name} {value}" for name, value in model.reading.chosen.items()]
    return found + ([f"negative {negative_prompt}"] if negative_prompt else [])


def check_negative_prompt(model: Model, negative_prompt: str) -> None:
    """Refuse one that the model has no use for.

    Raises:
        UserError: its guidance is distilled, or it takes no prompts.
    """
    if negative_prompt and (model.guidance == "distilled" or not model.conditional):
        why = "unconditional" if not model.conditional else "of distilled guidance"
        raise UserError(f"the model is {why}: it takes no negative prompt, got {negative_prompt!r}")


def metric_name(reference: Reference, n: int) -> str:
    """The distance with its n: fd_texture128_1k, fd_texture128_300."""
    return f"{reference.metric}_{short(n)}"


def objective_name(evaluation: EvaluationConfig, reference: Reference, n: int) -> str:
    """The distance of a study, with what it was measured over."""
    name = metric_name(reference, n)
    scales = ", ".join(f"{w:g}" for w in evaluation.guidance_scales)
    if evaluation.video_frames > 1:
        name += f", mean over {evaluation.video_frames} frames"
    return f"{name}, {evaluation.over} over guidance {scales}" if scales else name


def short(n: int) -> str:
    """1000 -> 1k, 300 -> 300."""
    return f"{n // 1000}k" if n % 1000 == 0 else str(n)


def seeds_of(start: int, n: int) -> range:
    return range(start, start + n)
