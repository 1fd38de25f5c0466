"""A study's whole path on a tiny random model of the same classes, with made-up data, in minutes.

It shows that the study's settings work together: nothing that comes out means anything.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepsampler.errors import UserError
from stepsampler.models import check_class
from stepsampler.models.loading import is_modular, pipeline_class
from stepsampler.models.markers import heed
from stepsampler.models.parts import MODULAR_INDEX, index_of
from stepsampler.models.stock.known import plain_names
from stepsampler.noise import is_edm, is_flow
from stepsampler.schedule import BY_STATISTICS
from stepsampler.support.files import read_json
from stepsampler.support.options import of_weights
from stepsampler.support.pictures import save_png
from stepsampler.support.sizes import Size, sides, size_of
from stepsampler.support.weights import SUFFIX, read_header
from stepsearch.config import StudyConfig
from stepsearch.config.measuring import CLIP, NONE, fewer
from stepsearch.config.space import OFF
from stepsearch.engine.result import Result
from stepsearch.engine.run import run_study
from stepsearch.engine.stages.costs import costs
from stepsearch.engine.stages.tools import Report
from stepsearch.engine.tracking import NoTracking
from stepsearch.engine.workers import InThisProcess
from stepsearch.metrics.features import EXTRACTORS, WHOLE, each, is_bundled
from stepsearch.paths import bundled, local_folder
from stepsearch.rehearsal.miniatures import EVERY, MOVING
from stepsearch.rehearsal.miniatures.texts import save_clip
from stepsearch.report.pictures import write_pictures
from stepsearch.report.summary import write
from stepsearch.rivals.placement import ANY_MODEL

# For pipelines that sample themselves and have no tiny model of their own class
ANY_FLOW, ANY_DIFFUSION = "bria", "latte"
# Classes of two kinds, of which the second has guidance distilled into its network
DISTILLED = {
    "FluxPipeline": ("flux-schnell", "flux-dev"),
    "HunyuanImagePipeline": ("hunyuan-image", "hunyuan-image-distilled"),
}
FRAMES = 5  # of a tiny video
EXACT = "exact"  # what dpm-v3 is without statistics
PIXELS = ("ddpm", "ddim")  # kinds that have one size only
SIZE = 32
PROMPTS = ("a red square", "two blue circles", "a green field", "nothing")
SMALL: dict[str, dict[str, Any]] = {
    "evaluation": {
        "images": 8,
        "rungs": (),
        "selection_images": 8,
        "test_images": 8,
        "batch_size": 8,
    },
    "baselines": {"rungs": (2,), "test": 1},
    "teacher": {"steps": 4, "images": 8},
    "search": {"trials": 3, "finalists": 2, "minutes": None, "start_from": None},
}
FIRST = ("guidance_scales", "orders", "long_steps")  # lists of the baselines: one of each is enough


def kind_of(config: StudyConfig) -> str:
    """The miniature for a study: what it says itself, or what its model's folder is.

    For a class that samples itself and has none: another one that does, with such noise.

    Raises:
        UserError: an unknown kind, or none where the model is not on this machine.
    """
    kind = config.model.kind
    if kind is not None:
        if kind not in EVERY:
            raise UserError(f"model.kind must be one of {', '.join(EVERY)}, got {kind!r}")
        return kind
    weights = local_folder(config.model.config or config.model.id)
    index = index_of(weights) if weights else None
    if index is None:
        raise UserError(
            f"model.kind is missing: no folder of {config.model.id!r} says which tiny model to "
            f"dry-run ({', '.join(EVERY)})"
        )
    said = read_json(index)
    name = said["_class_name"]
    cls = pipeline_class(f"{index}", name)
    if not is_modular(index.parent):
        check_class(cls)
    scheduler = _config(config.model.id, index.parent, "scheduler")
    plains = plain_names(cls)
    if "WanPipeline" in plains and said.get("boundary_ratio") is not None:
        return "wan-2.2"
    if "WanPipeline" in plains and said.get("expand_timesteps"):
        return "wan-2.2-5b"
    for plain in plains:
        if plain in DISTILLED:
            own = _config(config.model.id, index.parent, "transformer")
            return DISTILLED[plain][bool(own.get("guidance_embeds"))]
        for kind, build in EVERY.items():
            if type(build()).__name__ == plain:
                return kind
    return ANY_FLOW if is_flow(scheduler) else ANY_DIFFUSION


def _config(name: str, folder: Path, part: str) -> dict[str, Any]:
    """Of a component of a model's folder; those of modular pipelines may lie elsewhere."""
    at = folder / part
    if is_modular(folder):
        from stepsampler.models.stock.folders import open_modular

        pipeline, found = open_modular(name, folder, local=True)
        made = getattr(pipeline, part, None)
        if made is not None:  # with the pipeline, of a default
            return dict(made.config)
        at = found[part].folder if part in found else at
    files = [at / "scheduler_config.json", at / "config.json"]
    file = next((file for file in files if file.is_file()), None)
    return read_json(file) if file else {}


