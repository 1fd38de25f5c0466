"""Load a diffusers pipeline of any known family. Each family is one module of `models.family`."""

import importlib
import pkgutil
import warnings
from collections.abc import Iterable
from functools import cache
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch

from stepsampler.errors import UserError, is_out_of_memory, note
from stepsampler.models import family
from stepsampler.models.additions import add_loras, add_textual_inversion
from stepsampler.models.base import LatentModel
from stepsampler.models.loading import BUNDLED, read_outline, read_pipeline, resolve
from stepsampler.models.model import Model, check_readable, model_digest, weights_of
from stepsampler.models.texts import Reading, check_vocabularies, note_cuts
from stepsampler.schedule import StatisticsSpec
from stepsampler.statistics.file import Statistics, read_spec, read_statistics
from stepsampler.support.options import ModelOptions
from stepsampler.support.sizes import Size

STATISTICS = "statistics.safetensors"  # in the folder of a bundled model

__all__ = [
    "BUNDLED",
    "LatentModel",
    "Model",
    "ModelOptions",
    "as_told",
    "check_class",
    "check_device",
    "check_gpus",
    "families",
    "from_pipeline",
    "known_statistics",
    "load",
    "model_digest",
    "note_cuts",
    "open_model",
    "outline",
    "quiet",
    "resolve",
    "weights_of",
]


def load(
    name: str,
    device: str = "cpu",
    dtype: str = "float32",
    size: Size | None = None,
    **options: Any,
) -> Model:
    """Load a bundled model, a local folder, a hub id or a single .safetensors checkpoint.

    `name` is "tiny" or "tiny-second" for those of the package, else a place; `size` that of the
    images in pixels, 512 or "768x1024", by default that on which the model was trained. `options`
    are the other fields of `ModelOptions`.

    Raises:
        UserError: as `open_model` does.
    """
    given: dict[str, Any] = {"dtype": dtype, "size": size, **options}
    return open_model(ModelOptions(name, **given), device)


def open_model(options: ModelOptions, device: str = "cpu") -> Model:
    """Load what the options name.

    Raises:
        UserError: nothing there, another kind of pipeline, a size the model cannot make,
            a device that does not exist, or an addition that does not fit the model.
    """
    check_device(device)
    quiet()
    pipeline = read_pipeline(options)
    if not _is_modular(pipeline):
        check_class(type(pipeline))  # refused before anything is added to it
    add_loras(pipeline, options.loras)
    for file in options.textual_inversions:
        add_textual_inversion(pipeline, file)
    try:
        pipeline.to(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"model {options.id!r} does not fit into the memory of {device}; try float16, or "
            "offload it with diffusers and hand the pipeline to from_pipeline"
        ) from error
    model = as_told(pipeline, options)
    if pipeline.components.get("vocoder") is not None:
        note(f"model {options.id!r} makes sound beside pictures, and it is not kept")
    if options.npnet is not None:
        model.take_npnet(options.npnet)
    if options.compile:
        model.compile()
    model.statistics = _statistics(model, options)
    return model


def as_told(pipeline: Any, options: ModelOptions) -> Model:
    """The model of a loaded pipeline, as the options say.

    Raises:
        UserError: as `from_pipeline`, with the name of the model.
    """
    try:
        return from_pipeline(
            pipeline,
            options.size,
            clip_skip=options.clip_skip,
            long_prompts=options.long_prompts,
            stock=options.stock,
            frames=options.frames,
        )
    except UserError as error:
        raise UserError(f"model {options.id!r}: {error}") from error


def _statistics(model: Model, options: ModelOptions) -> tuple[Statistics, ...]:
    """Those that the options name, and those that lie beside a bundled model.

    Raises:
        UserError: they are of another model, or the pipeline samples itself.
    """
    if options.statistics and not isinstance(model, LatentModel):
        raise UserError("statistics are for models that our own loop samples, which this is not")
    places = _places(options) if isinstance(model, LatentModel) else []
    return tuple(read_statistics(place, model.noise, model.shape) for place in places)


