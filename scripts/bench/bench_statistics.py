"""What DPM-Solver-v3 adds to sampling: the bundled model under it and under UniPC, in turns.

    python scripts/bench/bench_statistics.py [--rounds 5] [--images 16]

Prints the processor's seconds of each, the least of all rounds, the first of which is not counted:
it computes the numbers of the steps, whose time is printed apart. The statistics are random, as
their values cost nothing.
"""

import argparse
from time import process_time

import numpy as np
import torch

from stepsampler.generate import generate
from stepsampler.grids import make_schedule
from stepsampler.models import LatentModel, load
from stepsampler.schedule import Schedule
from stepsampler.statistics.file import Statistics, ends_of

INTERVALS, STEPS, SCALE = 120, 6, 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=16)
    args = parser.parse_args()
    model = load("tiny")
    assert isinstance(model, LatentModel)
    numbers = np.random.default_rng(0).uniform(0, 1, (3, INTERVALS + 1, *model.shape))
    l, s, b = numbers  # noqa: E741
    known = Statistics(l, s, b, ends_of(model.noise), SCALE, 1, "random")
    model.statistics = (known,)
    plans = {}
    for solver in ("unipc-bh2", "dpm-v3"):
        named = known.spec if solver == "dpm-v3" else None
        plans[solver] = make_schedule(
            "linspace", STEPS, model.noise, solver=solver, guidance_scale=SCALE, statistics=named
        )
    start = process_time()
    known.rows(plans["dpm-v3"], torch.device("cpu"))
    print(f"numbers of {STEPS} steps, once for a schedule: {process_time() - start:.3f} s")

    def seconds(plan: Schedule) -> float:
        start = process_time()
        count = args.images
        list(generate(model, plan, ["a coat"] * count, range(count), batch_size=count))
        return process_time() - start

    rounds = [{name: seconds(plan) for name, plan in plans.items()} for _ in range(args.rounds + 1)]
    least = {name: min(found[name] for found in rounds[1:]) for name in plans}
    for name, value in least.items():
        print(f"{name:10} {value:.3f} s")
    print(f"more: {least['dpm-v3'] / least['unipc-bh2'] - 1:+.2%}")


if __name__ == "__main__":
    main()
