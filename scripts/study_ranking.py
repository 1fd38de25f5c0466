"""How far can a small subset of images be believed when it ranks schedules?

    python scripts/study_ranking.py --dry-run                      # passes and hours
    python scripts/study_ranking.py --dtype bfloat16 --hours 2     # resumes; writes docs

Varied schedules on the bundled model (40 at 5 steps, 12 at 8: known grids at the teacher's
guidance, and random points of a search's box) make images of one pool of seeds. From it, many
times, a subset of n is drawn and each statistic ranks the schedules on it; the truth is FD on
10,000 images of the rest of the pool. Statistics: FD, FD-infinity, KID, and the mean distance to
the teacher's image of the same seed, in pixels and in features; the latter two only among
schedules that share the teacher's guidance. Each with one subset for all schedules ("common"
seeds) and with a subset of its own for each ("own"), under two extractors.

Reported, as means over the draws: Kendall's tau with the truth, over all schedules and among the
truly best ten; regret, that is how much worse in true FD than the best of all are the best of the
five that the statistic likes most, and its favourite; and the passes of one schedule's images.
Stopped early, it reports on what all schedules of one number of steps have: the truth is then of
fewer images, and says so.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from scipy.stats import kendalltau

from stepsampler.generate import generate
from stepsampler.grids import GRIDS, make_schedule
from stepsampler.models import LatentModel, load
from stepsampler.schedule import Schedule
from stepsearch.config import SpaceConfig
from stepsearch.distance import frechet_distance, frechet_infinity, score_kernel
from stepsearch.evaluate import load_prompts
from stepsearch.features import load_extractor
from stepsearch.paths import write_whole
from stepsearch.reference import Reference, load_reference
from stepsearch.space import SearchSpace

EXTRACTORS = ("texture", "lite0")
POOL = 30_000_000  # first seed; disjoint from every study's
GUIDANCE = 2.0  # the teacher's
TEACHER = "teacher"
PART = 256  # images a file
STATISTICS = ("FD", "FD-infinity", "KID", "teacher, pixels", "teacher, features")


@dataclass(frozen=True)
class Entry:
    name: str
    steps: int
    schedule: Schedule

    @property
    def known(self) -> bool:
        """A known grid at the teacher's guidance, so that distance to the teacher is fair."""
        return not self.name.startswith("random")


