"""Our exports in stable-diffusion.cpp itself: how far its images are from those of our loop.

    python scripts/compare_sdcpp.py --folder .sdcpp                  # an hour on two cores
    python scripts/compare_sdcpp.py --folder .sdcpp --write-table    # into docs/schedules.md

Needs git, cmake, a compiler, 10 GB of disk and of memory, once the network, and the environment of
the tests. Clones and builds the commit below unless FOLDER/stable-diffusion.cpp/build/bin/sd-cli is
there, makes a model of Stable Diffusion 1.5's shape with random weights, and keeps every image: the
same command goes on where it was stopped. Each schedule is run with exactly the arguments that
`stepsample export --to sd.cpp` writes, at 128 pixels.
"""

import argparse
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stepsampler import Schedule, load
from stepsampler.errors import UserError
from stepsampler.formats import Target, export
from stepsampler.formats.common import build
from stepsampler.formats.sdcpp import SAMPLERS
from stepsampler.generate import generate
from stepsampler.grids import make_schedule
from stepsampler.models import LatentModel, from_pipeline, quiet
from stepsampler.noise import NoiseSchedule
from stepsampler.presets import MODELS, names, preset

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "schedules.md"
BEGIN, END = "<!-- scripts/compare_sdcpp.py --write-table -->\n", "<!-- end -->\n"
REPOSITORY = "https://github.com/leejet/stable-diffusion.cpp"
COMMIT = "97d2990807fe6d558e395f8764198d7c7e7b411c"  # of 19 August 2026
SIZE, SEED, PROMPT = 128, 3, "a photo of a fox in the snow"
PER_STEP = "guidance per step, `--for-version "


class Case(NamedTuple):
    """A schedule under one version of the list of guidance."""

    row: str  # of the table
    name: str
    schedule: Schedule
    version: str | None = None


def compiled(source: Path) -> Path:
    """The program of the pinned commit, built for the CPU."""
    program = source / "build" / "bin" / "sd-cli"
    if not program.exists():
        git = ["git", "-C", str(source)]
        for command in (
            ["git", "clone", "--filter=blob:none", "--no-checkout", REPOSITORY, str(source)],
            [*git, "checkout", COMMIT],
            [*git, "submodule", "update", "--init", "ggml"],
            ["cmake", "-S", source, "-B", source / "build", "-DSD_WEBP=OFF", "-DSD_WEBM=OFF"],
            ["cmake", "--build", source / "build", "--target", "sd-cli", "--parallel", "2"],
        ):
            subprocess.run(command, check=True)
    return program


def tokenizer(source: Path) -> Any:
    """CLIP's, from the list that is compiled into the program."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    text = (source / "src/tokenizers/vocab/clip_merges.hpp").read_text()
    numbers = re.findall(r"0x[0-9a-f]{2}", text)
    lines = bytes(int(number, 16) for number in numbers).decode().split("\n")
    merges = [(a, b) for line in lines[1:] for a, _, b in [line.partition(" ")] if b]
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += [a + b for a, b in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


@torch.no_grad()
def pipeline(source: Path, folder: Path) -> Any:
    """Stable Diffusion 1.5's classes and shape, random weights; saved as diffusers does."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    if (folder / "model_index.json").exists():
        return StableDiffusionPipeline.from_pretrained(folder)
    torch.manual_seed(0)
    width = (128, 256, 512, 512)
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    vae = AutoencoderKL(3, 3, down, up, width, layers_per_block=2, sample_size=512)
    unet = UNet2DConditionModel(64, cross_attention_dim=768)
    large = {"hidden_size": 768, "intermediate_size": 3072}
    text = CLIPTextConfig(num_hidden_layers=12, num_attention_heads=12, **large)
    made = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer(source),
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    # Weights as drawn hardly listen to the prompt, and give grey images.
    for name, module in unet.named_modules():
        if name.endswith("attn2.to_out.0"):
            module.weight.mul_(4.0)
    model = from_pipeline(made, SIZE)
    x = torch.randn(1, *model.shape)
    for part, output, deviation in (
        (unet.conv_out, lambda: model.network(x, 500.0, model.encode([PROMPT])), 1.0),
        (vae.decoder.conv_out, lambda: model._decoded(x), 0.4),
    ):
        part.weight.mul_(deviation / output().std())
    made.save_pretrained(folder)
    file = folder / "text_encoder" / "model.safetensors"
    weights = load_file(
        file
    )  # transformers 5 leaves the prefix away, by which they are known there
    save_file({f"text_model.{key}": value for key, value in weights.items()}, file)
    return made


def _varies(schedule: Schedule) -> bool:
    return len({step.guidance_scale for step in schedule.steps}) > 1


def _versions(row: str, name: str, schedule: Schedule, *others: str) -> Iterator[Case]:
    """Guidance per step for its version and `others`, in rows of their own."""
    schedule = replace(schedule, model=MODELS["sd15"])
    if not _varies(schedule):
        yield Case(row, name, schedule)
        return
    for version in ("97d2990", *others):
        wrong = "" if version == "97d2990" else ", meant for versions after this one"
        yield Case(f"{PER_STEP}{version}`{wrong}", name, schedule, version)


