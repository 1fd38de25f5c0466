"""What a study costs at most, stage by stage: counted as the stages make their images."""

import fnmatch
from collections import Counter
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any

from stepsampler.errors import UserError, percent
from stepsampler.grids import GRIDS
from stepsampler.models import known_statistics
from stepsampler.presets import names, preset
from stepsampler.schedule import StatisticsSpec
from stepsampler.support.files import read_json
from stepsampler.support.sizes import sides
from stepsearch.config import StudyConfig
from stepsearch.engine.stages import patterns, polishing
from stepsearch.metrics.alignment import SHEET
from stepsearch.metrics.protocol import PART
from stepsearch.paths import local_folder
from stepsearch.polish.descent import Settings
from stepsearch.polish.knobs import most_numbers
from stepsearch.rivals.baselines import CLASSIFIER_FREE, kinds, wanted
from stepsearch.rivals.placement import most_passes
from stepsearch.space.statistics import passes_of_own

FEATURES = 128 * 4  # bytes of an image's features in the cache
PACKED = 0.6  # of a picture's raw bytes that its PNG takes, roughly


@dataclass(frozen=True)
class Costs:
    """Upper bounds of what a run needs."""

    passes: dict[str, int]  # of one image, stage by stage
    disk: int  # bytes in the run's folder
    rungs: dict[int, int]  # of the baselines, by the images of each rung
    ranking: int = 0  # of the selection's passes, which the polish makes before

    def lines(self, seconds_per_pass: float | None) -> list[str]:
        total = sum(self.passes.values())
        parts = ", ".join(f"{stage} {percent(n / total, '.0')}" for stage, n in self.passes.items())
        found = [f"at most {total:,} network passes of one image: {parts}"]
        if seconds_per_pass is None:
            found.append("hours: give --seconds-per-pass, or --measure DEVICE to measure it")
        else:
            hours = total * seconds_per_pass / 3600
            found.append(f"about {hours:.1f} hours of one device at {seconds_per_pass:g} s a pass")
        found.append(f"about {self.disk / 1e9:.1f} GB in the run's folder, the weights apart")
        return found


def _presets(config: StudyConfig) -> int:
    """How many the study names that have its passes; where its kind is unknown, of one family."""
    patterns, kind = config.baselines.presets, config.model.kind
    named = {name for wanted in patterns for name in fnmatch.filter(names(), wanted)}
    schedules = [preset(name).schedule for name in named]
    families = Counter(
        plan.model.family for plan in schedules if plan.model and plan.passes == config.space.passes
    )
    return max((n for name, n in families.items() if (kind or name).startswith(name)), default=0)


def _known_statistics(config: StudyConfig) -> list[StatisticsSpec]:
    """Of what the run makes, and of the model; where a file cannot be read, that is said apart."""
    if not config.by_statistics:
        return []
    try:
        return [*config.statistics.coming, *known_statistics(config.model)]
    except UserError:
        return config.statistics.coming


def costs(config: StudyConfig) -> Costs:
    """Count images and passes of every stage as the run makes them."""
    space, options, images = config.space, config.baselines, config.evaluation
    combined = len(kinds(config, CLASSIFIER_FREE, _known_statistics(config)))
    count = combined * (len(GRIDS) + len(options.rivals)) + _presets(config)
    before, screened, pictures = 0, 0, 0
    rungs = {}
    for n in options.rungs:
        if before:
            count = min(count, 2 * options.test + ceil(count * options.keep))
        # gains but the first come at the last rung, and have all its images before them
        others = count * (len(options.gains) - 1) if n == options.rungs[-1] else 0
        looked = count * (n - before) + others * n
        rungs[n] = looked * space.passes
        screened += looked
        pictures += count + others
        before = n
    long = len(options.long_steps) * (len(options.guidance_scales) + 1) * len(options.gains)
    patterned = patterns.images_at_most(config)
    # as many baselines as are polished are ranked beside the finalists, with gains or without
    finalists = config.search.finalists + config.search.patterns
    finalists *= 1 + len(polishing.gains_beside(config))
    finalists += config.search.polish
    ranking = finalists * images.selection_images * space.passes if config.search.polish else 0
    finalists += config.search.polish + options.test + 4
    tested = options.test + 3 + (config.search.finalists if config.search.both else 0)
    trials = config.search.trials
    numbers = max(most_numbers(space), space.passes + 2)  # of a baseline without guidance
    polished = polishing.images_at_most(Settings.of_study(config), config.search.polish, numbers)
    passes = {
        "statistics": passes_of_own(config),
        "rivals": sum(
            most_passes(name, n, images.batch) * (1 if scale == 1 else 2)
            for (name, n), scale in wanted(config).items()
        ),
        "baselines": screened * space.passes,
        "teacher": sum(
            min(n, config.teacher.images) for n in (images.images, images.selection_images)
        )
        * 2
        * config.teacher.steps,
        "patterns": patterned * space.passes,
        "trials": trials * images.images * space.passes,
        "polish": space.passes * polished,
        "selection": images.selection_images
        * (finalists * space.passes + 2 * long * max(options.long_steps, default=0)),
        "test": images.test_images
        * (
            tested * space.passes
            + 2 * sum(options.long_steps)
            + 2 * config.teacher.steps * config.teacher.test
        ),
    }
    made = screened + patterned + trials * images.images + finalists * images.selection_images
    made += tested * images.test_images
    versions = len(images.guidance_scales) or 1
    once = ("statistics", "rivals")
    passes = {stage: n * (1 if stage in once else versions) for stage, n in passes.items()}
    rungs = {n: versions * count for n, count in rungs.items()}
    parts = [ceil(n / PART) for n in (images.selection_images, images.test_images)]
    pictures += trials + finalists * parts[0] + tested * parts[1]
    shown = 1 if config.model.frames in (None, 1) else 3  # frames of each video
    sheet = SHEET * shown * 3 * pixels(config) * PACKED
    features = made * images.video_frames * FEATURES
    disk = round(versions * (features + pictures * sheet))
    return Costs(passes, disk, rungs, versions * ranking)


def pixels(config: StudyConfig) -> int:
    """Of an image: as the study says, else as the model's files do, else 1024 x 1024."""
    if config.model.size is not None:
        return prod(sides(config.model.size))
    folder = local_folder(config.model.config or config.model.id)
    networks = [folder / name for name in ("unet", "transformer")] if folder else []
    for network in networks:
        latent = _setting(network, "sample_size")
        if latent:
            blocks = _setting(
                network.parent / "vae", "block_out_channels", "encoder_block_out_channels"
            )
            halved = len(blocks or [1]) - 1  # without a vae these are pixels
            high, wide = latent if isinstance(latent, list) else (latent, latent)
            return int(high * wide * 4**halved)
    return 1024**2


def _setting(folder: Path, *names: str) -> Any:
    """The first of these that the config of a part of a pipeline has, or None."""
    path = folder / "config.json"
    known = read_json(path) if path.exists() else {}
    return next((known[name] for name in names if known.get(name)), None)
