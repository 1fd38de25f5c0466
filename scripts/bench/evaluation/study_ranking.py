"""How far can a small subset of images be believed when it ranks schedules?

    python scripts/bench/evaluation/study_ranking.py --dry-run        # passes and hours
    python scripts/bench/evaluation/study_ranking.py --dtype bfloat16 --compile --hours 2  # resumes
    python scripts/bench/evaluation/study_ranking.py --device cuda --schedules 60 12 --truth 20000

Varied schedules on the bundled model (40 at 5 steps, 12 at 8: known grids at the teacher's
guidance, and random points of a search's box) make images of a pool of seeds, of which the subsets
are, and 10,000 images of other seeds, of which the truth is. Statistics: FD, FD-infinity, KID, and
the mean distance to the teacher's image of the same seed, in pixels and in features; the latter two
only among schedules that share the teacher's guidance. How they are compared with the truth, with
and without common seeds, is at the top of `ranking/analysis.py`.

Stopped early, it reports on what all schedules of one number of steps have: the truth is then of
fewer images, and says so. Images are kept by schedule, model and batch size, so that a change of
any of them makes new ones.
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from ranking.analysis import FEATURES, PIXELS, Images, Real, analyse, paired
from ranking.output import write
from stepsampler.generate import generate
from stepsampler.grids import GRIDS, make_schedule
from stepsampler.models import LatentModel, load
from stepsampler.schedule import Schedule
from stepsearch.config.space import SpaceConfig
from stepsearch.metrics.alignment import load_prompts
from stepsearch.metrics.evaluator import model_digest
from stepsearch.metrics.features import load_extractor
from stepsearch.metrics.reference import load_reference
from stepsearch.paths import write_whole
from stepsearch.space.box import SearchSpace

EXTRACTORS = ("texture", "lite0")
Rows = tuple[list[dict], list[dict]]
# First seeds, of no study, front or other script. The teacher has those of the pool.
SEEDS = {"pool": 70_000_000, "truth": 80_000_000}
GUIDANCE = 2.0  # the teacher's
PART = 256  # images a file


@dataclass(frozen=True)
class Entry:
    name: str
    steps: int
    schedule: Schedule
    known: bool  # a known grid at the teacher's guidance, so that distance to the teacher is fair


@dataclass(frozen=True)
class Job:
    """A file of features to make, and perhaps one of images."""

    schedule: Schedule
    block: str  # of SEEDS
    first: int  # image of the block
    images: bool  # whether they are kept, for distances to the teacher


def entries(model: LatentModel, counts: dict[int, int]) -> list[Entry]:
    """For each number of steps three known grids (orders 1 and 2) to two points of the box."""
    found = []
    for steps, count in counts.items():
        pairs = [(grid, order) for order in (2, 1) for grid in GRIDS][: -(-count * 3 // 5)]
        for grid, order in pairs:
            plan = make_schedule(grid, steps, model.noise, order=order, guidance_scale=GUIDANCE)
            found.append(Entry(f"{grid}, order {order}", steps, plan, True))
        config = SpaceConfig(num_steps=steps, passes=2 * steps, guidance="per-step")
        space = SearchSpace(config, model.noise, model.spec, "kl-optimal")
        draw = np.random.default_rng(steps)
        for k in range(count - len(pairs)):
            point = {key: draw.uniform(d.low, d.high) for key, d in space.distributions.items()}
            found.append(Entry(f"random point {k}", steps, space.schedule(point), False))
    return found


class Bench:
    """Makes images and keeps what is needed of them, in files of PART images."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.folder, self.batch = args.run, args.batch
        self.model = load("tiny", args.device, args.dtype, compile=args.compile)
        self.digest = model_digest(self.model)
        self.prompts = load_prompts("fashion-mnist")
        self.extractors = [load_extractor(name, args.device) for name in EXTRACTORS]
        self.references = [
            load_reference("fashion-mnist", e, 32, args.run) for e in self.extractors
        ]
        counts = dict(zip((5, 8), args.schedules, strict=True))
        self.entries = entries(self.model, {k: n for k, n in counts.items() if n})
        self.teacher = make_schedule(
            "linspace", 50, self.model.noise, order=2, guidance_scale=GUIDANCE
        )

    def images(self, schedule: Schedule, seeds: range) -> torch.Tensor:
        texts = [self.prompts[seed % len(self.prompts)].text for seed in seeds]
        made = generate(self.model, schedule, texts, seeds, batch_size=self.batch)
        return torch.cat([batch.images for batch in made])

    def features(self, images: torch.Tensor) -> dict[str, np.ndarray]:
        return {
            e.name: r.project(e(images).numpy()).astype(np.float32)
            for e, r in zip(self.extractors, self.references, strict=True)
        }

    def make(self, job: Job) -> None:
        first = SEEDS[job.block] + job.first
        images = self.images(job.schedule, range(first, first + PART))
        made = {"features": self.features(images), "images": {"images": images.numpy()}}
        for kind, path in self.files(job).items():
            write_whole(path, lambda p, kind=kind: save_file(made[kind], p))

    def files(self, job: Job) -> dict[str, Path]:
        folder, name = self.place(job.schedule), f"{job.block}-{job.first:06d}.safetensors"
        found = {"features": folder / name}
        return found | {"images": folder / f"images-{name}"} if job.images else found

    def place(self, schedule: Schedule) -> Path:
        """Changes with everything that changes a number in its files."""
        parts = [self.digest, str(self.model.dtype), str(self.batch), schedule.to_json()]
        parts += [reference.fingerprint for reference in self.references]  # of the extractor, too
        parts += [str(SEEDS), *(prompt.text for prompt in self.prompts)]
        return self.folder / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def done(self, job: Job) -> bool:
        return all(path.exists() for path in self.files(job).values())

    def collect(self, schedule: Schedule, block: str, key: str, most: int) -> np.ndarray:
        """The rows of the parts that are there, without a gap, at most so many."""
        prefix = "images-" if key == "images" else ""
        rows: list[np.ndarray] = []
        for first in range(0, most, PART):
            path = self.place(schedule) / f"{prefix}{block}-{first:06d}.safetensors"
            if not path.exists():
                break
            rows.append(load_file(path)[key])
        return np.concatenate(rows)[:most] if rows else np.empty(0, np.float32)


