"""Read pipelines from folders, hub ids and single files. Weights come from safetensors alone."""

import importlib
import importlib.resources
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from stepsampler.errors import UserError
from stepsampler.models.additions import read_vae
from stepsampler.models.leftovers import check_whole, compare_noise, note_left_out
from stepsampler.models.markers import check_file, heed
from stepsampler.models.parts import (
    BROKEN,
    MODULAR_INDEX,
    PLAIN_INDEX,
    check_place,
    check_texts,
    choose,
    index_of,
    read_part,
    reason,
)
from stepsampler.support.files import read_json
from stepsampler.support.options import ModelOptions
from stepsampler.support.weights import EPSILON, V, is_weights_file, read_header

BUNDLED = ("tiny", "tiny-second")  # the second: another seed, half the training
# Parts of stock pipelines that are not sampled with
NEEDLESS = ("safety_checker", "feature_extractor", "prompt_enhancer")
NEEDLESS_IF_OPTIONAL = ("processor",)  # other pipelines read texts by it
TEXTS = "cond_stage_model.transformer."  # CLIP of Stable Diffusion 1.x
OLD_TEXTS = (f"{TEXTS}embeddings.", f"{TEXTS}encoder.")  # without text_model.
# Whose configs a file of Stable Diffusion 2.x has: 512 pixels, or 768
SD2 = {
    EPSILON: "stabilityai/stable-diffusion-2-1-base",
    V: "stabilityai/stable-diffusion-2-1",
}


def resolve(name: str) -> str:
    """Folder of a bundled model, or the name itself: a local folder or a hub id."""
    if name in BUNDLED:
        return str(importlib.resources.files("stepsampler") / "bundled" / name)
    return name


def read_pipeline(options: ModelOptions) -> Any:
    """A pipeline from a folder, a hub id or a single .safetensors checkpoint.

    `config` is the folder or hub id whose configs a single file's model has; by default diffusers
    recognises the model and takes them from the hub. `variant` is which of a folder's weights,
    such as fp16; by default those without a variant, or else the only one. `prediction_type` and
    `zero_snr` overrule what file and config say. `vae` takes the place of the model's own.

    Raises:
        UserError: nothing there, a pickle, weights that cannot be read, or markers that say what
            is not supported or contradict each other or the config.
    """
    name, folder, dtype = options.id, resolve(options.id), getattr(torch, options.dtype)
    config, vae = (place and resolve(place) for place in (options.config, options.vae))
    if is_weights_file(name):
        if options.variant is not None:
            raise UserError(f"a variant goes with a folder or hub id, not with the file {name!r}")
        return _read_single_file(options, config, vae)
    if config is not None:
        raise UserError(f"a config goes with a single .safetensors file, not with {name!r}")
    check_place("model", folder)
    pipeline = _read_folder(name, folder, dtype, options.variant, vae)
    heed(pipeline, options)
    return pipeline


def _read_folder(
    name: str, folder: str, dtype: torch.dtype, variant: str | None, vae: str | None
) -> Any:
    passed: dict[str, Any] = dict.fromkeys(NEEDLESS) | ({} if vae is None else {"vae": None})
    try:
        if not Path(folder).is_dir():
            folder = _downloaded(folder, variant=variant, use_safetensors=True, **passed)
        if is_modular(Path(folder)):
            from stepsampler.models.stock.folders import read_modular

            return read_modular(name, Path(folder), dtype, variant, vae)
        classes = _parts(name, Path(folder))
        if vae is not None:
            if "vae" not in classes:
                raise UserError(f"model {name!r} has no vae that could be replaced")
            cls = classes.pop("vae")
            config = cls.load_config(folder, subfolder="vae")
            passed["vae"] = read_vae(vae, cls, config, dtype)
        places = {part: f"model {name!r}: {part}" for part in classes}
        taken = {part: choose(places[part], Path(folder, part), variant) for part in classes}
        if variant is not None and variant not in taken.values():
            raise UserError(f"model {name!r} has no weights of the variant {variant}")
        for part, cls in classes.items():
            passed[part] = read_part(places[part], cls, Path(folder, part), dtype, variant)
        own, absent = _own_class(Path(folder))
        passed = absent | passed
        return own.from_pretrained(folder, dtype=dtype, use_safetensors=True, **passed)
    except BROKEN as error:
        asked = "" if variant is None else f" in the variant {variant}"
        raise UserError(f"model {name!r} cannot be loaded{asked}: {reason(error)}") from error


