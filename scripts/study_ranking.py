"""How far can a small subset of images be believed when it ranks schedules?

    python scripts/study_ranking.py --dry-run       # passes and hours
    python scripts/study_ranking.py --hours 8       # resumes where it stopped; writes docs/

Varied schedules on the bundled model (40 at 5 steps, 12 at 8) are ranked by each statistic at
n = 128 to 4,096, and truly at n = 10,000 on other seeds. Statistics: FD, FD-infinity, KID, and the
mean distance to the teacher's image of the same seed, in pixels and in features; the latter two
only among schedules that share the teacher's guidance. Each with the same seeds for all schedules
("common") and with seeds of its own for each ("own"), under two extractors. Reported: Kendall's tau
with the truth; the regret of the best of five, that is how much worse in true FD the best of the
five that the statistic likes most is than the best of all; and the passes of a schedule's images.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from scipy.stats import kendalltau

from stepsampler.generate import generate
from stepsampler.grids import GRIDS, make_schedule
from stepsampler.models import load
from stepsampler.schedule import Schedule
from stepsearch.distance import frechet_distance, frechet_infinity, score_kernel
from stepsearch.evaluate import load_prompts
from stepsearch.features import load_extractor
from stepsearch.paths import write_whole
from stepsearch.reference import load_reference

EXTRACTORS = ("texture", "lite0")
COMMON, TRUTH, OWN = 30_000_000, 40_000_000, 50_000_000  # disjoint from every study's seeds
OWN_STRIDE = 100_000
GUIDANCE = 3.0  # the teacher's
TEACHER_STEPS = 50
PART = 256  # images a file
STATISTICS = ("FD", "FD-infinity", "KID", "teacher, pixels", "teacher, features")


@dataclass(frozen=True)
class Entry:
    name: str
    steps: int
    schedule: Schedule
    shares_guidance: bool


def entries(noise: object, counts: dict[int, int]) -> list[Entry]:
    """Grids x orders at the teacher's guidance and around it, evenly thinned out to the counts."""
    found = []
    for steps, count in counts.items():
        every = [
            (grid, order, w)
            for w in (GUIDANCE, 2.0, 1.5, 5.0)
            for grid in GRIDS
            for order in (1, 2)
        ]
        half = [item for item in every if item[2] == GUIDANCE]
        rest = [item for item in every if item[2] != GUIDANCE]
        shared = min(len(half), -(-count * 3 // 5))
        for pool, wanted in ((half, shared), (rest, count - shared)):
            picks = np.linspace(0, len(pool) - 1, wanted).round().astype(int)
            for grid, order, w in (pool[i] for i in picks):
                schedule = make_schedule(grid, steps, noise, order=order, guidance_scale=w)
                name = f"{grid}, order {order}, w {w:g}, {steps} steps"
                found.append(Entry(name, steps, schedule, w == GUIDANCE))
    return found


class Bench:
    """Makes images and keeps what is needed of them, in files of at most PART images."""

    def __init__(self, folder: Path, batch: int) -> None:
        self.folder, self.batch = folder, batch
        self.model = load("tiny")
        self.prompts = load_prompts("fashion-mnist")
        self.extractors = [load_extractor(name) for name in EXTRACTORS]
        self.references = [load_reference("fashion-mnist", e, 32, folder) for e in self.extractors]
        self.teacher = make_schedule(
            "linspace", TEACHER_STEPS, self.model.noise, order=2, guidance_scale=GUIDANCE
        )

    def images(self, schedule: Schedule, seeds: range) -> torch.Tensor:
        texts = [self.prompts[seed % len(self.prompts)].text for seed in seeds]
        made = generate(self.model, schedule, texts, seeds, batch_size=self.batch)
        return torch.cat([batch.images for batch in made])

    def part(self, name: str, schedule: Schedule, seeds: range, keep: bool) -> dict:
        """Projected features of a range of seeds and, if kept, the images."""
        path = self.folder / name / f"{seeds.start}-{seeds.stop}.safetensors"
        if path.exists():
            found = load_file(path)
            if not keep or "images" in found:
                return found
        images = self.images(schedule, seeds)
        tensors = {
            e.name: r.project(e(images).numpy()).astype(np.float32)
            for e, r in zip(self.extractors, self.references, strict=True)
        }
        if keep:
            tensors["images"] = images.numpy()
        write_whole(path, lambda p: save_file(tensors, p))
        return tensors


def parts(start: int, n: int) -> Iterator[range]:
    for first in range(start, start + n, PART):
        yield range(first, min(first + PART, start + n))


def plan(found: list[Entry], args: argparse.Namespace) -> list[tuple]:
    """(folder, schedule or None for the teacher, seeds, keep images) of every file."""
    largest, jobs = max(args.sizes), []
    starts = [(COMMON, args.teacher_common)]
    starts += [(OWN + i * OWN_STRIDE, args.teacher_own) for i in range(len(found))]
    for start, n in starts:
        jobs += [("teacher", None, seeds, True) for seeds in parts(start, min(n, largest))]
    for start, n in ((COMMON, largest), (TRUTH, args.truth), (OWN, largest)):
        for i, entry in enumerate(found):
            first = start + i * OWN_STRIDE * (start == OWN)
            keep = {COMMON: args.teacher_common, OWN: args.teacher_own}.get(start, 0)
            for seeds in parts(first, n):
                kept = entry.shares_guidance and seeds.start < first + keep
                jobs.append((f"schedule-{i:02d}", entry.schedule, seeds, kept))
    return jobs


def collect(bench: Bench, name: str, start: int, n: int, key: str) -> np.ndarray | None:
    """The first n rows from `start`, or None where they are not there."""
    rows = []
    for seeds in parts(start, -(-n // PART) * PART):
        matches = list((bench.folder / name).glob(f"{seeds.start}-*.safetensors"))
        if not matches:
            break
        rows.append(load_file(matches[0]).get(key))
    if any(row is None for row in rows) or sum(map(len, rows)) < n:
        return None
    return np.concatenate(rows)[:n]


def statistic(bench: Bench, kind: str, extractor: int, i: int, start: int, n: int) -> float | None:
    """One number for one schedule; None where it was not measured."""
    name, folder = EXTRACTORS[extractor], f"schedule-{i:02d}"
    reference = bench.references[extractor]
    if kind.startswith("teacher"):
        key = "images" if kind == "teacher, pixels" else name
        pair = [collect(bench, f, start, n, key) for f in (folder, "teacher")]
        if any(x is None for x in pair):
            return None
        mine, ideal = (x.reshape(n, -1).astype(np.float64) for x in pair)
        return float(((mine - ideal) ** 2).mean())
    x = collect(bench, folder, start, n, name)
    if x is None:
        return None
    if kind == "FD":
        return frechet_distance(x, reference.search)
    if kind == "FD-infinity":
        return frechet_infinity(x, reference.search)
    return score_kernel(x, reference.sample).value


def analyse(bench: Bench, found: list[Entry], args: argparse.Namespace) -> list[dict]:
    """Every statistic against the truth, as far as it was measured."""
    rows = []
    for extractor, name in enumerate(EXTRACTORS):
        truth = []
        for i in range(len(found)):
            x = collect(bench, f"schedule-{i:02d}", TRUTH, args.truth, name)
            moments = bench.references[extractor].test
            truth.append(None if x is None else frechet_distance(x, moments))
        for steps in sorted({entry.steps for entry in found}):
            for kind in STATISTICS:
                for seeds in ("common", "own"):
                    for n in args.sizes:
                        members = [
                            i
                            for i, entry in enumerate(found)
                            if entry.steps == steps
                            and truth[i] is not None
                            and (entry.shares_guidance or not kind.startswith("teacher"))
                        ]
                        starts = [
                            OWN + i * OWN_STRIDE if seeds == "own" else COMMON for i in members
                        ]
                        values = [
                            statistic(bench, kind, extractor, i, start, n)
                            for i, start in zip(members, starts, strict=True)
                        ]
                        if len(members) < 3 or any(v is None for v in values):
                            continue
                        true = np.array([truth[i] for i in members])
                        best = np.argsort(values)[: min(5, len(values))]
                        rows.append(
                            {
                                "extractor": name,
                                "steps": steps,
                                "statistic": kind,
                                "seeds": seeds,
                                "n": n,
                                "schedules": len(members),
                                "tau": float(kendalltau(values, true).statistic),
                                "top5_regret": float(true[best].min() - true.min()),
                                "best_regret": float(true[best[0]] - true.min()),
                                "passes": n * found[members[0]].schedule.passes,
                            }
                        )
    return rows


def write(rows: list[dict], found: list[Entry], args: argparse.Namespace) -> None:
    """JSON, a table in markdown and a plot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    data = {"truth_images": args.truth, "schedules": [e.name for e in found], "rows": rows}
    text = json.dumps(data, indent=1)
    write_whole(args.docs / "ranking.json", lambda p: p.write_text(text))
    lines = [
        f"# What a small subset can tell (truth: FD at n = {args.truth:,})",
        "",
        "Made by `scripts/study_ranking.py`. Regret is in units of the true FD: of the best of the "
        "five schedules that the statistic ranks first, and of its first.",
        "",
        "| extractor | steps | statistic | seeds | n | schedules | tau | top-5 regret | regret "
        "| passes a schedule |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['extractor']} | {r['steps']} | {r['statistic']} | {r['seeds']} | {r['n']:,} "
        f"| {r['schedules']} | {r['tau']:.2f} | {r['top5_regret']:.3g} | {r['best_regret']:.3g} "
        f"| {r['passes']:,} |"
        for r in rows
    ]
    table = "\n".join(lines) + "\n"
    write_whole(args.docs / "ranking.md", lambda p: p.write_text(table))
    panels = sorted({(r["extractor"], r["steps"]) for r in rows})
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for k, kind in enumerate(STATISTICS):
            for seeds, style in (("common", "-"), ("own", ":")):
                line = [
                    (r["n"], r["tau"])
                    for r in rows
                    if (r["extractor"], r["steps"]) == panel
                    and (r["statistic"], r["seeds"]) == (kind, seeds)
                ]
                if line:
                    label = kind if seeds == "common" else None
                    axis.plot(
                        *zip(*line, strict=True), style, color=f"C{k}", label=label, marker="."
                    )
        axis.set(
            title=f"{panel[0]}, {panel[1]} steps", xscale="log", xlabel="images", ylim=(None, 1)
        )
        axis.set_ylabel("Kendall's tau with the truth (dotted: own seeds)")
        axis.legend(fontsize=7)
    figure.tight_layout()
    write_whole(args.docs / "ranking.png", lambda p: figure.savefig(p, format="png", dpi=110))
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedules", type=int, nargs=2, default=(40, 12), help="at 5, at 8 steps")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--truth", type=int, default=10_000, help="images of the true ranking")
    parser.add_argument("--teacher-common", type=int, default=1024, help="of 50 steps")
    parser.add_argument("--teacher-own", type=int, default=256, help="for each schedule")
    parser.add_argument("--hours", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--run", type=Path, default=Path("runs/ranking"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--dry-run", action="store_true", help="print passes and hours, and end")
    args = parser.parse_args(argv)
    bench = Bench(args.run, args.batch)
    counts = dict(zip((5, 8), args.schedules, strict=True))
    found = entries(bench.model.noise, {k: n for k, n in counts.items() if n})
    jobs = plan(found, args)
    done = {p.relative_to(args.run).with_suffix("").as_posix() for p in args.run.glob("*/*")}
    left = [j for j in jobs if f"{j[0]}/{j[2].start}-{j[2].stop}" not in done]
    passes = sum((j[1] or bench.teacher).passes * len(j[2]) for j in left)
    started = time.monotonic()
    bench.images(found[0].schedule, range(args.batch))
    bench.images(found[0].schedule, range(args.batch))
    rate = 2 * args.batch * found[0].schedule.passes / (time.monotonic() - started)
    hours = passes / rate / 3600
    print(
        f"{len(found)} schedules, {len(left)} of {len(jobs)} parts to do: {passes:,} passes, about "
        f"{hours:.2f} hours at {rate:.0f} passes a second on {torch.get_num_threads()} threads",
        flush=True,
    )
    if args.dry_run:
        return
    deadline = time.monotonic() + 3600 * args.hours
    for k, (name, schedule, seeds, keep) in enumerate(left):
        if time.monotonic() > deadline:
            print(
                f"stopped at {args.hours:g} hours, {len(left) - k} parts to do; run again to go on"
            )
            break
        bench.part(name, schedule or bench.teacher, seeds, keep)
        if sys.stdout.isatty():
            print(f"\r{k + 1} of {len(left)} parts", end="", flush=True)
    write(analyse(bench, found, args), found, args)
    print(f"{args.docs}: ranking.json, ranking.md, ranking.png")


if __name__ == "__main__":
    main()
