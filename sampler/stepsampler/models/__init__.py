"""Load a diffusers pipeline of any known family. Each family is one module of `models.family`."""

import importlib
import pkgutil
import warnings
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch

from stepsampler.errors import UserError, is_out_of_memory
from stepsampler.models import family
from stepsampler.models.additions import add_loras, add_textual_inversion
from stepsampler.models.base import LatentModel
from stepsampler.models.loading import BUNDLED, read_outline, read_pipeline, resolve
from stepsampler.models.texts import Reading, check_vocabularies, note_cuts
from stepsampler.support.options import ModelOptions
from stepsampler.support.sizes import Size

__all__ = [
    "BUNDLED",
    "LatentModel",
    "ModelOptions",
    "check_device",
    "families",
    "family_of",
    "from_pipeline",
    "load",
    "note_cuts",
    "open_model",
    "outline",
    "quiet",
    "resolve",
]


def load(
    name: str,
    device: str = "cpu",
    dtype: str = "float32",
    size: Size | None = None,
    **options: Any,
) -> LatentModel:
    """Load a bundled model, a local folder, a hub id or a single .safetensors checkpoint.

    `name` is "tiny" or "tiny-second" for those of the package, else a place; `size` that of the
    images in pixels, 512 or "768x1024", by default that on which the model was trained. `options`
    are the other fields of `ModelOptions`.

    Raises:
        UserError: as `open_model` does.
    """
    given: dict[str, Any] = {"dtype": dtype, "size": size, **options}
    return open_model(ModelOptions(name, **given), device)


def open_model(options: ModelOptions, device: str = "cpu") -> LatentModel:
    """Load what the options name.

    Raises:
        UserError: nothing there, another kind of pipeline, a size the model cannot make,
            a device that does not exist, or an addition that does not fit the model.
    """
    check_device(device)
    quiet()
    pipeline = read_pipeline(options)
    family_of(type(pipeline).__name__)  # refused before anything is added to it
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
    model = from_pipeline(
        pipeline,
        options.size,
        clip_skip=options.clip_skip,
        long_prompts=options.long_prompts,
    )
    if options.compile:
        model.compile()
    return model


def outline(options: ModelOptions, folder: Path) -> LatentModel:
    """The model of a folder's configs without its weights, to see whether the options suit it.

    Raises:
        UserError: as `open_model` would, as far as configs tell.
    """
    quiet()
    return from_pipeline(
        read_outline(options, folder),
        options.size,
        clip_skip=options.clip_skip,
        long_prompts=options.long_prompts,
    )


def from_pipeline(
    pipeline: Any,
    size: Size | None = None,
    *,
    clip_skip: int | None = None,
    long_prompts: str = "cut",
) -> LatentModel:
    """Take a loaded pipeline as it is and where it is, offloaded or spread over devices too.

    Raises:
        UserError: no family knows its class, or `size`, `clip_skip` or `long_prompts` does not
            suit it.
    """
    reading = Reading(clip_skip, long_prompts)
    model = family_of(type(pipeline).__name__)(pipeline, size)
    check_vocabularies(pipeline)
    model.read_texts(reading)
    return model


def family_of(name: str) -> type[LatentModel]:
    """The family that samples pipelines of a class.

    Raises:
        UserError: there is none.
    """
    known = families()
    if name not in known:
        raise UserError(
            f"pipelines of the class {name} are not supported; {', '.join(sorted(known))} are"
        )
    return known[name]


def families() -> dict[str, type[LatentModel]]:
    """Pipeline class -> the family that samples it, from the modules of `models.family`."""
    for module in pkgutil.walk_packages(family.__path__, f"{family.__name__}."):
        importlib.import_module(module.name)
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


def quiet() -> None:
    """No progress bars and advice of the libraries between our lines of output."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for advice in (".*local_dir_use_symlinks", "Already found a `peft_config`"):
        warnings.filterwarnings("ignore", advice)  # to diffusers, not to us

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.disable_progress_bar()
        logging.set_verbosity(CRITICAL)  # what goes wrong is said by us
