"""What it costs that a pipeline samples itself under a schedule, and what our own loop saves.

    python scripts/bench/bench_stock.py --rounds 30    # on Linux

From prompts to images, on tiny random pipelines at a size where networks take most of the time, one
thread. Both sides of a ratio have the same levels and passes, take turns in one process, and who
begins alternates; no encoded prompt is kept. Times are CPU seconds of this process. Ratios are
medians over the rounds, with a bootstrap 95 % interval. Last, the peak of memory that loading a
random model of 1 GB and a first image take, in a process of its own, over the size of its files.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from bench_sampler import interleave

from cluster.builds import report
from stepsampler.generate import generate
from stepsampler.grids import from_sigmas
from stepsampler.models import LatentModel, from_pipeline, load, quiet
from stepsampler.models.stock import StockModel
from stepsampler.support.scales import called
from stepsearch.rehearsal.miniatures import EVERY

STEPS, SCALE, BATCH = 6, 3.0, 2
PROMPTS, NEGATIVE = ["a red bag", "two blue shoes"], ["blurry", "blurry"]
ITSELF = {"bria": 192, "cogview4": 192, "ovis-image": 192}  # a doubled batch, and two calls
OWN = {"chroma": 192, "krea2": 192, "qwen-image": 192, "z-image": 192}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet()
    if options.load:
        print(json.dumps(peak_of(options.load)))
        return
    torch.set_num_threads(1)
    for name, size in ITSELF.items():
        model = from_pipeline(EVERY[name](), size, stock=True)
        runs = [ours(model), theirs(model, SCALE)]
        compare(f"{name} by itself / with its own scheduler", runs, options.rounds, "<= 1.02")
    for name, size in OWN.items():
        model = from_pipeline(EVERY[name](), size)
        stock = from_pipeline(EVERY[name](), size, stock=True)
        scale = SCALE - called(name, model.guidance).less
        runs = [ours(model), theirs(stock, scale)]
        compare(f"{name} in our loop / its pipeline", runs, options.rounds, "<= 1.00")
    print("memory of loading 1 GB:", end=" ", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        size = write_large(Path(folder))
        command = [sys.executable, __file__, "--load", folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    before, after = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{(after - before) / size:.3f} x the {size / 1e9:.2f} GB of its files, over the "
        f"{before / 1e9:.2f} GB of an empty process, wanted <= 1.15"
    )


def compare(what: str, runs: list[Callable[[], torch.Tensor]], rounds: int, wanted: str) -> None:
    difference = int((runs[0]().int() - runs[1]().int()).abs().max())
    times = interleave(runs, rounds)
    report(what, times[0] / times[1], wanted)
    print(f"  images differ by at most {difference} of 255; {min(times[1]):.2f} s a call")


def theirs(model: StockModel, scale: float) -> Callable[[], torch.Tensor]:
    """The pipeline with its own scheduler."""
    by = model.options(PROMPTS, range(BATCH), NEGATIVE, STEPS, scale)

    def run() -> torch.Tensor:
        seeds = [torch.Generator().manual_seed(seed) for seed in range(BATCH)]
        fresh = {"prompt": list(PROMPTS), "negative_prompt": list(NEGATIVE), "generator": seeds}
        images, passes = model.call(by | fresh)
        assert passes == 2 * STEPS
        return (images * 255).round()

    return run


def ours(model: LatentModel | StockModel) -> Callable[[], torch.Tensor]:
    """The same levels as a schedule."""
    stock = from_pipeline(model.pipeline, model.size, stock=True)
    theirs(stock, SCALE)()  # which sets the levels
    *sigmas, last = stock.pipeline.scheduler.sigmas.tolist()
    schedule = from_sigmas(sigmas, last, [SCALE] * STEPS, 1, "ddim", model.spec)
    schedule = replace(schedule, guidance=model.guidance)

    def run() -> torch.Tensor:
        if isinstance(model, LatentModel):
            model._encoded.clear()
        (made,) = generate(
            model, schedule, PROMPTS, range(BATCH), negative_prompts=NEGATIVE, batch_size=BATCH
        )
        return made.images

    return run


def write_large(folder: Path) -> int:
    """A pipeline with a transformer of about 1 GB; returns the bytes of its weights."""
    from diffusers import CogView4Transformer2DModel

    pipeline = EVERY["cogview4"]()
    large = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=20,
        attention_head_dim=64,
        num_attention_heads=16,
        text_embed_dim=32,
        time_embed_dim=16,
        condition_dim=16,
        rope_axes_dim=(32, 32),
    )
    pipeline.register_modules(transformer=large)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def peak_of(folder: str) -> tuple[int, int]:
    """Of this process's memory before and after a model is loaded, in bytes."""
    load("tiny")  # what is imported and made at first use
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _memory("VmRSS")
    model = load(folder, size=32)
    schedule = from_sigmas([1.0], 0.0, [1.0], 1, "ddim", model.spec)
    list(generate(model, schedule, ["a bag"], [0]))  # files that are mapped are read at first use
    return before, _memory("VmHWM")


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