def cases() -> Iterator[Case]:
    """Our studies, one of each rule, and the shortest of each group of presets."""
    for file in sorted((ROOT / "studies").glob("*.schedule.json")):
        yield from _versions("studies", file.name.split(".")[0], load(file), "mended")
    noise = NoiseSchedule.scaled_linear()
    target = Target(noise, MODELS["sd15"])
    sigmas = [step.sigma for step in make_schedule("karras", 5, noise).steps]
    for name, sampler in SAMPLERS.items():
        levels = [*sigmas[:-1], 0.0] if sampler.lowers_last else sigmas
        for row, ends, scales in (
            ("one scale", levels, [5.0] * 4),
            ("no guidance", levels, [1.0] * 4),
            ("last sigma above 0", sigmas, [5.0] * 4),
            ("unguided at both ends", levels, [1.0, 5.0, 5.0, 1.0]),
            ("falling scales", levels, [7.0, 4.0, 1.0, 2.0]),
        ):
            plan = build(ends, scales, sampler, target)
            if row != "last sigma above 0" or sampler.lowers_last:
                yield from _versions(f"`{name}`, {row}", f"{name}, {row}", plan)
    groups: dict[str, tuple[str, Schedule]] = {}
    for name in names():
        found = preset(name)
        if found.model in ("sd15", "sdxl") and 3 <= found.schedule.num_steps <= 10:
            plan = replace(found.schedule, model=MODELS["sd15"])
            group = "-".join(name.split("-")[:2])
            shortest = group not in groups or plan.num_steps < groups[group][1].num_steps
            if shortest and _is_held(plan):
                groups[group] = name, plan
    for name, plan in groups.values():
        yield from _versions("presets, shortest of each kind", name, plan)


def _is_held(plan: Schedule) -> bool:
    try:
        export(plan, "sd.cpp", version="97d2990")
    except UserError:
        return False
    return True


def theirs(program: Path, model: Path, arguments: str, out: Path) -> np.ndarray[Any, Any]:
    """The program's image, made once; its words lie beside it."""
    said = out.with_suffix(".txt")
    known = out.exists() and said.exists()
    if not known or not said.read_text(encoding="utf-8").startswith(arguments + "\n"):
        command = [str(program), "-m", str(model), "-p", PROMPT, "-o", str(out), "--mmap"]
        command += ["-W", str(SIZE), "-H", str(SIZE), "--seed", str(SEED), "--rng", "cpu", "-v"]
        command += ["-t", str(torch.get_num_threads())]
        done = subprocess.run(
            [*command, *shlex.split(arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        text = done.stdout.decode(errors="replace")
        said.write_text(f"{arguments}\n{text}", encoding="utf-8")
        if done.returncode or not out.exists():
            raise SystemExit(f"{shlex.join(command)} {arguments}: {text[-2000:]}")
    return np.asarray(Image.open(out).convert("RGB")).astype(int)


def ours(model: LatentModel, schedule: Schedule, out: Path) -> np.ndarray[Any, Any]:
    if not out.exists():
        (batch,) = generate(model, schedule, [PROMPT], [SEED])
        Image.fromarray(batch.images[0].permute(1, 2, 0).numpy()).save(out)
    return np.asarray(Image.open(out)).astype(int)


def table(rows: dict[str, list[tuple[int, float] | None]]) -> str:
    lines = [
        "| schedules | images | greatest difference in grey levels | mean difference |",
        "|---|---|---|---|",
    ]
    for row, found in rows.items():
        made = [pair for pair in found if pair]
        refused = len(found) - len(made)
        cells = [str(max(d for d, _ in made)), f"{max(m for _, m in made):.2f}"] if made else []
        cells = cells or ["refused", "-"]
        count = f"{len(made)}" + (f" ({refused} refused)" if refused and made else "")
        lines.append(f"| {row} | {count} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--write-table", action="store_true")
    args = parser.parse_args(argv)
    quiet()
    source, images = args.folder / "stable-diffusion.cpp", args.folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    program = compiled(source)
    model = from_pipeline(pipeline(source, args.folder / "model"), SIZE)
    rows: dict[str, list[tuple[int, float] | None]] = {}
    for case in cases():
        plain = re.sub(r"\W+", "-", case.name)
        name = f"{plain}-{case.version}" if case.version else plain
        try:
            arguments = export(case.schedule, "sd.cpp", version=case.version).text.strip()
        except UserError as error:
            print(f"{case.name}: refused: {error}", flush=True)
            rows.setdefault("Heun, guidance per step", []).append(None)
            continue
        mine = ours(model, case.schedule, images / f"{plain}.ours.png")
        other = theirs(program, args.folder / "model", arguments, images / f"{name}.png")
        difference = np.abs(mine - other)
        found = int(difference.max()), float(difference.mean())
        rows.setdefault(case.row, []).append(found)
        print(f"{found[0]:3d} {found[1]:.3f} {case.name}: {arguments}", flush=True)
    print(table(rows))
    if args.write_table:
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        text = before + BEGIN + table(rows) + END + rest.split(END, 1)[1]
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
