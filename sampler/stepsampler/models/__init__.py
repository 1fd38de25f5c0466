"""Load a diffusers pipeline of any known family. Each family is one module of this package."""

import importlib
import pkgutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from stepsampler.errors import UserError
from stepsampler.models.base import LatentModel

__all__ = ["BUNDLED", "LatentModel", "check_device", "from_pipeline", "load", "resolve"]

BUNDLED = ("tiny",)


def resolve(name: str) -> str:
    """Folder of a bundled model, or the name itself: a local folder or a hub id."""
    if name in BUNDLED:
        return str(files("stepsampler") / "bundled" / name)
    return name


def load(
    name: str, device: str = "cpu", dtype: str = "float32", size: int | None = None
) -> LatentModel:
    """Load "tiny", a local folder or a hub id.

    `size` is the side of the images in pixels; by default the one the model was trained on.

    Raises:
        UserError: nothing there, another kind of pipeline, a size the model cannot make,
            or a device that does not exist.
    """
    check_device(device)
    _quiet()
    from diffusers import DiffusionPipeline

    folder = resolve(name)
    if not Path(folder).is_dir() and (name.count("/") != 1 or name.startswith((".", "/"))):
        raise UserError(
            f"model {name!r}: no such folder; give a diffusers folder, a hub id "
            f"(owner/name) or one of {', '.join(BUNDLED)}"
        )
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder, dtype=getattr(torch, dtype), safety_checker=None, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model {name!r} cannot be loaded: {reason}") from error
    return from_pipeline(pipeline, device, size)


def from_pipeline(pipeline: Any, device: str = "cpu", size: int | None = None) -> LatentModel:
    """Take a loaded pipeline.

    Raises:
        UserError: no family knows its class, or `size` does not suit it.
    """
    known = families()
    name = type(pipeline).__name__
    if name not in known:
        raise UserError(
            f"pipelines of the class {name} are not supported; {', '.join(sorted(known))} are"
        )
    pipeline.to(device)
    return known[name](pipeline, size)


def families() -> dict[str, type[LatentModel]]:
    """Pipeline class -> the family that samples it, from the modules of this package."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
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


def _quiet() -> None:
    """No progress bars and advice of the libraries between our lines of output."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
