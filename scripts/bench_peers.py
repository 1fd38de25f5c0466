"""Every rival against our search at equal network passes, on the bundled model.

    python scripts/bench_peers.py --dry-run                          # passes and hours
    python scripts/bench_peers.py --dtype bfloat16 --hours 5         # resumes; writes docs/peers.*
    python scripts/bench_peers.py --dtype bfloat16 --ablation

For each number of steps n, at 2 n passes: our search; every placement under DPM++(2M) and UniPC, at
each guidance scale and unguided with 2 n steps, thinned out by successive halving within each
placement; other solvers on the three best placements. The best of all that, ours and the searching
rivals are tested on fresh seeds under both extractors; differences to ours are paired. The search
sees the first extractor only.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from peers.output import write
from peers.screening import screen
from peers.studies import EXTRACTORS, RIVAL_SEARCHES, Cold, ablation, estimate, ours, rival
from stepsampler.grids import make_schedule
from stepsampler.models import load
from stepsampler.schedule import Schedule
from stepsearch.baselines import Candidate
from stepsearch.config import RIVALS, StudyConfig
from stepsearch.contenders import OnSchedule
from stepsearch.evaluate import SEARCH, Measurement, load_prompts, model_digest, seeds_of
from stepsearch.evaluation import as_data, evaluate
from stepsearch.features import Judge, load_extractor
from stepsearch.harness import Clock, Harness, Metric
from stepsearch.paths import write_whole
from stepsearch.protocol import measure_all, score_all
from stepsearch.reference import load_reference
from stepsearch.result import Result
from stepsearch.run import Run
from stepsearch.tracking import NoTracking
from stepsearch.workers import Workers

STEPS = (3, 5, 8, 4, 6, 10)  # the most telling ones first
SEARCHING = (5, 8)  # numbers of steps at which the searching rivals take part
FRESH = 60_000_000  # test seeds that no study has seen
BATCH = 50


class OutOfTimeError(Exception):
    """The hours are over; what is done is in the cache."""


@dataclass(frozen=True)
class Entry:
    """A row of the test: what a search or a screening came to."""

    name: str
    schedule: Schedule
    search_passes: int = 0
    minutes: float = 0.0


class Measure:
    """The harness of the test, and what an entry is to it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.model = load("tiny", dtype=args.dtype)
        self.digest = model_digest(self.model)
        cache = args.run / "test"
        extractors = [load_extractor(name) for name in EXTRACTORS]
        metrics = [Metric(e, load_reference("fashion-mnist", e, 32, cache)) for e in extractors]
        prompts = load_prompts("fashion-mnist")
        clock = Clock(torch.device("cpu"))
        self.harness = Harness(metrics, prompts, args.batch, cache, clock, Judge("cpu"))

    def contender(self, entry: Entry) -> OnSchedule:
        return OnSchedule(entry.name, entry.schedule, self.model, self.digest)


_process: Measure


def _start(args: argparse.Namespace) -> None:
    global _process
    torch.set_num_threads(1)
    _process = Measure(args)


def _measure(name: str, schedule: str, seeds: range) -> None:
    harness = _process.harness
    contender = _process.contender(Entry(name, Schedule.from_json(schedule)))
    list(harness.measure(harness.metrics[0], [(contender, seeds)]))


