"""`stepsearch check`: what a study lacks, what it costs, and whether its settings work together."""

import importlib.util
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from stepsampler.errors import UserError, counted
from stepsampler.grids import make_schedule
from stepsampler.models import Model, outline, quiet, resolve
from stepsampler.models.additions import weighted
from stepsampler.models.loading import is_modular
from stepsampler.models.markers import check_file
from stepsampler.models.parts import PLAIN_INDEX, choose, index_of
from stepsampler.npnet.files import find_npnet, read_layout
from stepsampler.support.files import read_json
from stepsampler.support.weights import SUFFIX, is_weights_file, read_header
from stepsearch.config import ModelConfig, StudyConfig
from stepsearch.config.code import load_function, named_code
from stepsearch.config.measuring import CLIP
from stepsearch.config.places import as_keys
from stepsearch.engine.claim import without_use
from stepsearch.engine.stages.costs import costs
from stepsearch.engine.transfer import earlier_best
from stepsearch.metrics.alignment import check_frames, load_prompts
from stepsearch.metrics.evaluator import (
    SEARCH,
    Evaluator,
    seeds_of,
)
from stepsearch.metrics.features import (
    PRETRAINED,
    Texture,
    each,
    is_bundled,
    load_extractor,
    refuse_for_several,
)
from stepsearch.metrics.images import ImageFiles
from stepsearch.metrics.pretrained import INCEPTION_FILE
from stepsearch.metrics.reference import BUNDLED_SIZE
from stepsearch.paths import local_folder
from stepsearch.rehearsal.dryrun import dry_run, kind_of
from stepsearch.report.live.progress import stages
from stepsearch.rivals.baselines import wanted
from stepsearch.rivals.placement import suited
from stepsearch.space.statistics import check_own

NETWORKS = ("unet", "transformer", "vae", "text_encoder")
ELSEWHERE = (  # of what has a hub id
    "no such folder, and not in the local Hugging Face cache; the first run with a network "
    "downloads it"
)


def run_check(
    config: StudyConfig,
    study: Path,
    seconds_per_pass: float | None,
    device: str | None,
    dry: bool,
    silent: bool = False,
) -> dict[str, Any]:
    """Print everything, unless `silent`, and return it as data; `missing` holds a sentence each.

    With `device` the seconds of a pass are measured there, on the study's own model.

    Raises:
        UserError: the dry run fails.
    """
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False, quiet=silent)
    absent = missing(config)
    for sentence in absent:
        console.print(f"missing: {sentence}")
    if device is not None and not absent:
        console.print(f"measuring a pass on {device} …")
        seconds_per_pass = seconds_of_a_pass(config, device)
        console.print(f"measured on {device}: {seconds_per_pass:.4f} s a pass")
    most = costs(config)
    for line in most.lines(seconds_per_pass):
        console.print(line)
    found: dict[str, Any] = {
        "study": config.name,
        "missing": absent,
        "passes": most.passes,
        "bytes": most.disk,
        "seconds_per_pass": seconds_per_pass,
    }
    if dry:
        quiet()
        kind = kind_of(config)
        started = time.perf_counter()
        console.print(f"dry run on a tiny random {kind} model, minutes on a slow machine:")
        with tempfile.TemporaryDirectory() as folder, stages(console) as show:
            result = dry_run(config, kind, Path(folder), show)
        found["dry_run"] = {
            "model": kind,
            "baselines": len(result.screened),
            "trials": result.trials,
            "seconds": time.perf_counter() - started,
        }
        console.print(
            f"dry run on a tiny random {kind} model: {counted(len(result.screened), 'baseline')}, "
            f"{counted(result.trials, 'trial')}, selection, test and export work "
            f"({found['dry_run']['seconds']:.0f} s)"
        )
    if not absent:
        console.print(f"nothing is missing: stepsearch run {study}")
    return found


def missing(config: StudyConfig) -> list[str]:
    """A sentence for each thing that the study needs and that is not on this machine."""
    found: list[str | None] = [_missing_code(config)]
    if config.model.code is None:
        found += [_missing_model(config.model), *_missing_additions(config.model)]
    extractors = each(config.evaluation.extractor)
    found += map(_missing_extractor, extractors)
    found += _unknown_npnets(config)
    found.append(without_use(config))
    if not any(found) and config.model.code is None:
        found.append(_unfit(config))
    if len(set(extractors)) < len(extractors):
        found.append(f"extractor {config.evaluation.extractor!r}: must be of different ones")
    try:
        load_prompts(config.evaluation.prompts)
    except UserError as error:
        found.append(str(error))
    found.append(_missing_alignment(config.evaluation.alignment))
    if config.search.start_from:
        try:
            earlier_best(Path(config.search.start_from), 1)
        except UserError as error:
            found.append(str(error))
    found.append(_missing_reference(config))
    return [as_keys(sentence) for sentence in found if sentence]


def _missing_code(config: StudyConfig) -> str | None:
    try:
        for key, spec in named_code(config).items():
            load_function(key, spec)
    except UserError as error:
        return str(error)
    return None


def _missing_model(model: ModelConfig) -> str | None:
    """From the headers of its files; no weights are read."""
    name = model.id
    try:
        if name.endswith(SUFFIX) or is_weights_file(name):
            check_file(model, read_header("model", name))
            return None
    except UserError as error:
        return str(error)
    folder = local_folder(name)
    if folder is None:
        return f"model {name!r}: {ELSEWHERE}"
    if index_of(folder) is None:
        return f"model {name!r}: {folder} has no model_index.json"
    chosen = set()
    try:
        for part, (at, variant) in _networks(name, folder).items():
            if not (part == "vae" and model.vae):
                chosen.add(choose(f"model {name!r}: {part}", at, model.variant or variant))
    except UserError as error:
        return str(error)
    if model.variant not in (None, *chosen):
        return f"model {name!r} has no weights of the variant {model.variant}"
    return None