def plan(bench: Bench, args: argparse.Namespace) -> list[Job]:
    """Every file, in the order in which to make them.

    All schedules of one number of steps grow together, and the pool with the truth, so that
    stopping early leaves a whole.
    """
    jobs = [Job(bench.teacher, "pool", first, True) for first in range(0, args.teacher, PART)]
    parts = [("pool", first, first / args.pool) for first in range(0, args.pool, PART)]
    parts += [("truth", first, first / args.truth) for first in range(0, args.truth, PART)]
    for steps in sorted({entry.steps for entry in bench.entries}):
        for block, first, _ in sorted(parts, key=lambda part: part[2]):
            for entry in bench.entries:
                if entry.steps == steps:
                    images = entry.known and block == "pool" and first < args.teacher
                    jobs.append(Job(entry.schedule, block, first, images))
    return jobs


def measured(bench: Bench, args: argparse.Namespace, name: str, steps: int) -> Images | None:
    """What all schedules of one number of steps have, under one extractor; None if nothing."""
    mine = [entry for entry in bench.entries if entry.steps == steps]

    def common(block: str, key: str, most: int, of: Iterable[Entry]) -> list[np.ndarray]:
        found = [bench.collect(entry.schedule, block, key, most) for entry in of]
        n = min(map(len, found), default=0)
        return [x[:n] for x in found]

    pool, truth = (common(block, name, getattr(args, block), mine) for block in SEEDS)
    if len(truth[0]) < 2 or len(pool[0]) < min(args.sizes):
        return None
    known = [entry for entry in mine if entry.known]
    gaps = {}
    for kind, key in ((PIXELS, "images"), (FEATURES, name)):
        rows = common("pool", key, args.teacher, known)
        teacher = bench.collect(bench.teacher, "pool", key, args.teacher)
        n = min(len(teacher), *map(len, rows))
        gaps[kind] = np.array([_squares(x[:n], teacher[:n]) for x in rows]).reshape(len(rows), n)
    return Images(pool, truth, [k for k, entry in enumerate(mine) if entry.known], gaps)


