"""Write what travels with the packages: the pipeline, classifiers, references and prompts."""

import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from stepsearch.metrics.features import EXTRACTORS, load_extractor
from stepsearch.metrics.reference import fit
from stepsearch.paths import bundled, write_whole

from . import text
from .data import HELD_OUT_TEMPLATES, load_split, prompts
from .state import Average, load_state, save_state
from .unet import Both, build, scheduler

DATA = "fashion-mnist"
SEARCH_IMAGES = 20_000  # training images behind the reference of the search


def write_pipeline(run: Path, width: int, seed: int, folder: Path) -> None:
    """The averaged weights of a training run as a Stable Diffusion pipeline in float16."""
    tokenizer = text.build_tokenizer(run / "tokenizer")
    both = Both(build(width, 96), text.build_encoder(tokenizer))
    average = Average(both, 0.0)
    info = load_state(
        run / f"unet-{width}-{seed}", both, average, torch.optim.AdamW(both.parameters())
    )
    if not info:
        sys.exit(f"{run}: no training of width {width} and seed {seed} to bundle")
    average.copy_to(both)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(run / "vae"),
        text_encoder=both.encoder,
        tokenizer=tokenizer,
        unet=both.unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(dtype=torch.float16)
    temporary = folder.with_name(folder.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline.save_pretrained(temporary, safe_serialization=True)
    for name in ("vocab.json", "merges.txt"):  # for releases of transformers before 5
        shutil.copy(run / "tokenizer" / name, temporary / "tokenizer" / name)
    # stored in half precision, to be loaded in single: transformers follows this entry, while
    # diffusers loads the other parts in float32 unless told otherwise
    config = temporary / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"float16"', '"float32"'))
    config = temporary / "vae" / "config.json"  # without the place that it was read from
    known = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
    config.write_text(json.dumps(known, indent=2) + "\n")
    for file in temporary.rglob("*.safetensors"):
        file.chmod(0o644)
    if (folder / "README.md").exists():  # the model card
        shutil.copy(folder / "README.md", temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    print(f"{folder}: {info['images']:,} training images, {info['seconds'] / 60:.0f} minutes")


def unpack(folder: Path, run: Path, width: int, seed: int) -> None:
    """Make a training run out of a bundled pipeline, to train it further; its clock is at zero."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.vae.save_pretrained(run / "vae")
    for name in ("vocab.json", "merges.txt"):
        (run / "tokenizer").mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "tokenizer" / name, run / "tokenizer")
    both = Both(pipeline.unet, pipeline.text_encoder)
    info = {"step": 0, "images": 0, "seconds": 0.0}
    optimizer = torch.optim.AdamW(both.parameters())
    save_state(run / f"unet-{width}-{seed}", both, Average(both, 0.0), optimizer, info)
    for name in ("texture", "judge"):
        shutil.copy(bundled(f"{name}.safetensors"), run / f"{name}.safetensors")


def write_evaluation(run: Path, data: Path) -> None:
    """Classifiers, prompts, and the reference statistics of every extractor."""
    for name in ("texture", "judge"):
        write_whole(
            bundled(f"{name}.safetensors"),
            lambda path, name=name: shutil.copy(run / f"{name}.safetensors", path),
        )
    listed = {"train": prompts(), "held_out": prompts(HELD_OUT_TEMPLATES)}
    body = ",\n".join(
        f'"{part}": [\n' + ",\n".join(json.dumps(pair) for pair in pairs) + "\n]"
        for part, pairs in listed.items()
    )
    write_whole(bundled(f"{DATA}-prompts.json"), lambda path: path.write_text(f"{{\n{body}\n}}\n"))
    rgb = [
        [
            x[:, None].expand(-1, 3, -1, -1)
            for x in load_split(data, split)[0][:SEARCH_IMAGES].split(500)
        ]
        for split in ("train", "t10k")
    ]
    for name in EXTRACTORS:
        reference = fit(load_extractor(name), *rgb)
        reference.save(bundled(f"{DATA}-{name}.safetensors"))
        print(f"{name}: {reference.metric} of {reference.search.n} and {reference.test.n} images")