def entries(model: LatentModel, counts: dict[int, int]) -> list[Entry]:
    """For each number of steps three known grids (orders 1 and 2) to two points of the box."""
    found = []
    for steps, count in counts.items():
        pairs = [(grid, order) for order in (2, 1) for grid in GRIDS][: -(-count * 3 // 5)]
        for grid, order in pairs:
            plan = make_schedule(grid, steps, model.noise, order=order, guidance_scale=GUIDANCE)
            found.append(Entry(f"{grid}, order {order}", steps, plan))
        config = SpaceConfig(num_steps=steps, passes=2 * steps, guidance="per-step")
        space = SearchSpace(config, model.noise, model.spec, "kl-optimal")
        draw = np.random.default_rng(steps)
        for k in range(count - len(pairs)):
            point = {key: draw.uniform(d.low, d.high) for key, d in space.distributions.items()}
            found.append(Entry(f"random point {k}", steps, space.schedule(point)))
    return found


class Bench:
    """Makes images and keeps what is needed of them, in files of PART images."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.folder, self.batch = args.run, args.batch
        self.model = load("tiny", dtype=args.dtype)
        self.prompts = load_prompts("fashion-mnist")
        self.extractors = [load_extractor(name) for name in EXTRACTORS]
        self.references = [
            load_reference("fashion-mnist", e, 32, args.run) for e in self.extractors
        ]
        counts = dict(zip((5, 8), args.schedules, strict=True))
        self.entries = entries(self.model, {k: n for k, n in counts.items() if n})
        self.teacher = make_schedule(
            "linspace", 50, self.model.noise, order=2, guidance_scale=GUIDANCE
        )

    def schedule(self, name: str) -> Schedule:
        return self.teacher if name == TEACHER else self.entries[int(name)].schedule

    def images(self, schedule: Schedule, seeds: range) -> torch.Tensor:
        texts = [self.prompts[seed % len(self.prompts)].text for seed in seeds]
        made = generate(self.model, schedule, texts, seeds, batch_size=self.batch)
        return torch.cat([batch.images for batch in made])

    def make(self, name: str, first: int, keep: bool) -> None:
        """Features of one part of the pool, and the images themselves if they are kept."""
        seeds = range(POOL + first, POOL + first + PART)
        images = self.images(self.schedule(name), seeds)
        tensors = {
            e.name: r.project(e(images).numpy()).astype(np.float32)
            for e, r in zip(self.extractors, self.references, strict=True)
        }
        if keep:
            tensors["images"] = images.numpy()
        path = place(self.folder, name, first)
        write_whole(path, lambda p: save_file(tensors, p))


def place(folder: Path, name: str, first: int) -> Path:
    return folder / name / f"{first:06d}.safetensors"


def plan(found: list[Entry], args: argparse.Namespace) -> list[tuple[str, int, bool]]:
    """(schedule or teacher, first image, keep) of every file, in the order in which to make them.

    All schedules of one number of steps grow together, so that stopping early leaves a whole.
    """
    jobs = [(TEACHER, first, True) for first in range(0, args.teacher, PART)]
    for steps in sorted({entry.steps for entry in found}):
        for first in range(0, args.truth + max(args.sizes), PART):
            for i, entry in enumerate(found):
                if entry.steps == steps:
                    jobs.append((f"{i:02d}", first, entry.known and first < args.teacher))
    return jobs


def collect(folder: Path, name: str, key: str) -> np.ndarray:
    """The rows of the parts that are there, without a gap; (0,) where there are none."""
    rows = []
    while (path := place(folder, name, PART * len(rows))).exists():
        tensors = load_file(path)
        if key not in tensors:
            break
        rows.append(tensors[key])
    return np.concatenate(rows) if rows else np.empty(0, np.float32)


@dataclass
class Ranking:
    """The images of all schedules of one number of steps under one extractor."""

    reference: Reference
    features: list[np.ndarray]  # (pool, axes) of each schedule
    known: list[int]  # places of those at the teacher's guidance
    gaps: dict[str, np.ndarray]  # statistic -> (known, images) distances to the teacher
    largest: int  # images of the largest subset
    truth: int  # images behind the truth

    @property
    def pool(self) -> int:
        return len(self.features[0])

    def rows(self, start: int, n: int) -> np.ndarray:
        """The pool is a ring."""
        return (start + np.arange(n)) % self.pool

    def true(self, i: int, start: int) -> float:
        """FD on the images behind the largest subset that starts here."""
        rows = self.rows(start + self.largest, self.truth)
        return frechet_distance(self.features[i][rows], self.reference.test)

    def value(self, kind: str, i: int, start: int, n: int) -> float:
        if kind in self.gaps:
            return float(self.gaps[kind][self.known.index(i), start : start + n].mean())
        x = self.features[i][self.rows(start, n)]
        if kind == "FD":
            return frechet_distance(x, self.reference.search)
        if kind == "FD-infinity":
            return frechet_infinity(x, self.reference.search)
        return score_kernel(x, self.reference.sample).value

    def draw(self, kind: str, n: int, common: bool, rng: np.random.Generator) -> dict[str, float]:
        """Rank on one subset, or on one for each schedule, and compare with the truth."""
        of_teacher = kind in self.gaps
        members = self.known if of_teacher else list(range(len(self.features)))
        top = self.gaps[kind].shape[1] - n + 1 if of_teacher else self.pool
        starts = rng.integers(top, size=len(members))
        if common:
            starts[:] = starts[0]
        pairs = list(zip(members, starts.tolist(), strict=True))
        values = np.array([self.value(kind, i, start, n) for i, start in pairs])
        true = np.array([self.true(i, start) for i, start in pairs])
        best, ten = np.argsort(values)[:5], np.argsort(true)[:10]
        return {
            "tau": float(kendalltau(values, true).statistic),
            "tau_best_ten": float(kendalltau(values[ten], true[ten]).statistic),
            "top5_regret": float(true[best].min() - true.min()),
            "regret": float(true[best[0]] - true.min()),
        }


def rankings(bench: Bench, args: argparse.Namespace) -> dict[tuple[str, int], Ranking]:
    """What all schedules of one number of steps have, by extractor and steps."""
    found = {}
    for name, reference in zip(EXTRACTORS, bench.references, strict=True):
        teacher = {key: collect(args.run, TEACHER, key) for key in ("images", name)}
        for steps in sorted({entry.steps for entry in bench.entries}):
            members = [i for i, entry in enumerate(bench.entries) if entry.steps == steps]
            features = [collect(args.run, f"{i:02d}", name) for i in members]
            pool = min(map(len, features))
            fitting = [n for n in args.sizes if n <= 0.3 * pool]
            if not fitting:
                continue
            known = [k for k, i in enumerate(members) if bench.entries[i].known]
            gaps = {}
            for kind, key in (("teacher, pixels", "images"), ("teacher, features", name)):
                mine = [collect(args.run, f"{members[k]:02d}", key) for k in known]
                n = min(*map(len, mine), len(teacher[key]), pool)
                rows = [_squares(x[:n], teacher[key][:n]) for x in mine if n]
                gaps[kind] = np.array(rows).reshape(len(known), n)
            largest = max(fitting)
            truth = min(args.truth, pool - largest)
            found[name, steps] = Ranking(
                reference, [x[:pool] for x in features], known, gaps, largest, truth
            )
    return found


def _squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean squared difference of each row."""
    flat = x.reshape(len(x), -1).astype(np.float32) - y.reshape(len(y), -1)
    return (flat**2).mean(1)


def analyse(
    bench: Bench, args: argparse.Namespace, say: Callable[[str], None]
) -> list[dict[str, object]]:
    """Every statistic against the truth, as far as it was measured."""
    rows = []
    for (extractor, steps), ranking in rankings(bench, args).items():
        say(f"analysis: {extractor}, {steps} steps")
        passes = 2 * steps
        for kind in STATISTICS:
            limit = ranking.gaps[kind].shape[1] if kind in ranking.gaps else ranking.largest
            for n in (n for n in args.sizes if n <= limit):
                for seeds in ("common", "own"):
                    rng = np.random.default_rng(n)
                    draws = [
                        ranking.draw(kind, n, seeds == "common", rng) for _ in range(args.draws)
                    ]
                    row: dict[str, object] = {
                        "extractor": extractor,
                        "steps": steps,
                        "statistic": kind,
                        "seeds": seeds,
                        "n": n,
                        "passes": n * passes,
                        "schedules": len(
                            ranking.known if kind in ranking.gaps else ranking.features
                        ),
                        "truth_images": ranking.truth,
                    }
                    for key in draws[0]:
                        row[key] = float(np.mean([d[key] for d in draws]))
                    row["tau_sd"] = float(np.std([d["tau"] for d in draws]))
                    rows.append(row)
    return rows


def write(rows: list[dict], bench: Bench, args: argparse.Namespace) -> None:
    """JSON, a table in markdown and a plot."""
    names = [f"{e.name}, {e.steps} steps" for e in bench.entries]
    data = {"dtype": args.dtype, "draws": args.draws, "schedules": names, "rows": rows}
    write_whole(args.docs / "ranking.json", lambda p: p.write_text(json.dumps(data, indent=1)))
    lines = [
        "# How far a small subset ranks schedules: the table",
        "",
        f"Made by `scripts/study_ranking.py`, model in {args.dtype}, means of {args.draws} draws. "
        "What the columns mean is at the top of that script; regrets are in units of the true FD.",
        "",
        "| extractor | steps | statistic | seeds | n | schedules | truth n | tau | of the best ten "
        "| top-5 regret | regret | passes a schedule |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['extractor']} | {r['steps']} | {r['statistic']} | {r['seeds']} | {r['n']:,} "
        f"| {r['schedules']} | {r['truth_images']:,} | {r['tau']:.2f} ± {r['tau_sd']:.2f} "
        f"| {r['tau_best_ten']:.2f} | {r['top5_regret']:.2f} | {r['regret']:.2f} "
        f"| {r['passes']:,} |"
        for r in rows
    ]
    table = "\n".join(lines) + "\n"
    write_whole(args.docs / "ranking.md", lambda p: p.write_text(table))
    if rows:
        plot(rows, args.docs / "ranking.png")


def plot(rows: list[dict], path: Path) -> None:
    """Tau against n: a panel for each extractor and number of steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = sorted({(r["extractor"], r["steps"]) for r in rows}, reverse=True)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 4), squeeze=False, sharey=True
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        here = [r for r in rows if (r["extractor"], r["steps"]) == panel]
        for k, kind in enumerate(STATISTICS):
            for seeds, style in (("common", "-"), ("own", ":")):
                line = [
                    (r["n"], r["tau"])
                    for r in here
                    if (r["statistic"], r["seeds"]) == (kind, seeds)
                ]
                if line:
                    label = kind if seeds == "common" else None
                    axis.plot(
                        *zip(*line, strict=True), style, color=f"C{k}", label=label, marker="."
                    )
        axis.set(
            title=f"{panel[0]}, {panel[1]} steps", xscale="log", xlabel="images", ylim=(None, 1)
        )
    axes[0][0].set_ylabel("Kendall's tau with the truth (dotted: own seeds)")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    write_whole(path, lambda p: figure.savefig(p, format="png", dpi=110))
    plt.close(figure)


_bench: Bench


def _start(args: argparse.Namespace, threads: int) -> None:
    global _bench
    torch.set_num_threads(threads)
    _bench = Bench(args)


def _make(job: tuple[str, int, bool], deadline: float) -> bool:
    if time.time() > deadline:
        return False
    _bench.make(*job)
    return True


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedules", type=int, nargs=2, default=(40, 12), help="at 5, at 8 steps")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--truth", type=int, default=10_000, help="images of the true ranking")
    parser.add_argument("--teacher", type=int, default=1024, help="its images, of 50 steps")
    parser.add_argument("--draws", type=int, default=10, help="subsets of each size")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--hours", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--run", type=Path, default=Path("runs/ranking"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--dry-run", action="store_true", help="print passes and hours, and end")
    args = parser.parse_args(argv)
    torch.set_num_threads(max(1, torch.get_num_threads() // args.workers))
    bench = Bench(args)
    jobs = plan(bench.entries, args)
    left = [job for job in jobs if not place(args.run, *job[:2]).exists()]
    passes = sum(bench.schedule(job[0]).passes * PART for job in left)
    probe = range(args.batch)
    bench.images(bench.entries[0].schedule, probe)
    started = time.monotonic()
    bench.images(bench.entries[0].schedule, probe)
    seconds = (time.monotonic() - started) / args.batch / bench.entries[0].schedule.passes
    print(
        f"{len(bench.entries)} schedules, {len(left)} of {len(jobs)} parts left: {passes:,} passes,"
        f" about {passes * seconds / args.workers / 3600:.2f} hours with {args.workers} workers",
        flush=True,
    )
    if args.dry_run:
        return
    deadline = time.time() + 3600 * args.hours
    context = get_context("spawn")
    with ProcessPoolExecutor(
        args.workers, context, _start, (args, torch.get_num_threads())
    ) as pool:
        made = 0
        for done in pool.map(_make, left, [deadline] * len(left)):
            made += done
            if sys.stdout.isatty():
                print(f"\r{made} of {len(left)} parts", end="", flush=True)
    if made < len(left):
        print(f"stopped at {args.hours:g} hours, {len(left) - made} parts to do; run it again")
    write(analyse(bench, args, print), bench, args)
    print(f"{args.docs}: ranking.json, ranking.md, ranking.png")


if __name__ == "__main__":
    main()
