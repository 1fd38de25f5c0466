"""What could be a better first rung than FD of a few images of a trial's own?

    python scripts/bench/evaluation/study_rungs.py --dry-run     # passes and hours
    python scripts/bench/evaluation/study_rungs.py               # resumes; 0.1 hours of a free core

Asked are the cross-entropy of the bundled judge, a mean over images without FD's bias (as in
Dual-Solver, arXiv 2603.03973), and FD with the images of a baseline of the same seeds as a control
variate. Schedules are those of `study_ranking.py` at 3 steps, n is 32 to 256, and the truth of a
block of n images is FD of all other images: `ranking/rungs.py` says how they are compared. Stopped
early, it reports on the images that all schedules have.
"""

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from study_ranking import (
    EXTRACTORS,
    PART,
    SEEDS,
    Bench,
    Job,
    add_options,
    entries,
    seconds_a_pass,
)
from torch.nn.functional import cross_entropy

from ranking.analysis import Real
from ranking.output import rewrite
from ranking.rungs import analyse, best_grid, predictions
from stepsampler.schedule import Schedule
from stepsearch.metrics.features import Judge
from stepsearch.paths import write_whole

STEPS = 3
BLOCK, FURTHER = "pool", "truth"  # of SEEDS; the latter for the baseline alone
JUDGE = "judge"  # key of a file: the cross-entropy of each image


class Rungs(Bench):
    """Images of which the judge's cross-entropy is kept as well."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.entries = entries(self.model, {STEPS: args.count})
        self.judge = Judge(args.device)

    def make(self, job: Job) -> None:
        first = SEEDS[job.block] + job.first
        seeds = range(first, first + PART)
        images = self.images(job.schedule, seeds)
        labels = torch.tensor([self.prompts[seed % len(self.prompts)].label for seed in seeds])
        with torch.inference_mode():
            surprise = cross_entropy(self.judge.live(images).cpu(), labels, reduction="none")
        made = {**self.features(images), JUDGE: surprise.numpy()}
        write_whole(self.files(job)["features"], lambda path: save_file(made, path))

    def place(self, schedule: Schedule) -> Path:
        return super().place(schedule).with_suffix(f".{self.judge.digest}")


def plan(bench: Rungs, images: int) -> list[Job]:
    """All schedules grow together, so that stopping early leaves a whole."""
    return [
        Job(entry.schedule, BLOCK, first, False)
        for first in range(0, images, PART)
        for entry in bench.entries
    ]


def make(bench: Rungs, jobs: list[Job], end: float) -> bool:
    """Whether all are there; begins nothing after `end`, of `time.monotonic()`."""
    for job in jobs:
        if not bench.done(job):
            if time.monotonic() > end:
                return False
            bench.make(job)
    return True


def common(bench: Rungs, key: str, images: int) -> list[np.ndarray]:
    """What all schedules have."""
    found = [bench.collect(e.schedule, BLOCK, key, images) for e in bench.entries]
    n = min(map(len, found))
    return [x[:n] for x in found]


def baselines(bench: Rungs, images: int) -> dict[str, int]:
    """Under each extractor the place of the grid that serves as a control variate."""
    grids = [k for k, entry in enumerate(bench.entries) if entry.known]
    return {
        name: best_grid(common(bench, name, images), grids, Real.of(reference))
        for name, reference in zip(EXTRACTORS, bench.references, strict=True)
    }


def report(bench: Rungs, args: argparse.Namespace, bases: dict[str, int]) -> dict:
    """How each statistic ranks under either extractor, and the predictions along a ladder."""
    surprise = common(bench, JUDGE, args.images)
    grids = [k for k, entry in enumerate(bench.entries) if entry.known]
    rows, ladders = [], []
    for name, reference in zip(EXTRACTORS, bench.references, strict=True):
        features, real = common(bench, name, args.images), Real.of(reference)
        plan = bench.entries[bases[name]].schedule
        further = bench.collect(plan, FURTHER, name, args.further)
        found = analyse(features, surprise, grids, further, real, args.sizes)
        rows += [{"extractor": name, **row} for row in found]
        for few, many in pairwise(args.sizes):
            found = predictions(features, bases[name], real.moments, few, many)
            ladders += [{"extractor": name, **row} for row in found]
    return {
        "steps": STEPS,
        "model": bench.digest,
        "dtype": args.dtype,
        "judge": bench.judge.digest,
        "images": len(surprise[0]),
        "further": len(further),
        "first_seeds": {block: SEEDS[block] for block in (BLOCK, FURTHER)},
        "schedules": [entry.name for entry in bench.entries],
        "baselines": {name: bench.entries[place].name for name, place in bases.items()},
        "rows": rows,
        "ladders": ladders,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=12, help="schedules, of 3 steps")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--images", type=int, default=512, help="of each schedule")
    parser.add_argument("--further", type=int, default=512, help="of the baseline")
    add_options(parser, Path("runs/rungs"))
    args = parser.parse_args(argv)
    args.sizes, args.schedules = sorted(set(args.sizes)), (0, 0)
    if min(args.sizes) < 8 or args.images < 2 * args.sizes[-1] or args.count < 4:
        parser.error("--sizes must be at least 8, --images twice the largest, --count 4")
    bench = Rungs(args)
    left = [job for job in plan(bench, args.images) if not bench.done(job)]
    passes = sum(job.schedule.passes * PART for job in left) + 2 * STEPS * args.further
    hours = passes * seconds_a_pass(bench) / 3600
    print(f"{len(left)} parts left: {passes:,} passes, about {hours:.2f} hours", flush=True)
    if args.dry_run:
        return
    end = time.monotonic() + 3600 * args.hours
    make(bench, left, end)
    if min(map(len, common(bench, JUDGE, args.images))) < 2 * args.sizes[-1]:
        print("nothing to report yet; run it again")
        return
    bases = baselines(bench, args.images)
    further = [
        Job(bench.entries[place].schedule, FURTHER, first, False)
        for place in sorted(set(bases.values()))
        for first in range(0, args.further, PART)
    ]
    if not make(bench, further, end):
        print("the baseline's further images are to be made yet; run it again")
        return
    data = report(bench, args, bases)
    text = json.dumps(data, indent=1, allow_nan=False)
    write_whole(args.docs / "ranking-rungs.json", lambda p: p.write_text(text + "\n"))
    rewrite(args.docs)
    print(f"{args.docs}: ranking-rungs.json, ranking.md")


if __name__ == "__main__":
    main()
