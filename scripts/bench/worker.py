"""What a worker of a search loses beside its networks, and what a second worker brings.

    python scripts/bench/worker.py networks [--trials 40] [--against CHECKOUT]
    python scripts/bench/worker.py two [--trials 24] [--rounds 3] [--against CHECKOUT]

`networks` has trials of a real search in turns with a bare loop of the very calls of U-Net, VAE and
extractor that the trial made, with the same inputs; a first call whose answer is known is in
neither. What a trial takes is all of it: asking for a point, the journal, the loop, images, the
judge, features, distance and its error.

`two` has a search by one worker process in turns with the same search by two, as `stepsearch run`
does it, MLflow included: the same budget, so the same images. The models are loaded before.

Seconds are those of the wall, less those in which a thread was ready and other programs had the
cores (Linux counts them): on a quiet machine there are none. Where two workers and the process that
leads share two cores, what that one computes is added to the time of both. The other build, another
checkout of this repository, takes turns with this one.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from optuna.trial import FrozenTrial

from cluster.builds import HERE, SERVE, builds, clock, report, scheduled, serve, turns
from stepsampler.schedule import Schedule
from stepsearch.config import StudyConfig, load_config
from stepsearch.engine.claim import claim_folder, make_plan, planned_space
from stepsearch.engine.stages.search import search
from stepsearch.engine.stages.tools import Tools
from stepsearch.engine.store.presence import WORKER
from stepsearch.engine.study import finished, open_study, run_trials
from stepsearch.engine.tracking import MlflowTracking
from stepsearch.engine.workers import Workers
from stepsearch.metrics.evaluator import Evaluator, Measurement
from stepsearch.space.box import SearchSpace

GRID, FLOOR = "kl-optimal", -1.0  # every trial is feasible
Moment = tuple[float, dict[int, float]]  # the time, and how long each process waited for a core
Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def main(argv: list[str] | None = None) -> None:
    if SERVE in (sys.argv if argv is None else argv):
        serve(Served())
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("networks", "two"))
    parser.add_argument("--study", type=Path, default=HERE / "studies" / "tiny-3-steps.toml")
    parser.add_argument("--images", type=int, help="of a trial; the study's own by default")
    parser.add_argument("--trials", type=int, help="of a search: 40, or 24 of `two`")
    parser.add_argument("--rounds", type=int, default=3, help="of `two`")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="the study's own by default")
    parser.add_argument("--compile", action="store_true", help="the network, by torch")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    args = parser.parse_args(argv)
    args.trials = args.trials or (40 if args.what == "networks" else 24)
    with tempfile.TemporaryDirectory() as root, ExitStack() as stack:
        made = builds(stack, __file__, args.against)
        options = {
            "study": str(args.study),
            "images": args.images,
            "trials": args.trials,
            "device": args.device,
            "model": {k: v for k in ("dtype", "compile") if (v := getattr(args, k))},
        }
        for k, build in enumerate(made.values()):
            build.ask(do=f"load {args.what}", folder=f"{root}/{k}", **options)
        networks(made, args) if args.what == "networks" else two(made, args)


def networks(made: Mapping[str, Any], args: argparse.Namespace) -> None:
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in made}
    for order in turns([*made], args.trials):
        for name in order:
            rows[name].append(made[name].ask(do="trial"))
    wanted = ">= 0.90" if args.device == "cpu" else ">= 0.95"
    for name, found in rows.items():
        worker, bare, beside = (np.array([row[k] for row in found]) for k in FIELDS)
        speed = [row["passes"] / row["bare"] for row in found]
        print(
            f"{name}: {np.median(speed):.0f} passes a second of the bare loop, "
            f"{np.median(bare):.2f} s a trial; of a worker's {np.median(worker):.2f} s "
            f"{np.median(beside):.2f} s are beside its images",
            flush=True,
        )
        report(f"{name}: speed of a worker / bare loop", bare / worker, wanted)
        whole = resampled(bare, worker)
        print(f"  of all {len(found)} trials together {whole}")
    if len(made) > 1:
        this, that = ([row["worker"] / row["bare"] for row in found] for found in rows.values())
        report("speed of a worker, this build / that", np.divide(that, this), ">= 1")


FIELDS = ("worker", "bare", "beside")


def resampled(above: np.ndarray, below: np.ndarray) -> str:
    """The ratio of two sums over the same trials, with a bootstrap 95 % interval."""
    picks = np.random.default_rng(0).integers(0, len(above), (5000, len(above)))
    low, high = np.quantile(above[picks].sum(1) / below[picks].sum(1), (0.025, 0.975))
    return f"{above.sum() / below.sum():.4g} [{low:.4g}, {high:.4g}]"


def two(made: Mapping[str, Any], args: argparse.Namespace) -> None:
    found: dict[str, list[float]] = {name: [] for name in made}
    for k, order in enumerate(turns([*made], args.rounds)):
        for name in order:
            counts = (1, 2) if k % 2 == 0 else (2, 1)
            rates = {n: made[name].ask(do="search", workers=n) for n in counts}
            found[name].append(rates[2]["quiet"] / rates[1]["quiet"])
            said = [
                f"{n} {rate['quiet'] / 1000:,.0f} (of the wall {rate['wall'] / 1000:,.0f}), with "
                f"{rate['lead']:.2f} s of the process that leads"
                for n, rate in sorted(rates.items())
            ]
            print(f"{name}, 1,000 passes an hour by workers: {'; '.join(said)}", flush=True)
    for name, rows in found.items():
        report(f"{name}: passes an hour of two workers / one", rows, ">= 1.9")


class Served:
    """What a build is asked to do: load, then trials, or whole searches."""

    def __call__(self, request: Mapping[str, Any]) -> Any:
        if request["do"] == "trial":
            return self.trial()
        if request["do"] == "search":
            return self.search(request["workers"])
        self.folder, self.trials = Path(request["folder"]), request["trials"]
        data = load_config(Path(request["study"])).model_dump()
        data["name"] = "bench"
        data["model"] |= request["model"]
        data["search"] |= {"trials": self.trials}
        if request["images"]:
            data["evaluation"] |= {"images": request["images"], "rungs": ()}
        self.config = StudyConfig.model_validate(data)
        claim_folder(self.folder, self.config)
        if request["do"] == "load networks":
            self.load(request["device"])
        else:
            self.start(request["device"])
        return None

    # A worker in this process

    def load(self, device: str) -> None:
        torch.set_num_threads(1)
        self.evaluator = Evaluator(self.config, self.folder / "cache", device)
        make_plan(self.folder, self.evaluator.identity, GRID, FLOOR)
        self.space = planned_space(self.folder, self.config, self.evaluator.model)
        self.study = open_study(self.folder, self.config)
        self.done, self.measuring, measure = 0, 0.0, self.evaluator.measure

        def timed(schedule: Schedule, seeds: range) -> Measurement:
            began = clock()
            found = measure(schedule, seeds)
            self.measuring += clock() - began
            return found

        vars(self.evaluator)["measure"] = timed
        self.next_trial()  # what is made at first use

    def next_trial(self) -> float:
        """The seconds that the next trial takes."""
        self.done += 1
        some = self.config.search.model_copy(update={"trials": self.done})
        part = self.config.model_copy(update={"search": some})
        began = clock()
        run_trials(self.study, self.folder, part, self.space, self.evaluator, FLOOR)
        return clock() - began

    def trial(self) -> dict[str, float]:
        """A trial, and the bare loop of its calls."""
        self.measuring = 0.0
        with recorded(self.evaluator) as calls:
            worker = self.next_trial()
        passes = sum(len(x) for call, (x, *_), _ in calls if call.__name__ == "_call")
        bare = repeated(calls, self.evaluator.model.device)
        return {
            "worker": worker,
            "bare": bare,
            "beside": worker - self.measuring,
            "passes": passes,
        }

    # Workers in processes of their own

    def start(self, device: str) -> None:
        self.workers = Workers(self.config, self.folder, [device] * 2)
        self.workers.__enter__()
        self.subject = self.workers.describe()
        self.searched(2)  # the second one loads, and what is made at first use

    def search(self, count: int) -> dict[str, float]:
        """Passes an hour of a search by so many workers, by the wall and on a quiet machine."""
        return rates(*self.searched(count), self.config.evaluation.images)

    def searched(self, count: int) -> tuple[list[FrozenTrial], Moment, list[Moment], float]:
        """The trials, when it began, when each worker ended, and the leader's CPU seconds."""
        for path in self.folder.glob("journal.log*"):
            path.unlink()
        for path in (self.folder / "cache").glob("*.png"):
            path.unlink()
            path.with_suffix(".safetensors").unlink()
        subject, self.workers.count = self.subject, count
        (self.folder / "mlflow.db").unlink(missing_ok=True)
        tracker = MlflowTracking(None, print)
        tracker.start(self.config, self.folder)
        space = SearchSpace(self.config.space, subject.noise, subject.spec, GRID)
        study = open_study(self.folder, self.config)
        began, ends = list[Moment](), list[Moment]()

        def start() -> list[Future[int]]:
            futures = self.workers.search()
            began.append(self._now())
            for future in futures:
                future.add_done_callback(lambda _: ends.append(self._now()))
            return futures

        watched: Any = SimpleNamespace(search=start, result=Workers.result)
        tools = Tools(self.config, subject, watched, tracker, lambda *_: None)
        lead = time.process_time()
        search(tools, self.folder, study, space, [], FLOOR)
        lead = time.process_time() - lead
        return finished(study), began[0], sorted(ends, key=lambda end: end[0]), lead

    def _now(self) -> Moment:
        """The time, and how long each worker process has waited for a core."""
        pids = [process.pid for process in self.workers._processes()]
        return time.monotonic(), {pid: scheduled(f"/proc/{pid}")[1] for pid in pids if pid}


