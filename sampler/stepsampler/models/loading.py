"""Read pipelines, VAEs, LoRAs and textual inversions. Weights come from safetensors files alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from stepsampler.errors import UserError

# What the libraries raise where files are missing, broken or of another model
BROKEN = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError)


def read_pipeline(name: str, folder: str, dtype: str, config: str | None) -> Any:
    """A pipeline from a folder, a hub id or a single .safetensors checkpoint.

    `config` is the folder or hub id whose configs a single file's model has; by default diffusers
    recognises the model and takes them from the hub.

    Raises:
        UserError: nothing there, a pickle, or weights that cannot be read.
    """
    from diffusers import DiffusionPipeline
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    single = is_checkpoint(name)
    if not single and config is not None:
        raise UserError(f"a config goes with a single .safetensors file, not with {name!r}")
    if not single:
        options |= {"safety_checker": None, "use_safetensors": True}
        if not Path(folder).is_dir() and (name.count("/") != 1 or name.startswith((".", "/"))):
            raise UserError(
                f"model {name!r}: no such folder; give a diffusers folder, a hub id (owner/name), "
                "a .safetensors file or the name of a bundled model"
            )
    try:
        if single:
            cls = _single_file_class(name, config)
            return cls.from_single_file(name, config=config, **options)
        return DiffusionPipeline.from_pretrained(folder, **options)
    except (*BROKEN, SingleFileComponentError) as error:
        raise UserError(f"model {name!r} cannot be loaded: {_reason(error)}") from error


def is_checkpoint(name: str) -> bool:
    """Whether this is a single .safetensors file.

    Raises:
        UserError: another kind of file, or none.
    """
    suffix = Path(name).suffix.lower()
    if suffix in (".ckpt", ".pt", ".pth", ".bin", ".pkl"):
        raise UserError(f"{name!r} is a pickle, which can run code: convert it to .safetensors")
    if suffix == ".safetensors" and not Path(name).is_file():
        raise UserError(f"{name!r}: no such file")
    return suffix == ".safetensors"


def _single_file_class(name: str, config: str | None) -> Any:
    """The pipeline class that the config, or else the checkpoint itself, is of."""
    import diffusers
    from diffusers.loaders.single_file_utils import (
        fetch_diffusers_config,
        load_single_file_checkpoint,
    )

    if config is None:
        checkpoint = load_single_file_checkpoint(name)
        config = fetch_diffusers_config(checkpoint)["pretrained_model_name_or_path"]
    found = diffusers.DiffusionPipeline.load_config(config)["_class_name"]
    cls = getattr(diffusers, found)
    if not hasattr(cls, "from_single_file"):
        raise ValueError(f"{found} has no single-file checkpoints")
    return cls


def replace_vae(pipeline: Any, name: str) -> None:
    """Take the VAE of a folder or hub id, that of a whole pipeline or one alone.

    Raises:
        UserError: there is none, or its latents are of another shape.
    """
    old = pipeline.components.get("vae")
    if old is None:
        raise UserError(f"the {type(pipeline).__name__} has no vae that could be replaced")
    read, options = type(old).from_pretrained, {"dtype": old.dtype, "use_safetensors": True}
    try:
        if (Path(name) / "vae").is_dir():
            options["subfolder"] = "vae"
        vae = read(name, **options)
    except BROKEN as error:
        raise UserError(f"VAE {name!r} cannot be loaded: {_reason(error)}") from error
    for key in ("latent_channels", "block_out_channels"):
        ours, theirs = (part.config.get(key, ()) for part in (old, vae))
        if (ours if isinstance(ours, int) else len(ours)) != (
            theirs if isinstance(theirs, int) else len(theirs)
        ):
            raise UserError(f"VAE {name!r} has {key} {theirs}, but the model needs {ours}")
    pipeline.register_modules(vae=vae)


def add_loras(pipeline: Any, files: Sequence[str]) -> None:
    """Add each FILE[:WEIGHT], of weight 1 by default.

    Raises:
        UserError: peft is not installed, the model takes no LoRA, or a file does not fit it.
    """
    from diffusers.utils import USE_PEFT_BACKEND

    if not files:
        return
    if not hasattr(pipeline, "load_lora_weights"):
        raise UserError(f"a {type(pipeline).__name__} takes no LoRA")
    if not USE_PEFT_BACKEND:
        raise UserError("a LoRA needs the package peft, which is not installed: pip install peft")
    weights: dict[str, float] = {}
    for k, text in enumerate(files):
        file, weight = _weighted(text)
        state = _read(file, "LoRA")
        try:
            pipeline.load_lora_weights(state, adapter_name=f"lora{k}")
        except BROKEN as error:
            raise UserError(f"LoRA {file!r} does not fit the model: {_reason(error)}") from error
        weights[f"lora{k}"] = weight
    pipeline.set_adapters(list(weights), list(weights.values()))


def _weighted(text: str) -> tuple[str, float]:
    file, colon, weight = text.rpartition(":")
    if not colon or Path(text).is_file():
        return text, 1.0
    try:
        return file, float(weight)
    except ValueError as error:
        raise UserError(
            f"LoRA {text!r}: expected FILE or FILE:WEIGHT, such as x.safetensors:0.8"
        ) from error


def add_textual_inversion(pipeline: Any, file: str) -> None:
    """Teach the text encoders a new word: the name in the file or else the name of the file.

    Files have one tensor, or `clip_l` and `clip_g` for the two encoders of SDXL.

    Raises:
        UserError: the model takes none, or the file does not fit it.
    """
    if not hasattr(pipeline, "load_textual_inversion"):
        raise UserError(f"a {type(pipeline).__name__} takes no textual inversion")
    state = _read(file, "textual inversion")
    try:
        if set(state) == {"clip_l", "clip_g"}:
            word = Path(file).stem
            for key, number in (("clip_l", ""), ("clip_g", "_2")):
                pipeline.load_textual_inversion(
                    state[key],
                    token=word,
                    text_encoder=getattr(pipeline, f"text_encoder{number}"),
                    tokenizer=getattr(pipeline, f"tokenizer{number}"),
                )
        elif len(state) == 1:
            ((key, tensor),) = state.items()
            word = Path(file).stem if key == "emb_params" else key
            pipeline.load_textual_inversion(tensor, token=word)
        else:
            raise ValueError(f"it has the tensors {', '.join(sorted(state))}")
    except BROKEN as error:
        raise UserError(
            f"textual inversion {file!r} does not fit the model: {_reason(error)}"
        ) from error


def _read(file: str, what: str) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not is_checkpoint(file):
        raise UserError(f"{what} {file!r} must be a .safetensors file")
    try:
        return load_file(file)  # type: ignore[no-any-return]
    except (OSError, SafetensorError) as error:
        raise UserError(f"{what} {file!r} cannot be read: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
