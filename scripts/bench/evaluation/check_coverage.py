"""Does the standard error cover? Repeated draws on the bundled model.

    python scripts/bench/evaluation/check_coverage.py --dry-run                  # passes and hours
    python scripts/bench/evaluation/check_coverage.py --dtype bfloat16 --hours 1  # writes docs

Draws one schedule's images on seeds of their own, scores each draw with its block jackknife, and
compares with the spread and the mean of the draws: the errors should be as large as the spread, and
95 % intervals should hold the mean of the distance at this n. Smaller n are of the first images of
each draw. Measurements are cached; stopped early, it reports on the draws that are there.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from stepsampler.errors import percent
from stepsampler.grids import make_schedule
from stepsearch.config import StudyConfig
from stepsearch.metrics.distance import score, score_infinity, score_kernel
from stepsearch.metrics.evaluator import Evaluator, seeds_of
from stepsearch.metrics.reference import Reference
from stepsearch.paths import write_whole

FIRST = 90_000_000  # of no study, front or other script

ABOUT = """\
# Does the standard error cover?

Made by `{command}`:
draws of one schedule ({schedule}) of the bundled model in {dtype}, on
disjoint seeds. "Spread" is the standard deviation of the values over the draws, "mean error" what
the block jackknife of each draw says of it, "covered" the share of 95 % intervals that hold the
mean of the draws. With no more images than features (FD-infinity: four times as many) an error is
marked conservative: it may be too large.

Prompts are "in turn" where a draw has each as often as the others, as in every evaluation here,
while a block has only some: the error is then too large. "At random" deals the same images into
draws anew, so that sets differ as their blocks do.

| distance | n | prompts | draws | mean | spread | mean error | covered | |
|---|---|---|---|---|---|---|---|---|
"""


def coverage(draws: list[np.ndarray], reference: Reference) -> list[dict]:
    """A row for each distance, of features (n, axes) of every draw."""
    sample = reference.sample
    assert sample is not None
    rows = []
    for name, call in (
        ("FD", lambda x: score(x, reference.search)),
        ("FD-infinity", lambda x: score_infinity(x, reference.search)),
        ("KID", lambda x: score_kernel(x, sample)),
    ):
        scores = [call(x) for x in draws]
        values = np.array([s.value for s in scores])
        inside = [abs(s.value - values.mean()) <= s.quantile * s.se for s in scores]
        rows.append(
            {
                "distance": name,
                "n": len(draws[0]),
                "draws": len(draws),
                "mean": float(values.mean()),
                "spread": float(values.std(ddof=1)),
                "mean_error": float(np.mean([s.se for s in scores])),
                "covered": float(np.mean(inside)),
                "conservative": scores[0].conservative,
            }
        )
    return rows


def write(rows: list[dict], about: dict, folder: Path) -> None:
    """coverage.json and coverage.md."""
    text = json.dumps({**about, "rows": rows}, indent=1)
    write_whole(folder / "coverage.json", lambda p: p.write_text(text + "\n"))
    lines = [
        f"| {r['distance']} | {r['n']:,} | {r['prompts']} | {r['draws']} "
        f"| {r['mean']:.4g} | {r['spread']:.3g} | {r['mean_error']:.3g} "
        f"| {percent(r['covered'], '.0')} | {'conservative' if r['conservative'] else ''} |"
        for r in rows
    ]
    table = ABOUT.format(**about) + "\n".join(lines) + "\n"
    write_whole(folder / "coverage.md", lambda p: p.write_text(table))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[100, 250, 1000], help="n")
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--grid", default="power")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--hours", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--run", type=Path, default=Path("runs/coverage"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--dry-run", action="store_true", help="print passes and hours, and end")
    args = parser.parse_args(argv)
    if min(args.images) < 12 or args.draws < 2:  # or FD-infinity has no error
        parser.error("--images must be at least 12, and --draws 2")
    config = StudyConfig.model_validate(
        {
            "name": "coverage",
            "model": {"dtype": args.dtype},
            "space": {"num_steps": args.steps, "passes": 2 * args.steps},
        }
    )
    evaluator = Evaluator(config, args.run, args.device)
    schedule = make_schedule(
        args.grid,
        args.steps,
        evaluator.model.noise,
        order=2,
        guidance_scale=args.guidance_scale,
    )
    largest = max(args.images)
    passes = schedule.passes * largest * args.draws
    for _ in range(2):  # the first batch warms up
        started = time.monotonic()
        evaluator.images(schedule, range(evaluator.batch_size))
    hours = passes / schedule.passes / evaluator.batch_size * (time.monotonic() - started) / 3600
    print(
        f"{args.draws} draws of {largest:,} images: {passes:,} passes, about {hours:.2f} hours, "
        f"less what is in {args.run}",
        flush=True,
    )
    if args.dry_run:
        return
    end = time.monotonic() + 3600 * args.hours
    draws: list[np.ndarray] = []
    while len(draws) < args.draws and time.monotonic() < end:
        seeds = seeds_of(FIRST + len(draws) * largest, largest)
        draws.append(evaluator.measure(schedule, seeds).features)
        if sys.stdout.isatty():
            print(f"\r{len(draws)} of {args.draws} draws", end="", flush=True)
    if len(draws) < args.draws:
        print(f"stopped at {args.hours:g} hours, {len(draws)} draws are there; run it again")
    if len(draws) < 2:
        return
    every = np.concatenate(draws)
    mixed = np.split(every[np.random.default_rng(0).permutation(len(every))], len(draws))
    rows = [
        {"prompts": prompts, **row}
        for n in sorted(set(args.images))
        for prompts, sets in (("in turn", draws), ("at random", mixed))
        for row in coverage([x[:n] for x in sets], evaluator.reference)
    ]
    for row in rows:
        print(
            f"{row['distance']:<12} n {row['n']}, prompts {row['prompts']}: "
            f"mean {row['mean']:.4g}, spread {row['spread']:.3g}, mean error "
            f"{row['mean_error']:.3g}, {percent(row['covered'], '.0')} of the "
            "intervals hold the mean" + (" (marked conservative)" if row["conservative"] else "")
        )
    words = " ".join(sys.argv[1:] if argv is None else argv)
    about = {
        "command": f"python scripts/bench/evaluation/check_coverage.py {words}".strip(),
        "schedule": f"{args.grid}, {args.steps} steps, guidance {args.guidance_scale:g}",
        "dtype": args.dtype,
        "first_seed": FIRST,
        "identity": evaluator.identity,
    }
    write(rows, about, args.docs)
    print(f"{args.docs}: coverage.json, coverage.md")


if __name__ == "__main__":
    main()
