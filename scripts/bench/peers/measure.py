"""The harness of the test, in this process and in those of a pool."""

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from peers.further.contenders import Remembering
from stepsampler.models import load
from stepsampler.schedule import Schedule
from stepsearch.compare.contenders import OnSchedule
from stepsearch.compare.harness import Clock, Harness
from stepsearch.metrics.alignment import ClassAlignment, load_prompts
from stepsearch.metrics.distance import Score
from stepsearch.metrics.evaluator import Measurement, Metric, model_digest
from stepsearch.metrics.features import load_extractor
from stepsearch.metrics.reference import load_reference


@dataclass(frozen=True)
class Entry:
    """A row of the test: what a search or a screening came to."""

    name: str
    schedule: Schedule
    kind: str  # ours, part (of our search), placement, search (of a rival), long, …
    passes: dict[str, int] = field(default_factory=dict)  # of the search, stage by stage
    minutes: float = 0.0
    so_far: dict[float, Schedule] = field(default_factory=dict)  # after shares of the passes
    make: type[OnSchedule] = Remembering  # what makes the images

    @classmethod
    def of(cls, row: dict) -> "Entry":
        """What a row of an earlier table was of."""
        schedule = Schedule.from_json(json.dumps(row["schedule"]))
        return cls(row["name"], schedule, row["kind"], row["stages"], row["minutes"])


def with_gain(schedule: Schedule, gain: float) -> Schedule:
    """The schedule with a constant gain instead of none."""
    return replace(schedule, steps=tuple(replace(step, gain=gain) for step in schedule.steps))


class Measure:
    """The harness of the test, and what an entry is to it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.model = load(args.model, args.device, args.dtype, compile=args.compile)
        self.digest = model_digest(self.model)
        cache = args.run / "test"
        extractors = [load_extractor(name, args.device) for name in args.extractors]
        metrics = [Metric(e, load_reference("fashion-mnist", e, 32, cache)) for e in extractors]
        prompts = load_prompts("fashion-mnist", args.held_out)
        clock = Clock(torch.device(args.device))
        self.harness = Harness(
            metrics, prompts, args.batch, cache, clock, ClassAlignment(args.device)
        )

    def check_time(self) -> None:
        """Called between measurements; may end them."""

    def measure(
        self, jobs: Sequence[tuple[OnSchedule, range]]
    ) -> Iterator[tuple[int, Measurement]]:
        """As the harness does, plain schedules in several processes."""
        plain = [job for job in jobs if type(job[0]) is Remembering]
        missing = [job for job in plain if not self.harness.recalls(*job)]
        passes = sum(contender.schedule.passes * len(seeds) for contender, seeds in missing)
        if self.args.processes > 1 and passes > 20_000:  # or starting them would take longer
            context = multiprocessing.get_context("spawn")
            count = self.args.processes
            pool = ProcessPoolExecutor(count, context, initializer=start, initargs=(self.args,))
            with pool:
                parts = [(c.name, c.schedule.to_json(), seeds) for c, seeds in missing]
                futures = [pool.submit(measure_in_pool, *part) for part in parts]
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

    def contender(self, entry: Entry) -> OnSchedule:
        return entry.make(entry.name, entry.schedule, self.model, self.digest)


_process: Measure


def start(args: argparse.Namespace) -> None:
    global _process
    torch.set_num_threads(1)
    _process = Measure(args)


def measure_in_pool(name: str, schedule: str, seeds: range) -> None:
    harness = _process.harness
    contender = _process.contender(Entry(name, Schedule.from_json(schedule), "part"))
    list(harness.measure(harness.metrics[0], [(contender, seeds)]))


def speed(measure: Measure, schedule: Schedule) -> float:
    """Passes a second of one process, with features, on a batch."""
    torch.set_num_threads(1)
    harness = measure.harness
    prompts = harness.prompts[: harness.batch_size]
    contender = measure.contender(Entry("speed", schedule, "long"))
    for _ in range(2):  # the first one compiles
        started = time.monotonic()
        for images in contender.batches(range(len(prompts)), list(prompts), harness.batch_size):
            for metric in harness.metrics:
                metric.extractor(images)
    return schedule.passes * len(prompts) / (time.monotonic() - started)


def mean_of(scores: dict[str, Score]) -> Score:
    """The geometric mean of the distances, with its jackknife."""
    each = [score for name, score in scores.items() if name != "alignment"]
    left_out = np.exp(np.mean([np.log(score.left_out) for score in each], axis=0))
    return Score(float(np.exp(np.mean([np.log(score.value) for score in each]))), left_out)