def _networks(name: str, folder: Path) -> dict[str, tuple[Path, str | None]]:
    """Where the weights of each network lie, and which of them a modular index names."""
    if is_modular(folder):
        from stepsampler.models.stock.folders import open_modular

        _, found = open_modular(name, folder, local=True)
        return {k: (each.folder, each.variant) for k, each in found.items() if each.is_network}
    entries = read_json(folder / PLAIN_INDEX)
    return {
        part: (folder / part, None)
        for part, value in entries.items()
        if isinstance(value, list) and value[0] is not None and part.startswith(NETWORKS)
    }


def _unfit(config: StudyConfig) -> str | None:
    """What the model itself refuses, or will be refused of its images, as far as configs tell."""
    model, evaluation = config.model, config.evaluation
    folder = local_folder(resolve(model.config or model.id))
    if folder is None or index_of(folder) is None:
        return None
    try:
        loaded = outline(model, folder)
        check_frames(loaded, evaluation.video_frames)
        check_own(config, loaded)
        _check_rivals(config, loaded)
    except UserError as error:
        return f"model {model.id!r}: {str(error).removeprefix(f'model {model.id!r}: ')}"
    size = loaded.size
    for spec in each(evaluation.extractor):
        if spec == Texture.name and size != BUNDLED_SIZE:
            return f"extractor {spec!r} is for images of 32 x 32, the model's are of {size}"
    if is_bundled(evaluation.reference, evaluation.extractor) and size != BUNDLED_SIZE:
        return f"reference {evaluation.reference!r} is of {BUNDLED_SIZE} pixels, images are {size}"
    return None


def _check_rivals(config: StudyConfig, model: Model) -> None:
    """Refuse the rivals of a study that a run would, once the model is loaded."""
    for name in dict.fromkeys(name for name, _ in wanted(config, model.guidance)):
        suited(model, name)


def _missing_additions(model: ModelConfig) -> list[str | None]:
    """Of what the model is loaded with; whether it fits shows when it is."""
    found: list[str | None] = []
    for what, name in (("config", model.config), ("vae", model.vae)):
        if name is None or local_folder(resolve(name)) or Path(name).is_file():
            continue
        found.append(f"{what} {name!r}: {ELSEWHERE}")
    files = [("LoRA", weighted(text)[0]) for text in model.loras]
    files += [("textual inversion", name) for name in model.textual_inversions]
    for what, name in files:
        try:
            read_header(what, name)
        except UserError as error:
            found.append(str(error))
    if model.npnet is not None:
        found.append(_missing_npnet(model.npnet))
    return found


def _missing_npnet(file: str) -> str | None:
    try:
        read_layout(Path(file), read_header("NPNet", file))
    except UserError as error:
        return str(error)
    return None


def _unknown_npnets(config: StudyConfig) -> list[str]:
    """Of networks that the box names, and that nobody has."""
    found = []
    for digest in config.space.npnets:
        try:
            find_npnet(digest, config.model.npnet)
        except (UserError, OSError) as error:
            found.append(str(error))
    return found


def _missing_extractor(spec: str) -> str | None:
    """Those with weights of the user's are only looked for: loading them might download."""
    name, _, source = spec.partition(":")
    if name not in PRETRAINED:
        try:
            load_extractor(spec)
        except UserError as error:
            return str(error)
        return None
    if name != "inception":
        if source and local_folder(source):
            return None
        return f"extractor {spec!r}: {ELSEWHERE}"
    if importlib.util.find_spec("cleanfid") is None:
        return "extractor 'inception' needs clean-fid: pip install 'stepsearch[fid]'"
    place = Path(source or tempfile.gettempdir())
    if INCEPTION_FILE not in (place.name, *(p.name for p in place.glob("*.pt"))):
        return f"extractor {spec!r}: no {INCEPTION_FILE} in {place}"
    return None


def _missing_alignment(spec: str) -> str | None:
    if not spec.startswith(CLIP) or local_folder(spec.removeprefix(CLIP)):
        return None
    return f"alignment {spec!r}: {ELSEWHERE}"


def _missing_reference(config: StudyConfig) -> str | None:
    source = config.evaluation.reference
    if is_bundled(source, config.evaluation.extractor):
        return None
    if len(each(config.evaluation.extractor)) > 1:
        try:
            refuse_for_several(source, config.evaluation.extractor)
        except UserError as error:
            return str(error)
    path = Path(source)
    if not path.exists():
        return f"reference {source!r}: no folder or zip of images, and no statistics"
    if path.suffix in (".npz", ".safetensors"):
        return None
    try:
        ImageFiles.find(path)
    except UserError as error:
        return f"reference: {error}"
    return None


def seconds_of_a_pass(config: StudyConfig, device: str) -> float:
    """Of one image in a batch of the study's size, encoding and decoding included."""
    with tempfile.TemporaryDirectory() as folder:
        evaluator = Evaluator(config, Path(folder), device)
        model = evaluator.model
        plan = make_schedule("linspace", 10, model.noise, model=model.spec)
        plan = replace(plan, guidance=model.guidance)
        seeds = seeds_of(SEARCH, evaluator.batch_size)
        evaluator.images(plan, seeds)  # the first time is slower
        started = time.perf_counter()
        evaluator.images(plan, seeds)
        return (time.perf_counter() - started) / (plan.passes * len(seeds))
