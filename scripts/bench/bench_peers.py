"""Every rival against our search at equal network passes, on the bundled model.

    python scripts/bench/bench_peers.py --dry-run               # passes and hours
    export SPEED="--dtype bfloat16 --compile"
    python scripts/bench/bench_peers.py $SPEED --hours 5        # resumes; writes docs/benchmarks.*
    python scripts/bench/bench_peers.py $SPEED --ablation --seeds 3
    python scripts/bench/bench_peers.py --ablation --axes "+ gain" --seeds 3  # one axis beside ours
    python scripts/bench/bench_peers.py $SPEED --transfer       # of what docs/benchmarks.json has

For each number of steps n, at 2 n passes: our search; every placement and every preset under
DPM++(2M) and UniPC, at each guidance scale and unguided with 2 n steps, thinned out by successive
halving; on the three best placements other solvers, scales in between and guidance intervals. The
best of all that, chosen on selection seeds as ours is, ours, the searching rivals and rows of many
steps are tested on the same fresh seeds under both extractors; differences are paired. The search
sees the first extractor only. With `--also`, ours and all rivals are chosen under others as well;
with `--add`, a table that is there stays, and only that and the searching rivals come to it.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # here and in the workers: a core for each

from peers.measure import Entry, Measure, speed
from peers.options import parse
from peers.output import earlier, replace_steps, tested_rows, write
from peers.screening import screen
from peers.studies import (
    EXTRACTORS,
    ablation,
    chosen,
    cold,
    estimate,
    ours,
    rival,
    screening,
    so_far,
)
from peers.targets import SAW, best_rival, metrics
from stepsampler.errors import UserError
from stepsampler.grids import make_schedule
from stepsampler.schedule import Schedule
from stepsearch.compare.table import as_data, compare, identity, join
from stepsearch.config import StudyConfig
from stepsearch.engine.run import Starts, run_study
from stepsearch.engine.tracking import NoTracking
from stepsearch.engine.workers import Workers
from stepsearch.metrics.distance import frechet_infinity
from stepsearch.metrics.evaluator import SELECTION, seeds_of
from stepsearch.metrics.protocol import Seeds, measure_all
from stepsearch.paths import write_whole
from stepsearch.report import summary
from stepsearch.space.starts import first_points

FRESH = 60_000_000  # test seeds that no study has seen


class OutOfTimeError(Exception):
    """The hours are over; what is done is in the cache."""


class Bench(Measure):
    """The parts of the benchmark; each is in the cache once it is done."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.args, self.end = args, time.monotonic() + 3600 * args.hours
        self.tested: dict[str, dict] = {}  # rows of earlier calls, by identity

    def check_time(self, *_: object) -> None:
        if time.monotonic() > self.end:
            raise OutOfTimeError

    def report(self, stage: str, done: int, total: int, news: str) -> None:
        self.check_time()
        if news:
            print(f"  {stage}: {news}", flush=True)

    def folder(self, config: StudyConfig) -> Path:
        """Of a study: other settings, another model or other data have another one.

        Images are shared by all studies; each counts the passes of all that it used.
        """
        texts = [prompt.text for prompt in self.harness.prompts]
        known = config.model_dump_json(exclude_defaults=True)  # new options change no old study
        parts = [known, self.digest, self.harness.metrics[0].identity, *texts]
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10]
        folder = self.args.run / f"{config.name}-{digest}"
        if not (folder / "cache").is_symlink():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "cache").symlink_to(Path("..") / "images", target_is_directory=True)
        (self.args.run / "images").mkdir(exist_ok=True)
        return folder

    def search(
        self, name: str, config: StudyConfig, kind: str, starts: Starts = first_points
    ) -> Entry:
        """Run a search to its end, or recall what it came to."""
        folder = self.folder(config)
        path = folder / "entry.json"
        if not path.exists():
            print(f"{name}, {config.space.num_steps} steps", flush=True)
            with self.clocked(folder), self.workers(config) as workers:
                result = run_study(config, folder, workers, NoTracking(), self.report, starts)
            summary.write(result, config, folder)  # a finished run, for front and --start-from
            winner, passes = chosen(result, kind)
            parts = so_far(folder, config, result.passes) if kind == "ours" else {}
            entry = {
                "passes": passes,
                "found": winner.kind == "found",
                "schedule": winner.schedule.to_json(),
                "so_far": {share: schedule.to_json() for share, schedule in parts.items()},
            }
            write_whole(path, lambda p: p.write_text(json.dumps(entry)))
        found = json.loads(path.read_text())
        seconds = json.loads((folder / "seconds.json").read_text())
        parts = {float(k): Schedule.from_json(plan) for k, plan in found["so_far"].items()}
        shown = name if found["found"] else f"{name} (a baseline: no trial was chosen)"
        plan = Schedule.from_json(found["schedule"])
        minutes = 0.0 if kind == "axis" else seconds / 60  # one row used the images of the others
        return Entry(shown, plan, kind, found["passes"], minutes, parts)

    def workers(self, config: StudyConfig) -> Workers:
        devices = [self.args.device] * self.args.processes
        return Workers(config, self.folder(config), devices)

    @contextmanager
    def clocked(self, folder: Path) -> Iterator[None]:
        """Add the seconds inside to the folder's, also where they end too early."""
        path = folder / "seconds.json"
        before = json.loads(path.read_text()) if path.exists() else 0.0
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = before + time.monotonic() - started
            write_whole(path, lambda p: p.write_text(json.dumps(seconds)))

    def screen(self, config: StudyConfig) -> list[dict]:
        """Each placement's best guided and unguided forms; best first."""
        path = self.folder(config) / "screening.json"
        if not path.exists():
            print(f"screening, {config.space.num_steps} steps", flush=True)
            with self.workers(config) as workers:
                rows = screen(config, workers, self.check_time)
            write_whole(path, lambda p: p.write_text(json.dumps(rows)))
        return json.loads(path.read_text())  # type: ignore[no-any-return]

    def column(self, found: dict, n: int) -> Iterator[dict]:
        """All that the table says of n steps; of a new table first what comes soon."""
        there = next((rows for rows in found["steps"] if rows["steps"] == n), None)
        rows = there if self.args.add else self.steps(n)
        if rows is None:
            raise UserError(f"{self.args.docs} has no table of {n} steps to add to")
        if there is None:
            yield rows
        yield self.added(rows, n) if self.args.also or n in self.args.searching else rows

    def steps(self, n: int) -> dict:
        """Our searches, what was screened, and the rows of many steps."""
        found = self.search("ours", ours(self.args, n), "ours")
        entries = [found]
        for seed in range(1, self.args.seeds):
            other = self.search(f"ours, search seed {seed}", ours(self.args, n, seed), "ours")
            entries.append(replace(other, kind="part", minutes=0.0))  # used images of the first
        screened = self.screen(screening(self.args, n))
        for share, schedule in found.so_far.items():
            name = f"ours, best trial after {share:.0%} of the passes"
            passes = {"part": round(share * sum(found.passes.values()))}
            entries.append(Entry(name, schedule, "part", passes))
        entries += self.picked(screened)
        known = {"steps": n, "passes": 2 * n, "screening": {self.args.extractors[0]: screened}}
        return {**known, **self.test([*entries, *self.long_rows()])}

    def added(self, rows: dict, n: int) -> dict:
        """The rows with our searches and the rivals of `--also`, and with the searching rivals."""
        args, settings = self.args, rows.get("settings", {})
        now = vars(args) | {"algorithm": ours(args, n).search.algorithm}
        for key in ("algorithm", "trials", "seeds") if args.also and settings else ():
            if settings[key] != str(now[key]):
                raise UserError(f"the table of {n} steps has {key} {settings[key]}, not {now[key]}")
        searching = args.rival_searches if n in args.searching else []
        new = {*searching, *(f"ours, {SAW}{name}" for name in args.also)}
        first, *others = (
            Entry.of(row)
            for row in rows["contenders"]
            if row["kind"] != "long" and row["name"].partition(" (")[0] not in new
        )
        screened, entries = dict(rows["screening"]), [first]
        for name in args.also:
            under = argparse.Namespace(**{**vars(args), "extractors": [name]})
            other = self.search(f"ours, {SAW}{name}", ours(under, n), "ours")
            entries.append(replace(other, kind="part"))
            screened[name] = self.screen(screening(under, n))
            there = {e.name for e in others}
            others += [e for e in self.picked(screened[name]) if e.name not in there]
        entries += others
        for name in searching:
            study = rival(args, name, n, sum(first.passes.values()))
            entries.append(self.search(name, study, "search", cold(study)))
        found = {"steps": n, "passes": rows["passes"], "screening": screened}
        if settings:
            now = {key: now[key] for key in ("dtype", "compile", "times")[: 2 + bool(searching)]}
            known = {"found_in": settings["dtype"], **settings, "also": [*screened][1:], **now}
            found["settings"] = {key: str(value) for key, value in known.items()}
        return {**found, **self.test([*entries, *self.long_rows()])}

    def picked(self, screened: list[dict]) -> list[Entry]:
        """The best of a screening, and of either kind one at least; learning is a search."""
        best = screened[: self.args.test]
        for guided in (True, False):
            if not any(row["guided"] == guided for row in best):
                best += [row for row in screened if row["guided"] == guided][:1]
        return [
            Entry(
                row["name"],
                Schedule.from_json(row["schedule"]),
                "learned" if row["placement"] in ("ld3", "amed") else "placement",
                {"placement": row["passes"]},
                row["seconds"] / 60,
            )
            for row in best
        ]

    def ablation(self, n: int, seed: int) -> Iterator[dict]:
        studies = ablation(self.args, n, seed)
        entries = [self.search(name, config, "axis") for name, config in studies.items()]
        yield {"steps": n, "passes": 2 * n, "search_seed": seed, **self.test(entries)}

    def transfer(self, rows: dict) -> Iterator[dict]:
        """What was chosen for n steps, on prompts and with weights that no search saw."""
        every, long = rows["contenders"], self.args.long
        kept = [row for row in every if row["kind"] == "ours"]
        kept += [row for row in every if row["kind"] == "long" and row["steps"] in long]
        for metric, kind in product(metrics(rows), ("placement", "learned", "search")):
            best = best_rival(every, metric, (kind,))
            kept += [best] if best and best not in kept else []
        entries = [Entry.of(row) for row in kept]
        tests = {"as it was chosen": self.test(entries)}
        for name, change in self.args.elsewhere.items():
            args = argparse.Namespace(**{**vars(self.args), **change})
            bench = Bench(args)
            bench.end = self.end
            tests[name] = bench.test(entries)
        yield {"steps": rows["steps"], "passes": rows["passes"], "tests": tests}

    def long(self, steps: int, w: float) -> Schedule:
        return make_schedule("linspace", steps, self.model.noise, order=2, guidance_scale=w)

    def long_rows(self) -> list[Entry]:
        """Many steps of DPM++(2M), at the guidance that is best for the fewest of them.

        By FD-infinity of many selection seeds: the more steps, the less they change with more, and
        the dearer is a choice.
        """
        if not self.args.long:
            return []
        few = sorted(self.args.scales)
        scales = [*few, *((a + b) / 2 for a, b in pairwise(few)), 1.0]
        name, fewest = "DPM++(2M), {} steps, {}", min(self.args.long)
        rows = [Entry(f"{name} {w}", self.long(fewest, w), "long") for w in scales]
        contenders = [self.contender(row) for row in rows]
        picked = [c.identity in self.tested for c in contenders]  # by an earlier call
        if not any(picked):
            seeds = seeds_of(SELECTION, self.args.long_images)
            found = measure_all(contenders, seeds, self.args.batch, self.measure)
            moments = self.harness.metrics[0].reference.search
            values = [frechet_infinity(part.features, moments) for part in found]
            picked = [value == min(values) for value in values]
        w = scales[picked.index(True)]
        how = "unguided" if w == 1 else f"w {w:g}"
        return [Entry(name.format(n, how), self.long(n, w), "long") for n in self.args.long]

    def test(self, entries: Sequence[Entry]) -> dict:
        """Scores on fresh seeds; differences are to the first entry."""
        known = [e for e in entries if self.contender(e).identity in self.tested]
        fresh = [e for e in entries if e not in known]
        contenders = [self.contender(entry) for entry in fresh]
        seeds = seeds_of(FRESH, self.args.images_test)
        measure_all(contenders, seeds, self.args.batch, self.measure)
        result = compare(contenders, self.harness, Seeds("test", seeds))
        rows = [self.tested[self.contender(entry).identity] for entry in known]
        result = join(result, {"contenders": rows}, self.args.docs)
        data = as_data(result, self.harness, {"model": self.args.model, "dtype": self.args.dtype})
        entries = [*fresh, *known]
        for row, entry in zip(data["contenders"], entries, strict=True):
            row |= {"kind": entry.kind, "search_passes": sum(entry.passes.values())}
            row |= {"stages": entry.passes, "minutes": entry.minutes}
            row["schedule"] = json.loads(replace(entry.schedule, provenance={}).to_json())
        return data


