"""Folders of modular pipelines: blocks by name, and components that may lie in other places."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stepsampler.errors import UserError
from stepsampler.models.additions import read_vae
from stepsampler.models.parts import BROKEN, MODULAR_INDEX, check_texts, choose, read_part, reason
from stepsampler.models.stock.modular import ModularModel
from stepsampler.support.files import read_json
from stepsampler.support.weights import SUFFIX

LIBRARIES = ("diffusers", "transformers")
FROM_TEXTS = ("text2image", "text2video")  # workflows of blocks that know several
# Classes that stand for whatever the component's own config names
ANY = ("AutoModel", "ModelMixin", "PreTrainedModel")
NEEDED = ("scheduler", "unet", "transformer", "vae")  # by the beginnings of their names
FILES = ("*.json", f"*{SUFFIX}", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True)
class Component:
    """Of a modular pipeline: its class, where its files lie, and which weights of them."""

    cls: Any
    folder: Path
    variant: str | None

    @property
    def is_network(self) -> bool:
        return isinstance(self.cls, type) and issubclass(self.cls, torch.nn.Module)


def read_modular(
    name: str, folder: Path, dtype: torch.dtype, variant: str | None, vae: str | None
) -> Any:
    """The modular pipeline of a folder with the components that pictures or videos of texts need.

    Each network is read as of other folders. diffusers would go on without a component that it
    cannot load, with other blocks where it does not know those of the index, and, if somebody says
    yes, with code of the folder.

    Raises:
        UserError: code of its own, unknown blocks or classes, a pipeline of another kind, or a
            component that is missing or cannot be read.
    """
    pipeline, found = open_modular(name, folder)
    if vae is not None and "vae" not in found:
        raise UserError(f"model {name!r} has no vae that could be replaced")
    nets = {part: each for part, each in found.items() if each.is_network}
    if vae is not None:
        nets.pop("vae")
    places = {part: f"model {name!r}: {part}" for part in found}
    wanted = {part: variant or each.variant for part, each in nets.items()}
    taken = {part: choose(places[part], nets[part].folder, wanted[part]) for part in nets}
    if variant is not None and variant not in taken.values():
        raise UserError(f"model {name!r} has no weights of the variant {variant}")
    parts: dict[str, Any] = {}
    for part, each in found.items():
        if part == "vae" and vae is not None:
            config = each.cls.load_config(str(each.folder))
            parts[part] = read_vae(vae, each.cls, config, dtype)
        elif part in nets:
            parts[part] = read_part(places[part], each.cls, each.folder, dtype, wanted[part])
        else:
            try:
                parts[part] = each.cls.from_pretrained(str(each.folder))
            except BROKEN as error:
                raise UserError(f"{places[part]} cannot be loaded: {reason(error)}") from error
    pipeline.update_components(**parts)
    return pipeline


def outline_modular(name: str, folder: Path) -> Any:
    """The same without weights, of files on this machine alone.

    Raises:
        UserError: as `read_modular` would, as far as configs tell.
    """
    from accelerate import init_empty_weights  # type: ignore[import-untyped]

    pipeline, found = open_modular(name, folder, local=True)
    parts: dict[str, Any] = {}
    for part, each in found.items():
        place = str(each.folder)
        with init_empty_weights(include_buffers=False):
            if not each.is_network:
                parts[part] = each.cls.from_pretrained(place)
            elif hasattr(each.cls, "config_class"):  # of transformers
                parts[part] = each.cls(each.cls.config_class.from_pretrained(place))
            else:
                parts[part] = each.cls.from_config(each.cls.load_config(place))
    pipeline.update_components(**parts)
    return pipeline


def open_modular(name: str, folder: Path, local: bool = False) -> tuple[Any, dict[str, Component]]:
    """A folder's pipeline without components, and what there is to load of these, by name.

    A component of another repository is fetched, unless `local`: then it must be in the cache.

    Raises:
        UserError: as `read_modular`.
    """
    entries = _entries(name, folder)
    cls = _class(name, folder, entries)
    hints = {key: _hint(name, key, value) for key, value in entries.items() if _is_spec(value)}
    try:
        pipeline = cls(pretrained_model_name_or_path=str(folder), modular_config_dict=entries)
    except BROKEN as error:
        raise UserError(f"model {name!r} cannot be loaded: {reason(error)}") from error
    why = ModularModel._why_not(pipeline)
    if why:
        raise UserError(f"a {cls.__name__} cannot run a schedule: {why}")
    found = {}
    for part in _wanted(pipeline):
        spec = pipeline.get_component_spec(part)
        if spec.default_creation_method == "from_config":  # made with the pipeline
            continue
        if spec.pretrained_model_name_or_path is None:
            if part.startswith(NEEDED):
                raise UserError(f"model {name!r} cannot be loaded: it lacks the {part}")
            continue
        own = _place(name, part, folder, spec, local)
        check_texts(f"model {name!r}: {part}", own)
        kind = _named(name, part, own, hints.get(part) or spec.type_hint)
        found[part] = Component(kind, own, spec.variant)
    return pipeline, found


def _entries(name: str, folder: Path) -> dict[str, Any]:
    try:
        entries = read_json(folder / MODULAR_INDEX)
    except ValueError as error:
        raise UserError(f"model {name!r}: {MODULAR_INDEX} is no JSON, or cut off") from error
    if not isinstance(entries, dict):
        raise UserError(f"model {name!r}: {MODULAR_INDEX} is not JSON as expected")
    return entries


def _class(name: str, folder: Path, entries: dict[str, Any]) -> Any:
    """The pipeline's class, if it and its blocks are diffusers' own."""
    import diffusers

    from stepsampler.models.loading import pipeline_class

    code = folder / "modular_config.json"
    if "auto_map" in entries or (code.is_file() and "auto_map" in code.read_text("utf-8")):
        raise UserError(
            f"model {name!r} brings blocks of its own as code (auto_map), which is not run: load it"
            " with diffusers and hand it to from_pipeline"
        )
    cls: Any = pipeline_class(f"model {name!r}: {MODULAR_INDEX}", entries.get("_class_name"))
    if diffusers.ModularPipeline not in getattr(cls, "__mro__", ()):
        raise UserError(
            f"model {name!r}: {MODULAR_INDEX} must name a modular pipeline as its _class_name, got "
            f"{entries['_class_name']!r}"
        )
    blocks = entries.get("_blocks_class_name") or cls.default_blocks_name
    if not getattr(getattr(diffusers, str(blocks), None), "block_classes", None):
        raise UserError(
            f"model {name!r}: its blocks are {blocks!r}, which diffusers {diffusers.__version__} "
            "does not have; diffusers itself would take others in their place"
        )
    return cls


def _is_spec(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and isinstance(value[2], dict)


def _hint(name: str, part: str, value: Any) -> Any:
    """The class that an entry names; None where it names none."""
    library, cls = value[2].get("type_hint") or (None, None)
    if cls is None:
        value[2]["type_hint"] = (None, None)
        return None
    module = importlib.import_module(library) if library in LIBRARIES else None
    if module is None or not hasattr(module, str(cls)):
        where = f"{library} {module.__version__}" if module else f"the library {library!r}"
        why = f"which {where} does not have" if module else f"of {where}, whose code is not run"
        raise UserError(f"model {name!r}: its {part} is a {cls}, {why}")
    return getattr(module, cls)


def _named(name: str, part: str, folder: Path, hint: Any) -> Any:
    """The class of a component; that of its config where the index names a general one."""
    general = hint is None or hint.__name__ in ANY
    if (general or hint.__name__.startswith("Auto")) and not _is_autoencoder(hint):
        for file in sorted(folder.glob("*config.json")):
            if "auto_map" in read_json(file):
                raise UserError(
                    f"model {name!r}: its {part} brings code of its own (auto_map in {file.name}), "
                    "which is not run"
                )
    if not general:
        return hint
    file = folder / "config.json"
    said = read_json(file) if file.is_file() else {}
    named = said.get("_class_name") or next(iter(said.get("architectures") or ()), None)
    library = LIBRARIES[0] if "_class_name" in said else LIBRARIES[1]
    entry = {"type_hint": (library, named or "class without a name")}
    return _hint(name, part, [None, None, entry])


def _is_autoencoder(hint: Any) -> bool:
    return hint is not None and hint.__name__.startswith("Autoencoder")


def _wanted(pipeline: Any) -> list[str]:
    """The components that making pictures or videos of texts needs, as far as blocks tell."""
    try:
        flows = set(pipeline.blocks.available_workflows)
    except NotImplementedError:
        flows = set()
    every = [
        {spec.name for spec in pipeline.blocks.get_workflow(flow).expected_components}
        for flow in FROM_TEXTS
        if flow in flows
    ]
    names: list[str] = pipeline.component_names
    return [part for part in names if not every or any(part in each for each in every)]


def _place(name: str, part: str, folder: Path, spec: Any, local: bool) -> Path:
    """Where the files of a component lie: in the folder itself, or in another repository."""
    from huggingface_hub import snapshot_download

    source, inside = str(spec.pretrained_model_name_or_path), spec.subfolder or ""
    place = f"model {name!r}: its {part}"
    if source.endswith(SUFFIX) or "://" in source:
        raise UserError(f"{place} is {source!r}, not a folder or hub id, which is not supported")
    if Path(source).is_dir():
        found = Path(source, inside)
    else:
        files = [str(Path(inside, pattern)) for pattern in FILES]
        try:
            at = snapshot_download(
                source, revision=spec.revision, allow_patterns=files, local_files_only=local
            )
        except BROKEN as error:
            raise UserError(
                f"{place} lies in {source!r}, which is no folder here, nor in the local cache, and "
                "the hub has none or cannot be reached"
            ) from error
        found = Path(at, inside)
    if not found.is_dir():
        raise UserError(f"{place} lies in {str(found)!r}, which is no folder")
    return found
