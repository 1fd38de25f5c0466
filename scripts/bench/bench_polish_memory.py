"""The memory of a polish beside that of sampling, on the bundled model.

    python scripts/bench/bench_polish_memory.py

By how much the peak of a process (Linux) grows when it makes images of three steps in batches, and
when it polishes with as many: a polish makes images as ever, and keeps their features.
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

from stepsampler.grids import from_sigmas
from stepsearch.config import StudyConfig
from stepsearch.metrics.evaluator import Evaluator
from stepsearch.polish.descent import Settings, polish
from stepsearch.polish.knobs import Knobs
from stepsearch.polish.looking import Here

MIB = 2**20


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
        do: dict[str, Callable[[range], Any]] = {
            "sampling": lambda seeds: evaluator.measure(plan, seeds),
            "polish": lambda seeds: polish(
                Here(evaluator), knobs, Settings(1, len(seeds), len(seeds))
            ),
        }
        do[what](range(2))
        before = peak()
        do[what](range(1000, 1000 + images))
    return (peak() - before) / MIB


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