def _places(options: ModelOptions) -> list[str]:
    """Of statistics: those named first."""
    beside = Path(resolve(options.id)) / STATISTICS
    own = options.id in BUNDLED and options.size is None and beside.is_file()
    return [*options.statistics, *([str(beside)] if own else [])]


def known_statistics(options: ModelOptions) -> list[StatisticsSpec]:
    """What a model will have of statistics, without the model.

    Raises:
        UserError: a file is missing, or holds something else.
    """
    return [read_spec(place) for place in _places(options)]


def outline(options: ModelOptions, folder: Path) -> Model:
    """The model of a folder's configs without its weights, to see whether the options suit it.

    Raises:
        UserError: as `open_model` would, as far as configs tell.
    """
    quiet()
    model = as_told(read_outline(options, folder), options)
    model.statistics = _statistics(model, options)
    return model


def from_pipeline(
    pipeline: Any,
    size: Size | None = None,
    *,
    clip_skip: int | None = None,
    long_prompts: str = "cut",
    stock: bool = False,
    frames: int | None = None,
) -> Model:
    """Take a loaded pipeline as it is and where it is, offloaded or spread over devices too.

    Our own loop samples the classes that a family knows; other pipelines sample themselves, and
    with `stock` all do. `frames` is the length of a video, by default the pipeline's.

    Raises:
        UserError: its class cannot run a schedule, or `size`, `clip_skip`, `long_prompts` or
            `frames` does not suit it.
    """
    reading = Reading(clip_skip, long_prompts)
    cls = type(pipeline)
    # here, since they import diffusers, which reading of texts and images can do without
    from stepsampler.models.stock import StockModel
    from stepsampler.models.stock.known import plain_names
    from stepsampler.models.stock.modular import ModularModel

    known = next(iter(filter(None, map(families().get, plain_names(cls)))), None)
    name = known.family if known else ""
    if _is_modular(pipeline):
        model: Model = ModularModel(pipeline, size, name, frames)
    elif known is None or stock or not known.samples(pipeline):
        model = StockModel(pipeline, size, name, frames)
    else:
        if frames is not None and not known.videos:
            raise UserError(f"a {cls.__name__} makes pictures, which have no frames, got {frames}")
        options = {"frames": frames} if known.videos else {}
        model = known(pipeline, size, **options)
    check_vocabularies(pipeline)
    check_readable(pipeline)
    model.read_texts(reading)
    return model


def _is_modular(pipeline: Any) -> bool:
    from diffusers import ModularPipeline

    return isinstance(pipeline, ModularPipeline)


def check_class(cls: Any) -> None:
    """Refuse a class of pipelines that neither our own loop nor a schedule in its place samples.

    Raises:
        UserError: says why.
    """
    from stepsampler.models.stock.known import why_not

    reason = None if cls.__name__ in families() else why_not(cls)
    if reason:
        raise UserError(f"a {cls.__name__} cannot run a schedule: {reason}")


@cache
def _import_families() -> None:
    for module in pkgutil.walk_packages(family.__path__, f"{family.__name__}."):
        importlib.import_module(module.name)


def families() -> dict[str, type[LatentModel]]:
    """Pipeline class -> the family that samples it, from the modules of `models.family`."""
    _import_families()
    every: list[Any] = [LatentModel]
    for cls in every:
        every += cls.__subclasses__()
    return {name: cls for cls in every for name in cls.pipelines}


def check_device(device: str) -> None:
    """Refuse a device that torch cannot use.

    Raises:
        UserError: names the device and the reason.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device!r} cannot be used: {reason}") from error


def check_gpus(devices: Iterable[str]) -> None:
    """Refuse those among devices that torch does not see, without a byte of the others' memory.

    Raises:
        UserError: as `check_device` does.
    """
    seen = torch.cuda.device_count()
    for device in devices:
        if device.startswith("cuda:") and int(device.removeprefix("cuda:")) >= seen:
            check_device(device)


def quiet() -> None:
    """No progress bars and advice of the libraries between our lines of output."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for advice in (".*local_dir_use_symlinks", "Already found a `peft_config`"):
        warnings.filterwarnings("ignore", advice)  # to diffusers, not to us

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.disable_progress_bar()
        logging.set_verbosity(CRITICAL)  # what goes wrong is said by us