def dry_run(
    config: StudyConfig, kind: str, folder: Path, report: Report = lambda *_: None
) -> Result:
    """Load, search, select, test and write in `folder`, with a few images of everything."""
    report("a tiny model", 0, 1, "")
    small = shrunk(config, kind, folder)
    most = sum(costs(small).passes.values())  # how long that takes is the machine's
    report("a tiny model", 0, 1, f"at most {most:,} network passes of one image")
    miniature(config, kind).save_pretrained(str(folder / "model"), safe_serialization=True)
    with InThisProcess(small, folder / "run") as workers:
        result = run_study(small, folder / "run", workers, NoTracking(), report)
        write(result, small, folder / "run")
        write_pictures(result, small, workers, folder / "run")
    return result


def miniature(config: StudyConfig, kind: str) -> Any:
    """The tiny pipeline, with the kind of noise that the model's files or the study say.

    Of a modular pipeline of the same class it is a modular one.
    """
    import diffusers

    pipeline, name = EVERY[kind](), config.model.id
    header, folder = None, local_folder(name)
    if name.endswith(SUFFIX):
        header = read_header("model", name) if Path(name).is_file() else None
        if header and header.edm == "edm_mean":  # Playground v2.5, whose config says the rest
            pipeline.register_modules(scheduler=diffusers.EDMEulerScheduler())
    else:
        said = _config(name, folder, "scheduler") if folder else {}
        if is_edm(said) or said.get("rescale_betas_zero_snr"):
            scheduler = getattr(diffusers, said["_class_name"]).from_config(said)
            pipeline.register_modules(scheduler=scheduler)
        if folder and is_modular(folder):
            index = read_json(folder / MODULAR_INDEX)
            cls = getattr(diffusers, index["_class_name"])
            if type(pipeline).__name__ in plain_names(cls):
                pipeline = as_modular(pipeline, cls)
    heed(pipeline, replace(config.model, config=None), header)
    return pipeline


def as_modular(pipeline: Any, cls: Any) -> Any:
    """A modular pipeline of the class `cls` with the components of a plain one."""
    made = cls()
    parts = {k: part for k, part in pipeline.components.items() if part is not None}
    made.update_components(**{k: part for k, part in parts.items() if k in made.component_names})
    return made


def shrunk(config: StudyConfig, kind: str, folder: Path) -> StudyConfig:
    """The study with a tiny model and made-up data, which is written into `folder`.

    Bundled data stays, since it is there, and so does its judge. Extractors with weights of their
    own give way to EfficientNet-Lite0, CLIP that judges alignment to a tiny one. Rivals that are
    for any model are left out, and the others give way to the one that needs no trajectories. The
    solver that goes by statistics gives way to its degenerate form, which needs none. The search
    starts from no earlier run.
    """
    data = config.model_dump()
    for section, values in SMALL.items():
        data[section] |= values
    data["search"] |= fewer(config.search)
    for name in FIRST:
        data["baselines"][name] = data["baselines"][name][:1]
    data["baselines"]["rivals"] = ["dmn"] if set(config.baselines.rivals) - set(ANY_MODEL) else []
    size = None if kind in PIXELS else _like(config.model.size)
    data["model"] |= {"code": None, "id": str(folder / "model"), "dtype": "float32", "size": size}
    data["model"]["frames"] = FRAMES if kind in MOVING else None
    data["model"]["compile"] = False  # takes longer than all of a dry run
    data["model"] |= of_weights()  # which are not loaded
    golden = [name for name in config.space.golden_noise if name not in config.space.npnets]
    data["space"]["golden_noise"] = golden or [OFF]
    for section in ("space", "baselines"):
        named = (EXACT if s == BY_STATISTICS else s for s in data[section]["solvers"])
        data[section]["solvers"] = list(dict.fromkeys(named))
    del data["statistics"]
    # A layer to skip is all that a tiny CLIP has.
    data["model"]["clip_skip"] = config.model.clip_skip and 1
    evaluation = data["evaluation"]
    evaluation["video_frames"] = min(evaluation["video_frames"], FRAMES)
    if config.evaluation.rungs:
        evaluation |= {"rungs": (8, 16), "images": 16}
    if evaluation["alignment"].startswith(CLIP):
        save_clip(folder / "clip")
        evaluation["alignment"] = f"{CLIP}{folder / 'clip'}"
    extractors = [
        name if name.removesuffix(WHOLE) in EXTRACTORS else "lite0"
        for name in each(evaluation["extractor"])
    ]
    evaluation["extractor"] = "+".join(dict.fromkeys(extractors))
    known = bundled(f"{evaluation['prompts']}-prompts.json").exists()
    if not known and evaluation["prompts"] != NONE:
        file = folder / "prompts.txt"
        file.write_text("\n".join(["0", "2"] if kind == "dit" else PROMPTS) + "\n")
        evaluation["prompts"] = str(file)
    if not is_bundled(evaluation["reference"], evaluation["extractor"]):
        generator = np.random.default_rng(0)
        for k in range(12):
            pixels = generator.integers(0, 256, (3, 2 * SIZE, 2 * SIZE), np.uint8)
            save_png(torch.from_numpy(pixels), folder / "reference" / f"{k}.png")
        evaluation["reference"] = str(folder / "reference")
    return StudyConfig.model_validate(data)


def _like(size: Size | None) -> Size:
    """A small size of the same kind: square, high or wide; of sides that any miniature takes."""
    width, height = sides(size or SIZE)
    return size_of(SIZE * (1 + (width > height)), SIZE * (1 + (height > width)))