class Bench(Measure):
    """The parts of the benchmark; each is in the cache once it is done."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.args, self.end = args, time.monotonic() + 3600 * args.hours

    def check_time(self, *_: object) -> None:
        if time.monotonic() > self.end:
            raise OutOfTimeError

    def report(self, stage: str, done: int, total: int, news: str) -> None:
        self.check_time()
        if news:
            print(f"  {stage}: {news}", flush=True)

    def search(self, name: str, config: StudyConfig, kind: type[Run] = Run) -> Entry:
        """Run a search to its end, or recall what it came to."""
        folder = self.args.run / config.name
        path = folder / "entry.json"
        if not path.exists():
            print(f"{name}, {config.space.num_steps} steps", flush=True)
            with self.clocked(folder), self.workers(config) as workers:
                result = kind(config, folder, workers, NoTracking(), self.report).run()
            chosen, passes = self._chosen(result, kind)
            entry = {"passes": passes, "schedule": chosen.schedule.to_json()}
            write_whole(path, lambda p: p.write_text(json.dumps(entry)))
        found = json.loads(path.read_text())
        seconds = json.loads((folder / "seconds.json").read_text())
        return Entry(name, Schedule.from_json(found["schedule"]), found["passes"], seconds / 60)

    @staticmethod
    def _chosen(result: Result, kind: type[Run]) -> tuple[Candidate, int]:
        """What the search chose, and its passes; a rival is not helped by baselines."""
        if kind is Run:
            return result.winner, result.search_passes
        own = [row.candidate for row in result.selection if row.candidate.kind == "found"]
        screening = sum(c.schedule.passes * n for c, n, _ in result.screened)
        return (own or [result.winner])[0], result.search_passes - screening

    def workers(self, config: StudyConfig) -> Workers:
        folder = self.args.run / config.name
        return Workers(config, folder, ["cpu"] * self.args.processes)

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

    def screen(self, n: int) -> list[dict]:
        """Each placement's best guided and unguided forms by FD on the search seeds; best first."""
        config = ours(self.args, n)
        path = self.args.run / config.name / "screening.json"
        if not path.exists():
            print(f"screening, {n} steps", flush=True)
            with self.workers(config) as workers:
                rows = screen(config, workers, self.check_time)
            write_whole(path, lambda p: p.write_text(json.dumps(rows)))
        rows = json.loads(path.read_text())
        return [{**row, "schedule": Schedule.from_json(row["schedule"])} for row in rows]

    def steps(self, n: int, searching: bool) -> dict:
        """All that the table says of n steps."""
        found = self.search("ours", ours(self.args, n))
        rows = self.screen(n)
        picked = rows[: self.args.test]
        for guided in (True, False):  # the best of either kind is always there
            picked += [r for r in rows if r["guided"] == guided and r not in picked][:1]
        entries = [found, *(Entry(row["name"], row["schedule"]) for row in picked)]
        if searching:
            for name in RIVAL_SEARCHES:
                entries.append(self.search(name, rival(self.args, name, n), Cold))
        screening = [{k: v for k, v in row.items() if k != "schedule"} for row in rows]
        known = {"steps": n, "passes": 2 * n, "screening": screening, "costs": self.costs(n)}
        return {**known, **self.test(entries)}

    def costs(self, n: int) -> dict[str, dict]:
        """Network passes and seconds of each placement that was computed, guided and unguided."""
        cache = self.args.run / ours(self.args, n).name / "cache"
        found = {}
        for path in sorted(cache.glob("placement-*.json")):
            _, rival, steps, scale, _ = path.stem.split("-")
            cost = json.loads(path.read_text())
            name = f"{rival}, {steps} steps, w {scale}"
            found[name] = {"passes": cost["passes"], "seconds": cost["seconds"]}
        return found

    def ablation(self, n: int) -> dict:
        entries = [self.search(*each) for each in ablation(self.args, n).items()]
        return {"steps": n, "passes": 2 * n, **self.test(entries)}

    def long(self, steps: int, w: float) -> Schedule:
        return make_schedule("linspace", steps, self.model.noise, order=2, guidance_scale=w)

    def long_rows(self) -> dict:
        """Many steps of DPM++(2M), each number at its best guidance on search seeds."""
        entries = []
        for steps in self.args.long:
            name = f"DPM++(2M), {steps} steps"
            every = [Entry(f"{name}, w {w:g}", self.long(steps, w)) for w in self.args.scales]
            every.append(Entry(f"{name}, unguided", self.long(steps, 1.0)))
            seeds = seeds_of(SEARCH, max(8, self.args.rungs[1] * 20 // (20 + steps)))
            contenders = [self.contender(entry) for entry in every]
            moments = self.harness.metrics[0].reference.search
            rows = score_all(contenders, seeds, self.args.batch, moments, self.measure)
            best = min(rows, key=lambda row: row.score.value).candidate.name
            entries += [entry for entry in every if entry.name == best]
        return self.test(entries)

    def measure(
        self, jobs: Sequence[tuple[OnSchedule, range]]
    ) -> Iterator[tuple[int, Measurement]]:
        """As the harness does, in several processes."""
        missing = [job for job in jobs if not self.harness.recalls(*job)]
        if len(missing) > 4 * self.args.processes > 4:  # or starting them would take longer
            context = multiprocessing.get_context("spawn")
            count = self.args.processes
            pool = ProcessPoolExecutor(count, context, initializer=_start, initargs=(self.args,))
            with pool:
                parts = [(c.name, c.schedule.to_json(), seeds) for c, seeds in missing]
                futures = [pool.submit(_measure, *part) for part in parts]
                try:
                    for future in as_completed(futures):
                        future.result()
                        self.check_time()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        for found in self.harness.measure(self.harness.metrics[0], jobs):
            self.check_time()
            yield found

    def test(self, entries: Sequence[Entry]) -> dict:
        """Scores on fresh seeds; differences are to the first entry."""
        contenders = [self.contender(entry) for entry in entries]
        n, seeds = self.args.images_test, seeds_of(FRESH, self.args.images_test)
        measure_all(contenders, seeds, self.args.batch, self.measure)
        result = evaluate(contenders, self.harness, n, ("fd",), first_seed=FRESH)
        data = as_data(result, self.harness, {"model": "tiny", "dtype": self.args.dtype})
        for row, entry in zip(data["contenders"], entries, strict=True):
            row |= {"search_passes": entry.search_passes, "minutes": entry.minutes}
            row["schedule"] = json.loads(replace(entry.schedule, provenance={}).to_json())
        return data


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--steps", type=int, nargs="+", default=list(STEPS))
    add("--searching", type=int, nargs="*", default=list(SEARCHING), help="steps of OYS, USF")
    add("--ablation", action="store_true", help="the ablation instead, at --ablation-steps")
    add("--ablation-steps", type=int, nargs="+", default=[5])
    add("--rivals", nargs="*", default=list(RIVALS))
    add("--scales", type=float, nargs="+", default=[1.5, 2.0, 3.0], help="guidance scales")
    add("--rungs", type=int, nargs=2, default=[100, 500], help="images of the screening")
    add("--trials", type=int, default=100, help="of our search")
    add("--images", type=int, default=300, help="of a trial of ours")
    add("--rival-images", type=int, default=1000, help="of a trial of a rival's, at most")
    add("--finalists", type=int, default=8)
    add("--selection", type=int, default=600, help="images that choose among the finalists")
    add("--teacher-steps", type=int, default=50, help="of the searches' teacher")
    add("--test", type=int, default=6, help="screened schedules that are tested")
    add("--images-test", type=int, default=5000)
    add("--long", type=int, nargs="+", default=[20, 100], help="steps of rows that cost more")
    add("--batch", type=int, default=BATCH)
    add("--dtype", default="float32", choices=("float32", "bfloat16"))
    add("--processes", type=int, default=2)
    add("--hours", type=float, default=float("inf"), help="stop after so many")
    add("--run", type=Path, default=Path("runs/peers"))
    add("--docs", type=Path, default=Path("docs"))
    add("--dry-run", action="store_true", help="print passes and hours, and end")
    args = parser.parse_args(argv)
    bench = Bench(args)
    rate = speed(bench)
    passes = estimate(args)
    print(
        f"{passes:,} passes, about {passes / rate / args.processes / 3600:.1f} hours at "
        f"{rate:.0f} passes a second in each of {args.processes} processes, less what is in the "
        f"cache of {args.run}",
        flush=True,
    )
    if args.dry_run:
        return
    name = "peers-ablation" if args.ablation else "peers"
    found: dict = {"settings": {k: str(v) for k, v in vars(args).items()}, "steps": []}
    jobs: list[Callable[[], None]] = []
    if args.ablation:
        jobs += [lambda n=n: found["steps"].append(bench.ablation(n)) for n in args.ablation_steps]
    else:
        jobs += [lambda n=n: found["steps"].append(bench.steps(n, False)) for n in args.steps[:3]]
        jobs.append(lambda: found.update(long=bench.long_rows()))
        every = [n for n in args.steps[:3] if n in args.searching] + args.steps[3:]
        jobs += [
            lambda n=n: replace_steps(found, bench.steps(n, n in args.searching)) for n in every
        ]
    try:
        for job in jobs:
            job()
            write(found, args.docs / name)
    except OutOfTimeError:
        print(f"stopped at {args.hours:g} hours; run again to go on")
        sys.exit(0)
    print(f"{args.docs}: {name}.json, {name}.md, {name}.png")


def replace_steps(found: dict, rows: dict) -> None:
    found["steps"] = [r for r in found["steps"] if r["steps"] != rows["steps"]] + [rows]


def speed(bench: Bench) -> float:
    """Passes a second of one process, with features, on a batch."""
    torch.set_num_threads(1)
    entry = Entry("speed", bench.long(5, 2.0))
    prompts = bench.harness.prompts[: bench.args.batch]
    contender = bench.contender(entry)
    for _ in range(2):
        started = time.monotonic()
        seeds = range(len(prompts))
        for images in contender.batches(seeds, list(prompts), bench.args.batch):
            for metric in bench.harness.metrics:
                metric.extractor(images)
    return 10 * len(prompts) / (time.monotonic() - started)


if __name__ == "__main__":
    main()
