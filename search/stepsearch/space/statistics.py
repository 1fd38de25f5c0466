"""Statistics for dpm-v3 that a run makes itself: what they cost, and their making."""

from dataclasses import replace
from pathlib import Path

from stepsampler.estimate import done_of, estimate, passes, suited
from stepsampler.models import Model
from stepsampler.statistics.file import read_statistics
from stepsearch.config import StudyConfig
from stepsearch.config.code import open_model_of
from stepsearch.metrics.alignment import load_prompts
from stepsearch.rivals.baselines import CLASSIFIER_FREE, check_statistics
from stepsearch.space.guidance import statistics_for


def passes_of_own(config: StudyConfig, guidance: str = CLASSIFIER_FREE) -> int:
    """Network passes of all that the run makes, of a model of this guidance."""
    made, batch = config.statistics, config.evaluation.batch
    return sum(
        passes(w, made.intervals, made.samples, batch, distilled=guidance != CLASSIFIER_FREE)
        for w in made.guidance_scales
    )


def samples_done(config: StudyConfig) -> int:
    """Of all files together."""
    return sum(
        config.statistics.samples if Path(file).exists() else done_of(Path(file))
        for file in config.model.statistics
    )


def check_own(config: StudyConfig, model: Model) -> None:
    """Refuse statistics that cannot be made of a model, or that do not suit the study.

    Also of a study whose run makes none, and that names those which it needs.

    Raises:
        UserError: as `suited`, `statistics_for` and `check_statistics` do.
    """
    if config.statistics.guidance_scales:
        suited(model)
    known = config.statistics.coming or [found.spec for found in model.statistics]
    statistics_for(config.space, known)
    check_statistics(config, model.guidance, known)


def make_own(config: StudyConfig, device: str) -> list[str]:
    """Make the files that `config.naming_own` names and that are not there; a sentence of each.

    In float32, whatever the study's dtype. One that was cut short is gone on with.

    Raises:
        UserError: as `check_own` and `estimate` do.
    """
    named = replace(config.model, statistics=(), dtype="float32", compile=False)
    model = suited(open_model_of(named, device))
    check_own(config, model)
    texts = [prompt.text for prompt in load_prompts(config.evaluation.prompts)]
    options, said = config.statistics, []
    for w, file in zip(options.guidance_scales, config.model.statistics, strict=True):
        if Path(file).exists():
            continue
        for _ in estimate(
            model,
            texts,
            w,
            options.intervals,
            options.samples,
            Path(file),
            batch_size=config.evaluation.batch,
            negative_prompt=config.evaluation.negative_prompt,
            additions=named.named,
        ):
            pass
        found = read_statistics(file, model.noise, model.shape)
        said.append(f"{file}: statistics {found.spec}; {found.errors}")
    return said
