#!/usr/bin/env python3
"""What `stepsearch polish` makes of well-known schedules of the bundled model, and for how much.

    python scripts/bench/bench_polish.py --iterations 2 --check-images 240

Writes a table (.md) and its numbers (.json): FD under both bundled extractors and alignment on test
seeds and real images that no polish saw, and two rulers that it does not look through; before and
after, with a constant gain alone, and with each freedom. Runs again where it was cut off, from
--cache.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from peers.measure import mean_of
from stepsampler.errors import percent
from stepsampler.grids import GRIDS, from_sigmas
from stepsampler.models import LatentModel
from stepsampler.schedule import Schedule, load
from stepsearch.config import ModelConfig, StudyConfig
from stepsearch.config.measuring import EvaluationConfig
from stepsearch.config.space import SpaceConfig
from stepsearch.metrics.distance import Score, score
from stepsearch.metrics.evaluator import TEST, Evaluator, seeds_of
from stepsearch.paths import write_whole
from stepsearch.polish.descent import Settings, polish
from stepsearch.polish.knobs import Knobs
from stepsearch.polish.looking import Here

# Grid, guidance scale of each step, and solver.
STARTS: dict[str, tuple] = {
    "kl-optimal, 3 steps, w 2": ("kl-optimal", [2.0] * 3, "dpmpp-midpoint"),
    "ays-sd15, 7 steps, the first 3 guided, w 2": (
        *("ays-sd15", [2.0] * 3 + [1.0] * 4),
        "dpmpp-midpoint",
    ),
}
# Column and name of rows of docs/gains.json: the best known with their gains, and ours of then.
ROWS = {
    "the best known of 6 passes": (3, "kl-optimal, unipc-bh2, order 2, w 2, gain 1.04"),
    "ours of before, 6 passes": (3, "ours"),
    "ours of before, 7 passes": (4, "ours"),
    "the best known of 10 passes": (5, "AYS (SDXL values), unipc-bh2, order 3, w 2, gain 1.07"),
    "ours of before, 8 passes": (5, "ours"),
}
GAINS = Path(__file__).parents[2] / "docs" / "gains.json"
WHAT = {
    "none": "levels and scales",
    "one-gain": "and one gain",
    "gain": "and gains",
    "weights": "and weights",
}
LISTS = ("starts", "found", "freedoms", "gains")  # options that make rows
SEEN, UNSEEN = ("texture", "lite0"), ("squeezenet", "patches")
COLUMNS = ("schedule", "after", "passes", "spent", *SEEN, *UNSEEN, "mean", "to before", "alignment")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("docs/polish"), help="files without their suffix")
    add("--starts", nargs="+", default=[*ROWS, *STARTS], metavar="NAME", help="in order")
    add("--found", nargs="*", type=Path, default=[], help="schedule files as starts too")
    add("--freedoms", nargs="*", default=["gain"], choices=list(WHAT))
    add("--add", action="store_true", help="rows to the table of --out, of the same settings")
    add("--gains", nargs="*", type=float, default=[1.07], help="constant ones, for comparison")
    add("--iterations", type=int, default=Settings.iterations)
    add("--images", type=int, default=Settings.images, help="an iteration, of each number")
    add("--check-images", type=int, default=Settings.check_images)
    add("--images-test", type=int, default=1500)
    add("--batch", type=int, default=50)
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the network")
    add("--cache", type=Path, default=Path("runs/polish"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    space = SpaceConfig(num_steps=2, passes=4)
    both = EvaluationConfig(extractor="+".join(SEEN), rulers=UNSEEN, batch_size=args.batch)
    model = ModelConfig(dtype=args.dtype)
    config = StudyConfig(name="bench-polish", model=model, space=space, evaluation=both)
    evaluator = Evaluator(config, args.cache)
    settings = Settings(args.iterations, args.images, args.check_images)
    table = known(args)
    there = {row["schedule"] for row in table["rows"]}
    for row in measured(args, evaluator, settings, there):
        table["rows"] = added(table["rows"], row)
        print(" | ".join(cells(row)), flush=True)
        write(args.out, table, settings)


def known(args: argparse.Namespace) -> dict:
    """The table as it is before the first row, with `--add` that which is there."""
    places = ("out", "cache", "add")
    used = {k: v for k, v in vars(args).items() if k not in places}
    used["found"] = [path.name for path in args.found]
    if not args.add:
        return {"settings": used, "rows": []}
    table = json.loads(args.out.with_suffix(".json").read_text(encoding="utf-8"))
    before = table["settings"]
    before.setdefault("dtype", "float32")  # of the first rows
    if other := [k for k, v in used.items() if k not in LISTS and before[k] != v]:
        raise SystemExit(f"--add: the table of {args.out} has another {', '.join(other)}")
    for k in LISTS:
        before[k] = list(dict.fromkeys([*before.get(k, []), *used[k]]))
    return table


def added(rows: list[dict], row: dict) -> list[dict]:
    """The rows with one more, the last of its schedule, without one of the same kind."""

    def name(row: dict) -> tuple[str, str]:
        return row["schedule"], row["after"].partition(" iterations")[2] or row["after"]

    rows = [other for other in rows if name(other) != name(row)]
    same = [i for i, other in enumerate(rows, 1) if other["schedule"] == row["schedule"]]
    place = max(same, default=len(rows))
    return [*rows[:place], row, *rows[place:]]


def measured(
    args: argparse.Namespace, evaluator: Evaluator, settings: Settings, there: set[str]
) -> Iterator[dict]:
    """A row for each schedule as it was, if not `there`; with a constant gain; and polished."""
    starts = {name: start(name, evaluator.model) for name in args.starts}
    starts |= {path.name: load(path) for path in args.found}
    for name, schedule in starts.items():
        row, before = tested(args, evaluator, name, "", schedule, 0, None)
        if name not in there:
            yield row
        for gain in args.gains if schedule.steps[0].gain == 1 else ():
            steps = tuple(replace(step, gain=gain) for step in schedule.steps)
            own = replace(schedule, steps=steps)
            after = f"a gain of {gain:g}, no search"
            yield tested(args, evaluator, name, after, own, 0, before)[0]
        for freedom in args.freedoms:
            found = polish(Here(evaluator), Knobs(schedule, freedom), settings, say)
            after = f"{found.best.iteration} iterations, {WHAT[freedom]}"
            plan, spent = found.schedule, found.passes
            row, _ = tested(args, evaluator, name, after, plan, spent, before)
            yield row | {"checks": [asdict(check) for check in found.checks]}


def start(name: str, model: LatentModel) -> Schedule:
    if name in ROWS:
        steps, wanted = ROWS[name]
        columns = json.loads(GAINS.read_text(encoding="utf-8"))
        (rows,) = (column["contenders"] for column in columns if column["steps"] == steps)
        (row,) = (row for row in rows if row["name"] == wanted)
        return Schedule.from_json(json.dumps(row["schedule"]))
    grid, scales, solver = STARTS[name]
    *sigmas, final = GRIDS[grid](len(scales), model.noise)
    return from_sigmas(sigmas, final, scales, 2, solver, model.spec)


def say(done: float, news: str) -> None:
    if news:
        print(f"  {done:g}: {news}", flush=True)


def tested(
    args: argparse.Namespace,
    evaluator: Evaluator,
    name: str,
    after: str,
    schedule: Schedule,
    spent: int,
    before: Score | None,
) -> tuple[dict, Score]:
    """On test seeds, against the real images that no search saw; and the mean of its distances.

    `before` is that of the schedule as it was: how far below or above it this one is, image by
    image.
    """
    found = evaluator.measure(schedule, seeds_of(TEST, args.images_test))
    row = {"schedule": name, "after": after, "passes": schedule.passes, "spent": spent}
    parts = evaluator.reference.test.split(found.features)
    parts += [
        (found.rulers[ruler.reference.metric], ruler.reference.test) for ruler in evaluator.rulers
    ]
    names = (*SEEN, *UNSEEN)
    scores = {name: score(*part) for name, part in zip(names, parts, strict=True)}
    scores["mean"] = mean_of(scores)
    row |= {name: [value.value, value.se] for name, value in scores.items()}
    mean = scores["mean"]
    if before is not None:
        over = Score(mean.value / before.value - 1, mean.left_out / before.left_out - 1)
        row["over"] = [over.value, over.se]
    aligned = found.aligned
    row["alignment"] = [float(aligned.mean()), float(aligned.std() / np.sqrt(len(aligned)))]
    return row | {"file": json.loads(schedule.to_json())}, mean


def cells(row: dict) -> list[str]:
    share, error = row["alignment"]
    distances = [f"{row[k][0]:.2f} ± {row[k][1]:.2f}" for k in (*SEEN, *UNSEEN, "mean")]
    return [
        row["schedule"],
        row["after"] or "as it was",
        str(row["passes"]),
        f"{row['spent']:,}",
        *distances,
        f"{percent(row['over'][0], '+.1')} ± {percent(row['over'][1])}" if "over" in row else "",
        f"{percent(share)} ± {percent(error)}",
    ]


def write(out: Path, table: dict, settings: Settings) -> None:
    n = table["settings"]["images_test"]
    head = (
        f"FD and alignment at n = {n:,} on test seeds; a polish of at most "
        f"{settings.iterations} iterations of {settings.images} images, under texture and lite0 at "
        f"once, checked on {settings.check_images} images of the selection's seeds. Two rulers, of "
        "SqueezeNet's features and of patches, were seen by nobody; `mean` is the geometric mean "
        "of all four."
    )
    lines = ["# Polish", "", head, "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(cells(row))} |" for row in table["rows"]]
    text = "\n".join(lines) + "\n"
    write_whole(out.with_suffix(".md"), lambda path: path.write_text(text))
    dumped = json.dumps(table, indent=1)
    write_whole(out.with_suffix(".json"), lambda path: path.write_text(dumped + "\n"))


if __name__ == "__main__":
    main()