def is_modular(folder: Path) -> bool:
    """Whether a folder holds a modular pipeline, and no plain one."""
    index = index_of(folder)
    return index is not None and index.name == MODULAR_INDEX


def _downloaded(name: str, **options: Any) -> str:
    """A folder of the local cache; of a modular pipeline the index alone, whose components lie
    in repositories of their own."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import hf_hub_download

    try:
        return str(DiffusionPipeline.download(name, **options))
    except OSError:
        try:
            return str(Path(hf_hub_download(name, MODULAR_INDEX)).parent)
        except (OSError, ValueError):
            pass  # the first reason is the better one
        raise


def read_outline(options: ModelOptions, folder: Path) -> Any:
    """The pipeline of a folder's configs, whose networks have no weights: quick, and to no end but
    to ask what it can do.

    Raises:
        UserError: as for the pipeline itself.
    """
    from accelerate import init_empty_weights  # type: ignore[import-untyped]

    passed: dict[str, Any] = dict.fromkeys(NEEDLESS)
    try:
        if is_modular(folder):
            from stepsampler.models.stock.folders import outline_modular

            pipeline = outline_modular(options.id, folder)
            heed(pipeline, options)
            return pipeline
        for part, cls in _parts(options.id, folder).items():
            with init_empty_weights():
                if hasattr(cls, "config_class"):  # of transformers
                    passed[part] = cls(cls.config_class.from_pretrained(folder / part))
                else:
                    passed[part] = cls.from_config(cls.load_config(folder / part))
        own, absent = _own_class(folder)
        passed = absent | passed
        pipeline = own.from_pretrained(folder, use_safetensors=True, **passed)
    except BROKEN as error:
        raise UserError(f"model {options.id!r} cannot be loaded: {reason(error)}") from error
    heed(pipeline, options)
    return pipeline


def _parts(name: str, folder: Path) -> dict[str, Any]:
    """The networks of a folder, by name, and their classes."""
    index = folder / PLAIN_INDEX
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        hint = f"; for a single file, give {str(files[0])!r} itself" if files else ""
        raise UserError(f"model {name!r} cannot be loaded: no {PLAIN_INDEX} in the folder{hint}")
    try:
        entries = read_json(index)
        pairs = {k: v for k, v in entries.items() if isinstance(v, list) and len(v) == 2}
    except (ValueError, AttributeError) as error:
        raise UserError(f"model {name!r}: {PLAIN_INDEX} is not JSON as expected") from error
    _check_class(name, entries.get("_class_name"))
    found = {}
    for part, (library, cls) in pairs.items():
        module = None if part in NEEDLESS else _module(library)
        if module is not None:
            known = getattr(module, str(cls), None)
            if known is None:
                raise UserError(
                    f"model {name!r}: its {part} is a {cls}, which {_release(library)} does not "
                    "have"
                )
            check_texts(f"model {name!r}: {part}", folder / part)
            if isinstance(known, type) and issubclass(known, torch.nn.Module):
                found[part] = known
    return found


def _module(library: object) -> Any:
    """Where a part's class lives, which may be a package of pipelines (Kolors); else None."""
    if library in ("diffusers", "transformers"):
        return importlib.import_module(str(library))
    import diffusers.pipelines

    return getattr(diffusers.pipelines, library, None) if isinstance(library, str) else None


def _release(library: str) -> str:
    name = library if library == "transformers" else "diffusers"
    return f"{name} {importlib.import_module(name).__version__}"


def _check_class(name: str, cls: object) -> None:
    """Before gigabytes of weights are read."""
    from stepsampler.models import check_class

    check_class(pipeline_class(f"model {name!r}: {PLAIN_INDEX}", cls))


def _own_class(folder: Path) -> tuple[Any, dict[str, None]]:
    """That which the folder names, and by name the components that it goes without.

    `DiffusionPipeline` itself would read components which a class may lack, as Wan's networks, once
    more and take these, whatever it is passed.
    """
    index = folder / PLAIN_INDEX
    said = read_json(index)
    own = pipeline_class(f"{index}", said["_class_name"])
    needless = (
        part
        for part in own._optional_components
        # or what a folder may lack is named as lacking
        if part in NEEDLESS_IF_OPTIONAL or not said.get(part, [None])[0]
    )
    return own, dict.fromkeys(needless)