def rates(
    trials: Sequence[FrozenTrial], began: Moment, ends: list[Moment], lead: float, images: int
) -> dict[str, float]:
    """Passes an hour of workers that ended at these moments, the order of their last trials.

    `lead` are the CPU seconds of the process that leads.
    """
    of: dict[int, list[FrozenTrial]] = {}
    for trial in sorted(trials, key=lambda t: t.datetime_complete or t.datetime_start):
        of.setdefault(int(trial.user_attrs[WORKER][1]), []).append(trial)
    order = sorted(of, key=lambda pid: of[pid][-1].datetime_complete)
    full = len(order) >= (os.cpu_count() or 1)  # then the one that leads takes their cores
    wall = quiet = 0.0
    if len(order) != len(ends):
        raise SystemExit("a worker had no trial: give more --trials")
    for pid, (end, waited) in zip(order, ends, strict=True):
        passes = images * sum(trial.user_attrs["passes"] for trial in of[pid])
        span = end - began[0]
        wall += passes / span
        own = span - (waited[pid] - began[1].get(pid, 0.0))
        quiet += passes / (own + lead / len(order) * full)
    return {"wall": 3600 * wall, "quiet": 3600 * quiet, "lead": lead}


@contextmanager
def recorded(evaluator: Evaluator) -> Iterator[list[Call]]:
    """The calls of networks that are made inside: U-Net, VAE, extractor."""
    model, extractor, calls = evaluator.model, evaluator.extractor, list[Call]()

    def noting(method: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*inputs: Any, **named: Any) -> Any:
            calls.append((method, inputs, named))
            return method(*inputs, **named)

        return noted

    parts = ((model, "_call"), (model.pipeline.vae, "decode"), (extractor, "features"))
    for owner, name in parts:
        setattr(owner, name, noting(getattr(owner, name)))
    try:
        yield calls
    finally:
        for owner, name in parts:
            delattr(owner, name)


@torch.inference_mode()
def repeated(calls: list[Call], device: torch.device) -> float:
    """Seconds of the calls alone."""
    began = clock()
    for call, inputs, named in calls:
        call(*inputs, **named)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - began


if __name__ == "__main__":
    main()
