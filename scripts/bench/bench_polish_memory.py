"""The memory of a polish: measured on the bundled model, counted for Stable Diffusion's networks.

    python scripts/bench/bench_polish_memory.py

Measured is by how much the peak of a process (Linux) grows when it makes images of three steps in
batches, and when it takes the objective's gradient of as many. Counted is, on torch's meta device
and so without any weights, what autograd keeps of one call of the U-Net under guidance and of one
decoding by the VAE, for one image and in float32, with and without computing layers again. A
polish does so with networks as large as these, and never holds the two at once.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpu.shapes import UNETS, parts

from stepsampler.grids import from_sigmas
from stepsearch.config import StudyConfig
from stepsearch.metrics.evaluator import Evaluator
from stepsearch.polish.knobs import Knobs
from stepsearch.polish.objective import Objective

MIB, GIB = 2**20, 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[50, 150])
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "IMAGES"), help="MB of one, no table")
    args = parser.parse_args()
    if args.one:
        print(grown(args.one[0], int(args.one[1]), args.batch))
        return
    print("| images | sampling, MB | polish, MB | ratio |\n|---|---|---|---|")
    for n in args.images:
        sampling, polish = (measured(what, n, args.batch) for what in ("sampling", "polish"))
        print(f"| {n} | {sampling:.0f} | {polish:.0f} | {polish / sampling:.2f} |")
    heads = ("weights", "U-Net keeps", "VAE keeps", "the U-Net again", "the VAE again")
    print(f"\n| GiB, float32, one image | {' | '.join(heads)} |\n|---{'|---' * len(heads)}|")
    for name in UNETS:
        print(f"| {name} | {' | '.join(f'{value / GIB:.1f}' for value in counted(name))} |")


def measured(what: str, images: int, batch: int) -> float:
    """In a process of its own, as a peak never falls."""
    call = [sys.executable, __file__, "--one", what, str(images), "--batch", str(batch)]
    return float(subprocess.run(call, check=True, capture_output=True, text=True).stdout)


def grown(what: str, images: int, batch: int) -> float:
    """MiB by which the peak grew, after a first batch of two that loads what is loaded once."""
    torch.set_num_threads(1)
    evaluation = {"extractor": "texture+lite0", "batch_size": batch}
    space = {"num_steps": 3, "passes": 6}
    study = {"name": "memory", "space": space, "evaluation": evaluation}
    with tempfile.TemporaryDirectory() as folder:
        evaluator = Evaluator(StudyConfig.model_validate(study), Path(folder))
        sigmas = [evaluator.model.noise.sigma_max, 2.0, 0.5]
        plan = from_sigmas(sigmas, 0.05, [2.0] * 3, 2, model=evaluator.model.spec)
        knobs = Knobs(plan, "gain")
        objective = Objective(evaluator)
        do: dict[str, Callable[[range], Any]] = {
            "sampling": lambda seeds: evaluator.measure(plan, seeds),
            "polish": lambda seeds: objective(knobs, knobs.zero(), seeds),
        }
        do[what](range(2))
        before = peak()
        do[what](range(1000, 1000 + images))
    return (peak() - before) / MIB


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def counted(name: str) -> list[int]:
    """Bytes of all weights; kept by the U-Net and by the VAE; the same two computing again."""
    with torch.device("meta"):
        networks = parts(name)
        for network in networks.values():
            network.eval().requires_grad_(False)
        unet, vae = networks["unet"], networks["vae"]
        weights = [p for network in networks.values() for p in network.parameters()]
        size, width = UNETS[name]["sample_size"], UNETS[name]["cross_attention_dim"]
        more = {"text_embeds": torch.empty(2, 1280), "time_ids": torch.empty(2, 6)}
        texts, time = torch.empty(2, 77, width), torch.tensor(500.0)
        called = {"added_cond_kwargs": more} if name == "sdxl" else {}
        latents = torch.empty(1, 4, size, size, requires_grad=True)
        both = latents.expand(2, -1, -1, -1)  # with the prompt and without
        found = [sum(p.nbytes for p in weights)]
        for again in (False, True):
            if again:
                unet.enable_gradient_checkpointing()
                vae.enable_gradient_checkpointing()
            found.append(kept(lambda: unet(both, time, texts, **called)[0], weights))
            found.append(kept(lambda: vae.decode(latents)[0], weights))
    return found


def kept(call: Callable[[], Any], weights: list[Any]) -> int:
    """Bytes of what autograd saves, but for the weights; what shares memory counts once."""
    own = {id(weight.untyped_storage()) for weight in weights}
    storages: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in own:
            storages[id(storage)] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(storage.nbytes() for storage in storages.values())


if __name__ == "__main__":
    main()