def pipeline_class(place: str, name: object) -> Any:
    """A class of diffusers by its name, which stands at `place`.

    Raises:
        UserError: diffusers has none of that name.
    """
    import diffusers

    if not isinstance(name, str) or not hasattr(diffusers, name):
        raise UserError(
            f"{place} must name a pipeline class of diffusers as its _class_name, got {name!r}"
        )
    return getattr(diffusers, name)


def _read_single_file(options: ModelOptions, config: str | None, vae: str | None) -> Any:
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    name, dtype = options.id, getattr(torch, options.dtype)
    header = read_header("model", name)
    said = check_file(options, header)
    if config is not None:
        check_place("config", config)
        for pickle in Path(config).glob("*/*.bin"):  # diffusers would read what the file lacks
            if not any(pickle.parent.glob("*.safetensors")):
                raise UserError(f"config {config!r}: {pickle} is a pickle, which can run code")
    given = config
    if config is None and header.is_sd2 and said in SD2:
        config = SD2[said]
    try:
        cls, config = _single_file_class(name, config)
        parts: dict[str, Any] = {"dtype": dtype}
        if vae is not None:
            parts["vae"] = _vae_by_config(vae, cls, config, dtype)
        if any(key.startswith(OLD_TEXTS) for key in header.tensors):
            parts["text_encoder"] = _old_text_encoder(name, cls, config, dtype)
        pipeline = cls.from_single_file(name, config=config, **parts)
    except SingleFileComponentError as error:
        part = re.search(r"load (\w+)", str(error))
        lacks = part[1] if part else "a part of the model"
        way = ": give one with --vae" if lacks.startswith("Autoencoder") else ""
        raise UserError(f"model {name!r} cannot be loaded: it holds no {lacks}{way}") from error
    except BROKEN as error:
        way = "; its configs can be given with --config" if given is None else ""
        raise UserError(f"model {name!r} cannot be loaded: {reason(error)}{way}") from error
    check_whole(name, pipeline)
    note_left_out(name, header, pipeline)
    heed(pipeline, options, header)
    compare_noise(name, header, pipeline)
    return pipeline


def _single_file_class(name: str, config: str | None) -> tuple[Any, str]:
    """The pipeline class that the config, or else the checkpoint itself, is of; and the config."""
    import diffusers
    from diffusers.loaders.single_file_utils import (
        fetch_diffusers_config,
        load_single_file_checkpoint,
    )

    if config is None:
        checkpoint = load_single_file_checkpoint(name)
        config = str(fetch_diffusers_config(checkpoint)["pretrained_model_name_or_path"])
    found = diffusers.DiffusionPipeline.load_config(config)["_class_name"]
    cls = getattr(diffusers, found)
    if not hasattr(cls, "from_single_file"):
        raise ValueError(f"{found} has no single-file checkpoints")
    return cls, config


def _vae_by_config(vae: str, cls: Any, config: str, dtype: torch.dtype) -> Any:
    """Another VAE than the one that the config has, whether or not the checkpoint has one."""
    import diffusers

    entry = cls.load_config(config).get("vae")
    if not entry:
        raise UserError(f"the {cls.__name__} has no vae that could be replaced")
    vae_cls = getattr(diffusers, entry[1])
    return read_vae(vae, vae_cls, vae_cls.load_config(config, subfolder="vae"), dtype)


def _old_text_encoder(name: str, cls: Any, config: str, dtype: torch.dtype) -> Any:
    """CLIP under the names of early transformers, as in old anime models: diffusers sees none.

    What it lacks stays without numbers, which `check_whole` refuses.
    """
    from accelerate import init_empty_weights

    library, kind = cls.load_config(config)["text_encoder"]
    known = getattr(importlib.import_module(library), kind)
    with init_empty_weights():
        encoder = known(known.config_class.from_pretrained(config, subfolder="text_encoder"))
    head = "text_model." if any(k.startswith("text_model.") for k in encoder.state_dict()) else ""
    weights = {k: v for k, v in load_file(name).items() if k.startswith(TEXTS)}
    found = {head + k.removeprefix(TEXTS): v.to(dtype) for k, v in weights.items()}
    encoder.load_state_dict(found, strict=False, assign=True)
    return encoder.eval()
