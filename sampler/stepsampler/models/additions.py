"""What is added to a pipeline: another VAE, LoRAs, textual inversions."""

import re
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from stepsampler.errors import UserError, note
from stepsampler.models.lora_layouts import DOWN, UP, layout, source_of
from stepsampler.models.parts import BROKEN, check_place, listed, read_part, reason
from stepsampler.noise import is_flow
from stepsampler.support.weights import EPSILON, VAE_PREFIXES, Header, is_weights_file, read_header

# Attention of a VAE under its names before diffusers 0.18
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_vae(name: str, cls: Any, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """A VAE from a folder or hub id, of a whole pipeline or alone, or from a .safetensors file.

    `cls` and `config` are those of the VAE in whose place it comes; a file has its config.

    Raises:
        UserError: there is none, or its latents are others.
    """
    try:
        if is_weights_file(name):
            return _vae_of_file(name, cls, config).to(dtype).eval()
        check_place("VAE", name)
        subfolder = {"subfolder": "vae"} if (Path(name) / "vae").is_dir() else {}
        theirs = cls.load_config(name, **subfolder)
        _check_vae(name, cls, config, theirs)
        if Path(name).is_dir():
            part = Path(name, subfolder.get("subfolder", ""))
            return read_part(f"VAE {name!r}", cls, part, dtype)
        return cls.from_pretrained(name, dtype=dtype, use_safetensors=True, **subfolder)
    except BROKEN as error:
        raise UserError(f"VAE {name!r} cannot be loaded: {reason(error)}") from error


def _check_vae(name: str, cls: Any, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    found = theirs.get("_class_name", cls.__name__)
    if found != cls.__name__:
        raise UserError(f"VAE {name!r} is an {found}, but the model needs an {cls.__name__}")
    default = cls().config if cls.__name__ == "AutoencoderKL" else {}
    for key in ("latent_channels", "block_out_channels", "scaling_factor", "shift_factor"):
        mine, other = (config.get(key, default.get(key)) for config in (ours, theirs))
        # how many halvings there are, whatever their widths
        sizes = [len(v) if isinstance(v, list | tuple) else v for v in (mine, other)]
        if sizes[0] != sizes[1]:
            raise UserError(f"VAE {name!r} has {key} {other}, but the model needs {mine}")


def _vae_of_file(name: str, cls: Any, config: Mapping[str, Any]) -> Any:
    """Of a file that holds a VAE alone or a whole checkpoint, in the names of either library."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    header = read_header("VAE", name)
    if header.kind not in ("a VAE", "a whole checkpoint") and not header.has_vae:
        raise UserError(f"VAE {name!r} is {header.kind}, not a VAE")
    if header.unsupported:
        raise UserError(f"VAE {name!r}: {header.unsupported}")
    weights = load_file(name)
    for head in VAE_PREFIXES:
        if any(key.startswith(head) for key in weights):
            weights = {k.removeprefix(head): v for k, v in weights.items() if k.startswith(head)}
    weights = {k: v for k, v in weights.items() if not k.startswith(("loss.", "model_ema."))}
    vae = cls.from_config(config)
    ours = vae.state_dict()
    if not ("encoder.conv_norm_out.weight" in weights or "decoder.conv_norm_out.weight" in weights):
        weights = convert_ldm_vae_checkpoint(weights, vae.config)
    for old, new in _OLD.items():
        weights = {k.replace(f".{old}.", f".{new}."): v for k, v in weights.items()}
    weights = {
        k: v[..., 0, 0] if k in ours and v.ndim == 4 and ours[k].ndim == 2 else v
        for k, v in weights.items()
    }
    missing, unknown = sorted(ours.keys() - weights), sorted(weights.keys() - ours)
    if missing:
        raise UserError(f"VAE {name!r}: {listed('weights', missing)} missing in the file")
    if unknown:
        note(f"VAE {name!r}: {listed('tensors', unknown)} not of the model, and left out")
    vae.load_state_dict({k: v for k, v in weights.items() if k in ours})
    return vae


def add_loras(pipeline: Any, files: Sequence[str]) -> None:
    """Add each FILE[:WEIGHT], of weight 1 by default.

    Raises:
        UserError: peft is not installed, the model takes no LoRA, or a file is none or does not
            fit it.
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
        header = read_header("LoRA", file)
        if header.kind != "a LoRA":
            raise UserError(
                f"LoRA {file!r} is {header.kind}, which is not supported here: only plain LoRAs "
                "are, as diffusers, peft or kohya's scripts write them"
            )
        halves = [{p.sub("", k) for k in header.tensors if p.search(k)} for p in (DOWN, UP)]
        if alone := sorted(halves[0] ^ halves[1]):
            raise UserError(f"LoRA {file!r}: {listed('layers', alone)} there by one factor of two")
        name = f"lora{len(weights)}"
        source = source_of(pipeline, file, header)
        try:
            place = {} if isinstance(source, dict) else {"weight_name": Path(file).name}
            pipeline.load_lora_weights(source, adapter_name=name, use_safetensors=True, **place)
        except BROKEN as error:
            raise UserError(
                f"LoRA {file!r} does not fit the model{_made_for(header)}: {reason(error)}"
                f"{layout(header)}"
            ) from error
        _check_layers(pipeline, file, header, name, source)
        _compare(pipeline, file, header)
        weights[name] = weight
    pipeline.set_adapters(list(weights), list(weights.values()))


def _made_for(header: Header) -> str:
    """Such as « (it was made for sdxl_base_v1-0)», where the file says so."""
    said = header.metadata.get("ss_base_model_version") or header.metadata.get(
        "modelspec.architecture"
    )
    return f" (it was made for {said})" if said else ""


def _compare(pipeline: Any, file: str, header: Header) -> None:
    """Say where a LoRA was trained for another prediction type; some work all the same."""
    config = pipeline.scheduler.config
    theirs = config.get("prediction_type", EPSILON)
    for marker, said in header.predictions.items():
        if said != theirs and not is_flow(config):
            note(
                f"LoRA {file!r} was trained on a model that predicts {said} (its marker {marker}), "
                f"but this one predicts {theirs}"
            )


def _check_layers(pipeline: Any, file: str, header: Header, name: str, source: Any) -> None:
    """Count what was added: diffusers and peft drop in silence what finds no layer.

    Raises:
        UserError: nothing was added.
    """
    xl = hasattr(pipeline, "unet") and hasattr(pipeline, "tokenizer_2")  # names of blocks differ
    source = source.copy() if isinstance(source, dict) else file
    state = pipeline.lora_state_dict(
        source, **({"unet_config": pipeline.unet.config} if xl else {})
    )
    state = state[0] if isinstance(state, tuple) else state
    given = [DOWN.sub("", key) for key in state if DOWN.search(key)]
    added = set(_layers(pipeline, name))
    if not added:
        layer = given[0] if given else next(iter(header.tensors))
        raise UserError(
            f"LoRA {file!r} does not fit the model{_made_for(header)}: it has no weights of a "
            f"network that the model has{layout(header)}; one of its {len(given)} layers is {layer}"
        )
    factors = [value for key, value in state.items() if UP.search(key)]
    if any(value.any() for value in factors) and not _arrived(pipeline, name):
        raise UserError(f"LoRA {file!r}: diffusers makes its layers, but puts no weights into them")
    if len(given) > len(added):
        plain = {_plain(layer) for layer in added}
        lost = sorted(layer for layer in given if _plain(layer) not in plain)
        note(
            f"LoRA {file!r}: {listed('layers', lost or sorted(given))} not of the model, and left "
            f"out; {len(added)} of {len(given)} were added"
        )


def _arrived(pipeline: Any, adapter: str) -> bool:
    """Whether any second factor is other than the zeros with which peft begins."""
    for network in pipeline.components.values():
        for module in network.modules() if isinstance(network, torch.nn.Module) else ():
            second: Any = getattr(module, "lora_B", {})
            if adapter in second:
                weight = second[adapter].weight
                if not weight.is_meta and weight.any():
                    return True
    return False


def _layers(pipeline: Any, adapter: str) -> Iterator[str]:
    for part, network in pipeline.components.items():
        if isinstance(network, torch.nn.Module):
            for layer, module in network.named_modules():
                if adapter in getattr(module, "lora_A", ()):
                    yield f"{part}.{layer}"


def _plain(layer: str) -> str:
    """A layer's name without what differs between the libraries."""
    layer = re.sub(r"\.processor\b|\btext_model\.", "", layer)
    layer = re.sub(r"\b([qkv]|out)_proj$", r"to_\1", layer)
    return re.sub(r"\bto_out\.0$", "to_out", layer)


def weighted(text: str) -> tuple[str, float]:
    """FILE or FILE:WEIGHT as a file and its weight.

    Raises:
        UserError: the weight is no finite number.
    """
    file, colon, weight = text.rpartition(":")
    if not colon or Path(text).is_file():
        return text, 1.0
    try:
        number = float(weight)
    except ValueError:
        number = float("nan")
    if not isfinite(number):
        raise UserError(f"LoRA {text!r}: expected FILE or FILE:WEIGHT, such as x.safetensors:0.8")
    return file, number


# Names of the one tensor of a textual inversion whose word is the name of the file
_WORDLESS = ("emb_params", "string_to_param.*", "clip_l", "clip_g")


def add_textual_inversion(pipeline: Any, file: str) -> None:
    """Teach the text encoders a new word: the name in the file or else the name of the file.

    Files have one tensor, or `clip_l` and `clip_g` for the two encoders of SDXL.

    Raises:
        UserError: the model takes none, or the file does not fit it.
    """
    if not hasattr(pipeline, "load_textual_inversion"):
        raise UserError(f"a {type(pipeline).__name__} takes no textual inversion")
    header = read_header("textual inversion", file)
    if header.kind not in ("a textual inversion", "something unknown"):
        raise UserError(f"textual inversion {file!r} is {header.kind}, not a textual inversion")
    try:
        state = load_file(file)
        if set(state) == {"clip_l", "clip_g"}:
            word, parts = Path(file).stem, {"": state["clip_l"], "_2": state["clip_g"]}
        elif len(state) == 1:
            ((key, vectors),) = state.items()
            word = Path(file).stem if key in _WORDLESS else key
            parts = {"_2" if key == "clip_g" else "": vectors}
        else:
            raise UserError(
                f"textual inversion {file!r} does not fit the model: it has the tensors "
                f"{', '.join(sorted(state))}"
            )
        if not all(getattr(pipeline, f"text_encoder{number}", None) for number in parts):
            raise UserError(
                f"textual inversion {file!r} does not fit the model: it is for two text encoders, "
                "and the model has one"
            )
        if word != Path(file).stem:
            note(f"textual inversion {file!r}: its word in prompts is {word}")
        if len(parts) == 1 and getattr(pipeline, "text_encoder_2", None):
            note(
                f"textual inversion {file!r} is for one of the two text encoders; the other reads "
                f"{word} as any text"
            )
        if any(word in getattr(pipeline, f"tokenizer{n}").get_vocab() for n in parts):
            raise UserError(
                f"textual inversion {file!r}: the model knows the word {word!r} already; give the "
                "file another name"
            )
        for number, vectors in parts.items():
            encoder = getattr(pipeline, f"text_encoder{number}")
            wide, width = vectors.shape[-1], encoder.get_input_embeddings().embedding_dim
            if wide != width:
                raise UserError(
                    f"textual inversion {file!r} does not fit the model: its vectors have {wide} "
                    f"numbers, those of the model {width}"
                )
            tokenizer = getattr(pipeline, f"tokenizer{number}")
            pipeline.load_textual_inversion(
                vectors, token=word, text_encoder=encoder, tokenizer=tokenizer
            )
    except BROKEN as error:
        raise UserError(
            f"textual inversion {file!r} does not fit the model: {reason(error)}"
        ) from error