def _squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean squared difference of each row."""
    if not len(x):
        return np.empty(0)
    flat = x.reshape(len(x), -1).astype(np.float32) - y.reshape(len(y), -1)
    return (flat**2).mean(1)


def report(bench: Bench, args: argparse.Namespace) -> Rows:
    """Every statistic against the truth, as far as it was measured."""
    parts = [
        (k, n) for k in range(len(EXTRACTORS)) for n in sorted({e.steps for e in bench.entries})
    ]
    if args.workers == 1:
        found = [_analysed(bench, args, *part) for part in parts]
    else:
        with ProcessPoolExecutor(args.workers, get_context("spawn"), _start, (args, 1)) as pool:
            futures = [pool.submit(_analyse, args, *part) for part in parts]
            found = [future.result() for future in futures]
    ranks, errors = ([row for rows in kind for row in rows] for kind in zip(*found, strict=True))
    return ranks, errors


def _analysed(bench: Bench, args: argparse.Namespace, extractor: int, steps: int) -> Rows:
    """How well each statistic ranks, and how well the errors of paired differences cover."""
    name = EXTRACTORS[extractor]
    images = measured(bench, args, name, steps)
    if images is None:
        print(f"analysis: {name}, {steps} steps: not enough images yet", flush=True)
        return [], []
    print(f"analysis: {name}, {steps} steps", flush=True)
    real, known = Real.of(bench.references[extractor]), {"extractor": name, "steps": steps}
    rows = analyse(images, real, args.sizes)
    ranks = [{**known, **row, "passes": row["n"] * 2 * steps} for row in rows]
    errors = [paired(images, real, n) for n in args.sizes]
    return ranks, [{**known, **row} for row in errors if row]


_bench: Bench


def _start(args: argparse.Namespace, threads: int) -> None:
    global _bench
    torch.set_num_threads(threads)
    _bench = Bench(args)


def _analyse(args: argparse.Namespace, extractor: int, steps: int) -> Rows:
    return _analysed(_bench, args, extractor, steps)


def _make(job: Job, deadline: float) -> bool:
    if time.monotonic() > deadline:
        return False
    _bench.make(job)
    return True


def make_all(jobs: list[Job], args: argparse.Namespace, bench: Bench) -> int:
    """Make what is not there yet until the hours are over; returns how many were made."""
    global _bench
    deadline = time.monotonic() + 3600 * args.hours
    if args.workers == 1:
        _bench = bench
        return _count(map(_make, jobs, [deadline] * len(jobs)), len(jobs))
    threads = torch.get_num_threads()
    context = get_context("spawn")
    with ProcessPoolExecutor(args.workers, context, _start, (args, threads)) as pool:
        return _count(pool.map(_make, jobs, [deadline] * len(jobs)), len(jobs))


def _count(done: Iterable[bool], total: int) -> int:
    made = 0
    for one in done:
        made += one
        if sys.stdout.isatty():
            print(f"\r{made} of {total} parts", end="", flush=True)
    return made


def seconds_a_pass(bench: Bench) -> float:
    """Of one process, with features; the first batch warms up."""
    schedule = bench.entries[0].schedule
    for _ in range(2):
        started = time.monotonic()
        bench.features(bench.images(schedule, range(bench.batch)))
    return (time.monotonic() - started) / bench.batch / schedule.passes


def add_options(parser: argparse.ArgumentParser, run: Path) -> None:
    """How images are made, and where they are kept: by default in `run`."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--compile", action="store_true", help="the network, by torch")
    parser.add_argument("--hours", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--run", type=Path, default=run)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--dry-run", action="store_true", help="print passes and hours, and end")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedules", type=int, nargs=2, default=(40, 12), help="at 5, at 8 steps")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--pool", type=int, default=0, help="images of the subsets; default as n")
    parser.add_argument("--truth", type=int, default=10_000, help="images of the true ranking")
    parser.add_argument("--teacher", type=int, default=1024, help="its images, of 50 steps")
    parser.add_argument("--workers", type=int, default=2)
    add_options(parser, Path("runs/ranking"))
    args = parser.parse_args(argv)
    if min(args.sizes) < 8:
        parser.error(f"--sizes must be at least 8, got {min(args.sizes)}")
    if args.truth < 2 or args.workers < 1 or args.batch < 1 or max(args.schedules) < 2:
        parser.error("--truth and --schedules must be at least 2, --workers and --batch 1")
    args.sizes = sorted(set(args.sizes))
    args.pool = max(args.pool, args.sizes[-1])
    args.teacher = min(args.teacher, args.pool)
    torch.set_num_threads(max(1, torch.get_num_threads() // args.workers))
    bench = Bench(args)
    jobs = plan(bench, args)
    left = [job for job in jobs if not bench.done(job)]
    passes = sum(job.schedule.passes * PART for job in left)
    hours = passes * seconds_a_pass(bench) / args.workers / 3600
    print(
        f"{len(bench.entries)} schedules, {len(left)} of {len(jobs)} parts left: {passes:,} passes,"
        f" about {hours:.2f} hours with {args.workers} workers",
        flush=True,
    )
    if args.dry_run:
        return
    made = make_all(left, args, bench)
    if made < len(left):
        print(f"stopped at {args.hours:g} hours, {len(left) - made} parts to do; run it again")
    rows, errors = report(bench, args)
    if not rows:
        print("nothing to report yet")
        return
    settings = {
        "model": bench.digest,
        "dtype": args.dtype,
        "compiled": args.compile,
        "extractors": {e.name: e.digest for e in bench.extractors},
        "references": {r.metric: r.fingerprint for r in bench.references},
        "batch_size": args.batch,
        "seeds": SEEDS,
        "pool": args.pool,
        "schedules": [f"{entry.name}, {entry.steps} steps" for entry in bench.entries],
    }
    write(rows, errors, settings, args.docs)
    print(f"{args.docs}: ranking.json, ranking.md, ranking.png")


if __name__ == "__main__":
    main()
