"""Rivals and teacher with the best constant gain each, beside our searches that may use gains too.

    export SPEED="--dtype bfloat16 --compile"           # where that pays
    python scripts/bench/bench_gains.py $SPEED --steps 5      # resumes; writes docs/gains.*

What `bench_peers.py` found at n guided steps, in docs/benchmarks.json: every placement, preset and
search, ours of then, and rows of many steps. A constant gain multiplies what a step takes of the
predictions, costs nothing, and is found here for each as a guidance scale is: all of `--gains` on
few selection seeds, the best two on more, by the geometric mean of the two FDs of trained networks.
Of rows of many steps the shortest alone is here, since longer ones were no better there. Each is
tested as published and with it, on fresh seeds, under these and two rulers that nothing was chosen
by. Our searches of now, one for each of `--search-seeds`, begin at known schedules as rivals do,
have no gain in their box, and polish the best of their trials and of known schedules, with one gain
of all steps: what is best without it is also the better start. Their orders are up to 2: with
the third single images were far off under the second FD, which they do not see. And the best known
guided schedule with its gain is polished as it is, without a search. Both see the first FD alone,
of which few images tell most (docs/ranking.md). Further rivals are made in `peers.further.rivals`.
`--add` measures those that a column lacks, and beside them ours again.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from peers.further.contenders import Remembering
from peers.further.rivals import RIVALS, Rivals
from peers.gains import DRAWN, page
from peers.gains_transfer import transfer
from peers.measure import Entry, Measure, mean_of, with_gain
from stepsampler.grids import is_guided
from stepsampler.schedule import Schedule
from stepsearch.compare.table import as_data, compare
from stepsearch.config import StudyConfig
from stepsearch.config.baselines import ALL
from stepsearch.engine.run import run_study
from stepsearch.engine.tracking import NoTracking
from stepsearch.engine.workers import Workers
from stepsearch.metrics.distance import Score
from stepsearch.metrics.evaluator import SELECTION, Evaluator, seeds_of
from stepsearch.metrics.protocol import Seeds, measure_all
from stepsearch.paths import write_whole
from stepsearch.polish.descent import Settings, polish
from stepsearch.polish.knobs import Knobs
from stepsearch.polish.looking import Here

FRESH = 100_000_000  # test seeds that no study has seen
CHOOSING, UNSEEN = ["texture", "lite0"], ["squeezenet", "patches"]  # ours see the first
DTYPES = ("float32", "bfloat16")
WITH_GAIN = "{}, gain {:g}"
SETTINGS = ("images", "gains", "selection", "trials", "trial_images", "polish", "iterations")
SETTINGS += ("dtype", "compile", "patterns", "drop", "search_dtype")
STARTS = ("placement", "learned")  # kinds of known schedules that others learn from


class Bench(Measure):
    """The rows of each number of steps; images that are measured are in the cache of `--run`."""

    seen = len(CHOOSING)  # of the metrics, by whoever chooses a gain

    def column(self, rows: dict) -> dict:
        """All that is tested at this number of steps."""
        published = [Entry.of(row) for row in rows["contenders"] if row["kind"] != "part"]
        long = [entry for entry in published if entry.kind == "long"]
        long.sort(key=lambda entry: len(entry.schedule.steps))
        published = [entry for entry in published if entry not in long[1:]]
        published += [make() for make in self.rivals(rows).values()]
        chosen = {entry.name: self.gain(entry) for entry in published}
        gains = {name: gain for name, (gain, _) in chosen.items()}
        entries = [*published, *gained(published, gains)]
        known = {row["name"] for row in rows["contenders"]}
        places = [e for e in published if e.kind == "placement" and guided(e) and e.name in known]
        if places:  # unguided ones lose alignment
            best = min(places, key=lambda entry: chosen[entry.name][1])
            (own,) = gained([best], gains) or [best]
            entries.append(self.polished(rows["steps"], own, places))
        entries += [self.searched(rows["steps"], seed) for seed in range(self.args.search_seeds)]
        return {"steps": rows["steps"], "passes": rows["passes"], **self.test(entries)}

    def rivals(self, rows: dict) -> dict[str, Callable[[], Entry]]:
        """What makes the further ones, by their names."""
        known = [Entry.of(row) for row in rows["contenders"] if row["kind"] in STARTS]
        made = Rivals(self, self.args, rows["steps"], known).makers
        return {name: make for name, make in made.items() if name in self.args.rivals}

    def add(self, rows: dict, column: dict) -> dict:
        """The column with the rivals that it lacks.

        Ours, its headline, is measured again beside them, so that they are compared with it by the
        same machine in the same dtype, image by image; what the column had stays.
        """
        there = [row["name"] for row in column["contenders"]]
        makers = self.rivals(rows).items()
        lacking = {k: make for k, make in makers if not any(name.startswith(k) for name in there)}
        if not lacking:
            return column
        entries = [make() for make in lacking.values()]
        gains = {entry.name: self.gain(entry)[0] for entry in entries}
        (ours,) = (row for row in column["contenders"] if row["headline"])
        plan = Schedule.from_json(json.dumps(ours["schedule"]))
        again = Entry(ours["name"], plan, "now", {"search": ours["search_passes"]})
        found = self.test([*entries, *gained(entries, gains), again])
        *new, beside = found.pop("contenders")
        keep = ("dtype", "versions")
        told = {key: found[key] for key in keep} | {"rows": [row["name"] for row in new]}
        told |= {"ours": beside["mean"], "settings": settings_of(self.args)}
        column["contenders"] += new
        return column | {"added": joined(column.get("added", []), told)}

    def gain(self, entry: Entry) -> tuple[float, float]:
        """The best of `--gains` on selection seeds, and its value there.

        What has gains of its own keeps them.
        """
        own = any(step.gain != 1 for step in entry.schedule.steps)
        plans = {gain: with_gain(entry.schedule, gain) for gain in self.args.gains}
        found = self.best({1.0: entry.schedule} if own else plans, entry.make)
        shown = ", ".join(f"{g:g}: {value:.1f}" for g, value in found.items())
        print(f"  {entry.name}: {shown}", flush=True)
        gain = min(found, key=found.__getitem__)
        return gain, found[gain]

    def best(self, plans: Mapping[Any, Schedule], make: type = Remembering) -> dict[Any, float]:
        """Of the two that are best on few images their `values` on more."""
        few, many = self.args.selection
        found = self.values(plans, few, make)
        two = sorted(found, key=found.__getitem__)[:2]
        return self.values({k: plans[k] for k in two}, many, make)

    def values(
        self, plans: Mapping[Any, Schedule], images: int, make: type = Remembering
    ) -> dict[Any, float]:
        """The geometric mean of the FDs that gains are chosen by, of each, on selection seeds."""
        harness = replace(self.harness, metrics=self.harness.metrics[: self.seen])
        entries = [Entry(f"{k}", plan, "part", make=make) for k, plan in plans.items()]
        contenders = [self.contender(entry) for entry in entries]
        seeds = Seeds("selection", seeds_of(SELECTION, images))
        scores = compare(contenders, harness, seeds).scores
        return {k: mean_of(found).value for k, found in zip(plans, scores, strict=True)}

    def polished(self, n: int, best: Entry, among: Sequence[Entry]) -> Entry:
        """A known schedule after gradient steps.

        Its passes are those that chose it and its gain among all of them, and the polish's.
        """
        few, many = self.args.selection
        images = few * len(self.args.gains) + (many - few) * 2
        config = StudyConfig.model_validate(study(self.args, n, 0))
        evaluator = Evaluator(config, self.args.run / "polish", self.args.device)
        settings = Settings(self.args.iterations, self.args.trial_images, check_images=many)
        print(f"  {best.name}, polished", flush=True)
        found = polish(Here(evaluator), Knobs(best.schedule, "gain"), settings, tell)
        choosing = images * sum(entry.schedule.passes for entry in among)
        passes = {"choosing": choosing, "polish": found.passes}
        return Entry(f"{best.name}, polished", found.schedule, "polish", passes)

    def searched(self, n: int, seed: int) -> Entry:
        """What a search of ours finds, with gains and a polish; a killed one goes on."""
        config = StudyConfig.model_validate(study(self.args, n, seed))
        folder = self.args.run / config.name
        path = folder / "entry.json"
        if not path.exists():
            print(f"  ours, search seed {seed}", flush=True)
            folder.mkdir(parents=True, exist_ok=True)
            with Workers(config, folder, [self.args.device]) as workers:
                result = run_study(config, folder, workers, NoTracking(), say)
            entry = {"schedule": result.winner.schedule.to_json(), "passes": result.search_passes}
            text = json.dumps(entry)
            write_whole(path, partial(Path.write_text, data=text, encoding="utf-8"))
        found = json.loads(path.read_text())
        plan = replace(Schedule.from_json(found["schedule"]), provenance={})
        passes = {"search": found["passes"]}
        return Entry(f"ours with gains, search seed {seed}", plan, "now", passes)

    def test(self, entries: Sequence[Entry]) -> dict:
        """Scores on fresh seeds, and how each row's geometric mean stands to that of our median."""
        contenders = [self.contender(entry) for entry in entries]
        seeds = Seeds("test", seeds_of(self.args.first_seed, self.args.images))
        measure_all(contenders, seeds.range, self.args.batch, self.measure)
        result = compare(contenders, self.harness, seeds)
        means = [mean_of(scores) for scores in result.scores]
        ours = [m for m, entry in zip(means, entries, strict=True) if entry.kind == "now"]
        middle = median(sorted(m.value for m in ours)[: 2 * ((len(ours) - 1) // 2) + 1])
        headline = next(m for m in ours if m.value == middle)
        data = as_data(result, self.harness, {"model": self.args.model, "dtype": self.args.dtype})
        for row, entry, mean in zip(data["contenders"], entries, means, strict=True):
            over = Score(headline.value / mean.value - 1, headline.left_out / mean.left_out - 1)
            row |= {"kind": entry.kind, "search_passes": sum(entry.passes.values())}
            row |= {"mean": [mean.value, mean.se], "over": [over.value, over.se]}
            row["headline"] = mean is headline
        return data


def joined(known: list[dict], told: dict) -> list[dict]:
    """What was added so far and this, as one where all but the rows is the same."""

    def what(one: dict) -> dict:
        return {key: value for key, value in one.items() if key != "rows"}

    same = [one for one in known if what(one) == what(told)]
    others = [one for one in known if one not in same]
    return [*others, told | {"rows": [row for one in [*same, told] for row in one["rows"]]}]


def tell(done: float, news: str) -> None:
    if news:
        print(f"    {done:g} iterations: {news}", flush=True)


def guided(entry: Entry) -> bool:
    return any(map(is_guided, entry.schedule.steps))


def gained(entries: Sequence[Entry], chosen: Mapping[str, float]) -> list[Entry]:
    """Those with their gain, by name, that have one."""
    return [
        replace(
            entry,
            name=WITH_GAIN.format(entry.name, chosen[entry.name]),
            schedule=with_gain(entry.schedule, chosen[entry.name]),
        )
        for entry in entries
        if chosen[entry.name] != 1
    ]


def study(args: argparse.Namespace, n: int, seed: int) -> dict:
    """A search that sees one extractor and polishes with gains, which its box has not."""
    images = args.trial_images
    return {
        "name": f"gains-{n}-seed-{seed}",
        "model": {"id": args.model, "dtype": args.search_dtype, "compile": args.compile},
        "space": {
            "num_steps": n,
            "passes": 2 * n,
            "max_steps": min(2 * n - 1, n + 2),
            "guidance": "per-step",
            "guidance_scale": (0.2, 5.0),
            "solvers": ("dpmpp-midpoint", "unipc-bh2"),
            "max_order": 2,
        },
        "evaluation": {
            "extractor": CHOOSING[0],
            "rulers": (),
            "images": images,
            "selection_images": 3 * images,
            "test_images": args.batch,  # the test is ours
            "batch_size": args.batch,
        },
        "baselines": {
            "guidance_scales": (2.0,),
            "orders": (2,),
            "solvers": ("dpmpp-midpoint", "unipc-bh2"),
            "presets": (ALL,),
            "rungs": (images // 5, images * 2 // 5, images),
            "keep": 0.25,
            "test": 1,
        },
        "teacher": {"steps": 20, "images": images},
        "search": {
            "trials": args.trials,
            "finalists": 4,
            "alignment_drop": args.drop,
            "patterns": args.patterns,
            "polish": args.polish,
            "polish_iterations": args.iterations,
            "polish_gain": args.polish > 0,
            "seed": seed,
        },
    }


def say(stage: str, done: int, total: int, news: str) -> None:
    if news:
        print(f"    {stage}: {news}", flush=True)


def options(about: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    add = parser.add_argument
    add("--steps", type=int, nargs="+", default=[5, 4, 6, 8, 3, 10])
    add("--gains", type=float, nargs="+", default=[1.0, 1.04, 1.07, 1.1])
    add("--selection", type=int, nargs=2, default=[100, 300], help="images that choose a gain")
    add("--images", type=int, default=2000, help="of the test")
    add("--first-seed", type=int, default=FRESH, help="of the test")
    add("--search-seeds", type=int, default=3, help="searches of ours; the median is the headline")
    add("--trials", type=int, default=60, help="of each")
    add("--trial-images", type=int, default=300)
    add("--patterns", type=int, default=0, help="of guidance, that each of them begins with")
    add("--polish", type=int, default=2, help="finalists that each of them polishes")
    add("--iterations", type=int, default=3, help="of a polish")
    add("--drop", type=float, default=0.025, help="of the teacher's alignment, that may be lost")
    add("--batch", type=int, default=50)
    add("--model", default="tiny")
    add("--device", default="cpu")
    add("--dtype", default="float32", choices=DTYPES, help="of the test")
    add("--search-dtype", default="float32", choices=DTYPES, help="of our searches and polishes")
    add("--compile", action="store_true", help="the network, by torch")
    add("--transfer", action="store_true", help="test rows of docs/gains.json elsewhere instead")
    add("--processes", type=int, default=1)
    add("--run", type=Path, default=Path("runs/gains"))
    add("--docs", type=Path, default=Path("docs"))
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = options(__doc__)
    add = parser.add_argument
    add("--add", action="store_true", help="only rivals that a column lacks")
    add("--rivals", nargs="*", default=list(RIVALS), choices=RIVALS, help="that are made here")
    args = parser.parse_args(argv)
    args.extractors, args.held_out = [*CHOOSING, *UNSEEN], False
    return args


def settings_of(args: argparse.Namespace) -> dict:
    """Beside the options what earlier columns had otherwise."""
    fixed = {
        "way": "features",
        "gains_in": "polish",
        "gain": "one",
        "sees": getattr(args, "sees", CHOOSING[0]),
    }
    return {k: getattr(args, k) for k in SETTINGS} | fixed


def fill(
    path: Path,
    args: argparse.Namespace,
    column: Callable[[int], dict],
    page: Callable[[list[dict]], str],
) -> None:
    """Measure a column for each of `--steps`; file and page are written after each."""
    done = {rows["steps"]: rows for rows in json.loads(path.read_text())} if path.exists() else {}
    for n in args.steps:
        print(f"{n} steps", flush=True)
        done[n] = {"settings": settings_of(args)} | column(n)
        found = [done[n] for n in sorted(done)]
        for file, text in ((path, json.dumps(found)), (path.with_suffix(".md"), page(found))):
            write_whole(file, partial(Path.write_text, data=text + "\n", encoding="utf-8"))
    print(path.with_suffix(".md").read_text())


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(1)
    if args.transfer:
        transfer(args, Bench)
        return
    known = json.loads((args.docs / "benchmarks.json").read_text())["steps"]
    rows = {rows["steps"]: rows for rows in known}
    bench, path = Bench(args), args.docs / DRAWN
    columns = {c["steps"]: c for c in json.loads(path.read_text())} if args.add else {}
    if lacking := [f"{n}" for n in args.steps if args.add and n not in columns]:
        raise SystemExit(f"--add: {path} has no column of {', '.join(lacking)} steps")

    def column(n: int) -> dict:
        return bench.add(rows[n], columns[n]) if args.add else bench.column(rows[n])

    fill(path, args, column, page)


if __name__ == "__main__":
    main()
