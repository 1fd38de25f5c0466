"""Read pipelines, VAEs, LoRAs and textual inversions. Weights come from safetensors files alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from stepsampler.errors import UserError

# What the libraries raise where files are missing, broken or of another model
BROKEN = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    TypeError,
    AttributeError,
    SafetensorError,
)


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
    if not single:
        options |= {"safety_checker": None, "use_safetensors": True}
        _check_place("model", folder)
    if config is not None:
        if not single:
            raise UserError(f"a config goes with a single .safetensors file, not with {name!r}")
        _check_place("config", config)
        for pickle in Path(config).glob("*/*.bin"):  # diffusers would read what the file lacks
            if not any(pickle.parent.glob("*.safetensors")):
                raise UserError(f"config {config!r}: {pickle} is a pickle, which can run code")
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


def _check_place(what: str, name: str) -> None:
    """Refuse what can be neither a local folder nor a hub id, before a hub is asked."""
    if not Path(name).is_dir() and (name.count("/") != 1 or name.startswith((".", "/"))):
        raise UserError(
            f"{what} {name!r}: no such folder; give a diffusers folder, a hub id "
            "(owner/name) or the name of a bundled model"
        )


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
    _check_place("VAE", name)
    options = {"dtype": old.dtype, "use_safetensors": True}
    if (Path(name) / "vae").is_dir():
        options["subfolder"] = "vae"
    try:
        vae = type(old).from_pretrained(name, **options)
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
    for text in files:
        file, weight = weighted(text)
        _check_file("LoRA", file)
        name = f"lora{len(weights)}"
        try:
            pipeline.load_lora_weights(
                str(Path(file).parent),
                weight_name=Path(file).name,
                adapter_name=name,
                use_safetensors=True,
            )
            if not any(name in names for names in pipeline.get_list_adapters().values()):
                raise ValueError("it has no weights of a network that the model has")
        except BROKEN as error:
            raise UserError(f"LoRA {file!r} does not fit the model: {_reason(error)}") from error
        weights[name] = weight
    pipeline.set_adapters(list(weights), list(weights.values()))


def weighted(text: str) -> tuple[str, float]:
    """FILE or FILE:WEIGHT as a file and its weight.

    Raises:
        UserError: the weight is no number.
    """
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
    _check_file("textual inversion", file)
    try:
        state = load_file(file)
        if set(state) == {"clip_l", "clip_g"}:
            word, parts = Path(file).stem, {"": state["clip_l"], "_2": state["clip_g"]}
        elif len(state) == 1:
            ((key, vectors),) = state.items()
            word, parts = Path(file).stem if key == "emb_params" else key, {"": vectors}
        else:
            raise ValueError(f"it has the tensors {', '.join(sorted(state))}")
        for number, vectors in parts.items():
            encoder = getattr(pipeline, f"text_encoder{number}")
            wide, width = vectors.shape[-1], encoder.get_input_embeddings().embedding_dim
            if wide != width:
                raise ValueError(f"its vectors have {wide} numbers, those of the model {width}")
            tokenizer = getattr(pipeline, f"tokenizer{number}")
            pipeline.load_textual_inversion(
                vectors, token=word, text_encoder=encoder, tokenizer=tokenizer
            )
    except BROKEN as error:
        raise UserError(
            f"textual inversion {file!r} does not fit the model: {_reason(error)}"
        ) from error


def _check_file(what: str, file: str) -> None:
    if not is_checkpoint(file):
        raise UserError(f"{what} {file!r} must be a .safetensors file")


def _reason(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    if "meta tensor" in text:  # what diffusers makes of a checkpoint with gaps
        return "some of its weights are missing"
    return text.splitlines()[0]
