#!/usr/bin/env python3
"""Guidance by reuse, iterated guidance and fresh noise on the bundled model, nothing searched.

    python scripts/bench/bench_reuse.py --images 1000
    python scripts/bench/bench_reuse.py --patterns FFF --churn 0 0.3 0.6

Prints a table: which steps have both predictions (F), iterate guidance once before (I), reuse the
difference of both (r), are unguided (-); FD under both bundled extractors and alignment, on test
seeds and real images that no search saw. Fresh noise falls evenly from `--churn` at the second step
to none after the last.
"""

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from stepsampler.errors import percent
from stepsampler.grids import GRIDS, from_sigmas
from stepsampler.models import LatentModel
from stepsampler.schedule import Schedule
from stepsearch.config import StudyConfig
from stepsearch.config.measuring import EvaluationConfig
from stepsearch.config.space import SpaceConfig
from stepsearch.metrics.distance import score
from stepsearch.metrics.evaluator import TEST, Evaluator, seeds_of

PATTERNS = ("FFFFF", "FFF----", "FFFrrrr", "FrrrFrrr", "FFrrrrrr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--grids", nargs="+", default=["karras", "ays-sd15"])
    parser.add_argument("--scales", nargs="+", type=float, default=[2.0, 3.0])
    parser.add_argument("--patterns", nargs="+", default=list(PATTERNS))
    parser.add_argument("--churn", nargs="+", type=float, default=[0.0])
    parser.add_argument("--gains", nargs="+", type=float, default=[1.0, 1.07])
    parser.add_argument("--cache", type=Path, default=Path("runs/reuse"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    evaluator = Evaluator(
        StudyConfig(
            name="bench-reuse",
            space=SpaceConfig(num_steps=2, passes=4),
            evaluation=EvaluationConfig(extractor="texture+lite0", batch_size=50),
        ),
        args.cache,
    )
    print("| grid, w | gain | churn | steps | passes | texture | lite0 | alignment |")
    print("|---|---|---|---|---|---|---|---|")
    settings = (args.gains, args.grids, args.scales, args.churn, args.patterns)
    for gain, grid, w, churn, pattern in product(*settings):
        plan = schedule(grid, w, pattern, gain, churn, evaluator.model)
        found = evaluator.measure(plan, seeds_of(TEST, args.images))
        values = [score(*part) for part in evaluator.reference.test.split(found.features)]
        cells = [f"{value.value:.2f} ± {value.se:.2f}" for value in values]
        cells.append(percent(found.alignment))
        made = [f"{grid}, {w:g}", f"{gain:g}", f"{churn:g}", pattern, str(plan.passes)]
        cells = [*made, *cells]
        print(f"| {' | '.join(cells)} |", flush=True)


def schedule(
    grid: str, w: float, pattern: str, gain: float, churn: float, model: LatentModel
) -> Schedule:
    n = len(pattern)
    *sigmas, final = GRIDS[grid](n, model.noise)
    scales = [1.0 if mode == "-" else w for mode in pattern]
    plan = from_sigmas(sigmas, final, scales, 2, "dpmpp-midpoint", model.spec)
    steps = [
        replace(
            step,
            gain=gain,
            guidance_reuse=mode == "r",
            repeats=int(mode == "I"),
            churn=churn * (n - i) / (n - 1) if i else 0.0,
        )
        for i, (step, mode) in enumerate(zip(plan.steps, pattern, strict=True))
    ]
    return replace(plan, steps=tuple(steps))


if __name__ == "__main__":
    main()
