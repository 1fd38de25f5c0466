"""One network from a folder, whole and looked at before it is read; why a library could not."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from stepsampler.errors import UserError, note
from stepsampler.support.files import read_json
from stepsampler.support.weights import beginning, read_header

PLAIN_INDEX, MODULAR_INDEX = "model_index.json", "modular_model_index.json"
# What the libraries raise where files are missing, broken or of another model
BROKEN = (
    OSError,
    ValueError,
    LookupError,
    RuntimeError,
    TypeError,
    AttributeError,
    ImportError,
    SafetensorError,
)
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>\w+))?\.safetensors"
    r"(?:\.index(?:\.(?P<sharded>\w+))?\.json)?"
)


def check_place(what: str, name: str) -> None:
    """Refuse what can be neither a local folder nor a hub id, before a hub is asked."""
    if not Path(name).is_dir() and (name.count("/") != 1 or name.startswith((".", "/"))):
        raise UserError(
            f"{what} {name!r}: no such folder; give a diffusers folder, a hub id "
            "(owner/name) or the name of a bundled model"
        )


def index_of(folder: Path) -> Path | None:
    """What says of which class a folder's pipeline is: a plain one comes before a modular one."""
    found = (folder / name for name in (PLAIN_INDEX, MODULAR_INDEX))
    return next((path for path in found if path.is_file()), None)


def check_texts(place: str, folder: Path) -> None:
    """Refuse JSON and lists of words that are none: Git LFS pointers, web pages, cut off files.

    Raises:
        UserError: names the file.
    """
    for path in sorted(p for p in folder.glob("*") if p.suffix in (".json", ".txt", ".model")):
        if kind := beginning(path):
            raise UserError(f"{place}: {path.name} is {kind}")
        if path.suffix == ".model" and not path.stat().st_size:
            raise UserError(f"{place}: {path.name} is empty")
        if path.suffix == ".json":
            try:
                read_json(path)
            except ValueError as error:
                raise UserError(f"{place}: {path.name} is no JSON, or cut off") from error


def read_part(
    place: str, cls: Any, folder: Path, dtype: torch.dtype, variant: str | None = None
) -> Any:
    """One network of a folder, whole: diffusers would fill what is missing with random numbers.

    Raises:
        UserError: no weights, some of them missing, or files that are none; `place` is named.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{place} holds no config.json")
    network, said = cls.from_pretrained(
        str(folder),
        variant=choose(place, folder, variant),
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
    )
    missing = sorted(map(str, said.get("missing_keys") or ()))
    if missing:
        raise UserError(f"{place}: {listed('weights', missing)} missing in the files")
    unknown = sorted(map(str, said.get("unexpected_keys") or ()))
    if unknown:
        note(f"{place}: {listed('tensors', unknown)} not of the model, and left out")
    return network


def choose(place: str, folder: Path, variant: str | None) -> str | None:
    """Which variant of a network's weights to take, after a look at each of its files.

    That which is asked for, the plain ones (as diffusers has it), or the only one.

    Raises:
        UserError: no weights, several variants, quantised ones, or files that are no weights.
    """
    _check_numbers(place, folder / "config.json")
    offers: dict[str | None, Path] = {}
    for path in sorted(folder.glob("*.safetensors*")):
        found = _WEIGHTS.fullmatch(path.name)
        if found and "-of-" not in path.name:
            offers[found["variant"] or found["sharded"]] = path
    names = ", ".join(sorted(str(offer) for offer in offers if offer))
    if not offers:
        others = sorted(p for p in folder.glob("*") if p.suffix in (".bin", ".gguf"))
        why = "no weights"
        if others:
            gguf = others[0].suffix == ".gguf"
            why = f"{others[0].name} is a {'GGUF file' if gguf else 'pickle, which can run code'}"
        raise UserError(f"{place} holds no .safetensors file: {why}")
    if variant in offers:
        chosen = variant
    elif None in offers:
        chosen = None
    elif variant is None and len(offers) == 1:
        (chosen,) = offers
    else:
        asked = "" if variant is None else f" but not {variant}"
        raise UserError(f"{place} holds its weights as the variants {names}{asked}: choose one")
    for file in _files(place, offers[chosen]):
        if quantised := read_header(f"{place}:", file).unsupported:
            raise UserError(f"{place}: {quantised}")
    return chosen


def _check_numbers(place: str, config: Path) -> None:
    """Refuse weights that a config calls quantised: their libraries may even be missing."""
    said = read_json(config) if config.is_file() else {}
    quantised = said.get("quantization_config") if isinstance(said, dict) else None
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise UserError(
            f"{place}: its weights are quantised ({method or 'a way unknown here'}), which is not "
            "read from files: load it with diffusers and hand the pipeline to from_pipeline"
        )


def _files(place: str, path: Path) -> list[Path]:
    """The file, or the shards that an index lists.

    Raises:
        UserError: an index that is none, or a shard that is missing.
    """
    if path.suffix != ".json":
        return [path]
    try:
        shards = sorted(set(read_json(path)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{place}: {path.name} is no index of weights") from error
    missing = [shard for shard in shards if not (path.parent / shard).is_file()]
    if missing:
        raise UserError(f"{place}: {listed('shards', missing)} missing")
    return [path.parent / shard for shard in shards]


def listed(what: str, names: list[str]) -> str:
    """Such as «4 of its tensors (a, b, c, …) are»."""
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    verb = "is" if len(names) == 1 else "are"
    return f"{len(names)} of its {what} ({shown}) {verb}"


def reason(error: BaseException) -> str:
    """Why a library could not load a file."""
    text = str(error).strip() or type(error).__name__
    if "meta tensor" in text:  # what diffusers makes of a checkpoint with gaps
        return "some of its weights are missing"
    if "tiktoken" in text or "sentencepiece" in text.lower():
        return (
            "its tokenizer is no SentencePiece model that can be read: it is damaged, or the "
            "package sentencepiece is missing"
        )
    if "Target modules" in text:
        return "none of its layers is of a network that the model has"
    if "infer state dict type" in text:
        return "diffusers cannot tell how the layers of its text encoder are named"
    if "size mismatch" in text or "but expected" in text or "shape" in text:
        return "its weights have other shapes than the model: it is one of another kind"
    listed_parts = re.search(r"expected \[(.*?)\], but only \{(.*?)\} were passed", text)
    if listed_parts:
        expected, passed = (set(re.findall(r"\w+", part)) for part in listed_parts.groups())
        return f"it lacks the {', '.join(sorted(expected - passed))}"
    lacks = re.search(r"(\S+) does not appear to have a file named (\S+?)\.?$", text)
    if lacks:
        return f"{lacks[1]} has no {lacks[2]}, or the hub cannot be reached"
    if re.search(r"offline|connect|cached locally|outgoing traffic|Repository Not Found", text):
        return "it is not in the local cache, and the hub has none or cannot be reached"
    return f"{type(error).__name__}, {text.splitlines()[0]}"