def main(argv: list[str] | None = None) -> None:
    parser, args = parse(argv, __doc__.splitlines()[0])
    part = "-ablation" if args.ablation else "-transfer" if args.transfer else ""
    part = "-axes" if args.ablation and args.axes else part
    by = "" if args.extractors[0] == EXTRACTORS[0] else f"-by-{args.extractors[0]}"
    path = args.docs / f"benchmarks{part}{by}"
    settings = {k: str(v) for k, v in vars(args).items() if v or k != "axes"}  # earlier: none
    settings["algorithm"] = ours(args, args.steps[0]).search.algorithm
    try:
        found = earlier(path.with_suffix(".json"), settings)
    except UserError as error:
        parser.error(str(error))
    bench = Bench(args)
    rate = speed(bench, bench.long(5, 2.0))
    passes = estimate(args)
    print(
        f"{passes:,} passes, about {passes / rate / args.processes / 3600:.1f} hours at "
        f"{rate:.0f} passes a second in each of {args.processes} processes, less what is in the "
        f"cache of {args.run}",
        flush=True,
    )
    if args.dry_run:
        return
    now = identity(bench.harness, seeds_of(FRESH, args.images_test), {})
    kinds = () if args.transfer else ("long",)  # they cost as much as all others
    bench.tested = tested_rows(args.docs / f"benchmarks{by}.json", now, kinds)
    jobs: list[tuple[str, Callable[[], Iterator[dict]]]] = []
    if args.ablation:
        for n, seed in product(args.ablation_steps, range(args.seeds)):
            jobs.append((f"{n} steps, search seed {seed}", partial(bench.ablation, n, seed)))
    elif args.transfer:
        for rows in json.loads((args.docs / f"benchmarks{by}.json").read_text())["steps"]:
            if rows["steps"] in args.steps:
                jobs.append((f"{rows['steps']} steps", partial(bench.transfer, rows)))
    else:
        jobs += [(f"{n} steps", partial(bench.column, found, n)) for n in args.steps]
    failed = 0
    try:
        for name, job in jobs:
            try:
                for rows in job():
                    replace_steps(found, rows)
                    write(found, path)
            except UserError as error:  # the others may be well
                failed += 1
                print(f"{name}: {error}", file=sys.stderr, flush=True)
    except OutOfTimeError:
        print(f"stopped at {args.hours:g} hours; run again to go on")
    else:
        print(f"{path}.json, {path}.md")
    sys.exit(1) if failed else None


if __name__ == "__main__":
    main()
