"""What a trial costs beside its measurement, and a turn of the loop, by the number of trials."""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna

from cluster.builds import builds, interval, turns
from cluster.stub import AXES, FLOOR, IMAGES, NAME, Stub, off, settings
from stepsearch.config import StudyConfig
from stepsearch.engine.stages.search import search
from stepsearch.engine.stages.tools import Tools
from stepsearch.engine.study import open_study, run_trials
from stepsearch.engine.tracking import MlflowTracking
from stepsearch.engine.workers import Subject, Workers

MEMORY = 10 * 1024**3  # bytes that a build may take; a GP of 10,000 trials wants 20 GB


def costs(args: argparse.Namespace, script: str) -> None:
    names = ["loop", *args.algorithms]
    with tempfile.TemporaryDirectory() as root, ExitStack() as stack:
        made = builds(stack, script, args.against)
        filled = Path(root) / "filled" / NAME
        for count in sorted(args.trials):
            fill(filled, count, args.steps)
            took: dict[tuple[str, str], list[list[float]]] = {}
            for order in turns([*made], args.rounds):
                for name in names:
                    for build in order:
                        folder = Path(root) / "copy" / NAME
                        shutil.rmtree(folder.parent, ignore_errors=True)
                        shutil.copytree(filled, folder)
                        request = {"folder": str(folder), "steps": args.steps, "trials": count}
                        more = {"turns": args.turns} if name == "loop" else {"asks": args.asks}
                        found = made[build].ask(what=name, **request, **more)
                        took.setdefault((name, build), []).append(found)
            show(count, names, [*made], took)


def show(
    count: int, names: list[str], made: list[str], took: Mapping[tuple[str, str], list[list[float]]]
) -> None:
    for name in names:
        unit, scale, what = ("s", 1, f"a trial by {name}, beside measuring it")
        if name == "loop":
            unit, scale, what = "ms", 1000, "a turn of the loop"
        for build in made:
            every = [scale * value for row in took[name, build] for value in row]
            if not every:
                print(f"{count:,} trials, {what}, {build}: does not fit into {MEMORY:,} bytes")
                continue
            print(
                f"{count:,} trials, {what}, {build}: {interval(every)} CPU {unit}, "
                f"mean {np.mean(every):.3f}, most {max(every):.3f}",
                flush=True,
            )
        if len(made) > 1 and all(row for build in made for row in took[name, build]):
            means = np.array([[np.mean(row) for row in took[name, build]] for build in made])
            print(f"  this / that: {interval(means[0] / means[1])}", flush=True)


def fill(folder: Path, count: int, steps: int) -> None:
    """Let a journal have so many finished trials, as of a search that comes nearer to its best."""
    config, stub = settings(count, steps=steps), Stub()
    space, study = stub.space(config), open_study(folder, config)
    draw, known = np.random.default_rng(count), len(study.get_trials(deepcopy=False))
    best = {name: draw.uniform(d.low, d.high) for name, d in space.distributions.items()}
    for k in range(known, count):
        params = {
            name: float(np.clip(draw.normal(best[name], (d.high - d.low) / 8), d.low, d.high))
            if k >= 20
            else float(draw.uniform(d.low, d.high))
            for name, d in space.distributions.items()
        }
        schedule = space.schedule(params)
        value = float(AXES * off(schedule) ** 2 + draw.gamma(20.0))
        alignment = float(draw.uniform(FLOOR - 0.02, 1.0))
        attrs = {
            "schedule": schedule.to_json(),
            "worker": ["host", str(k % 16), "machine", "word"],
            "alignment": alignment,
            "sheet": f"/runs/{NAME}/cache/{k:024x}.png",
            "passes": schedule.passes,
            "images": IMAGES,
            "left_out": draw.normal(value, 1.0, 20).tolist(),
            "seconds": 30.0,
        }
        study.add_trial(
            optuna.trial.create_trial(
                params=params,
                distributions=space.distributions,
                value=value,
                user_attrs=attrs,
                constraints={"alignment": FLOOR - alignment},
            )
        )


def answer(request: Mapping[str, Any]) -> list[float]:
    """CPU seconds: of turns of the loop, or of what is done for trials beside measuring them."""
    folder, known = Path(request["folder"]), request["trials"]
    if request["what"] == "loop":
        return loop(folder, settings(known, steps=request["steps"]), request["turns"])
    count = request["asks"] + 1  # the first warms up
    config = settings(known + count, request["what"], request["steps"])
    stub = Stub()
    try:
        run_trials(open_study(folder, config), folder, config, stub.space(config), stub, FLOOR)
    except (MemoryError, RuntimeError) as error:
        print(f"{request['what']} at {known:,} trials: {error}", file=sys.stderr)
    return np.diff(stub.at).tolist()


class Turns(MlflowTracking):
    """A mirror that has every trial, and notes when the loop comes to it."""

    def __init__(self, trials: int, most: int, ended: "Future[int]") -> None:
        super().__init__(None, print)
        self._mirrored, self.most, self.ended = set(range(trials)), most, ended
        self.at: list[float] = []

    def sync(self, study: optuna.Study) -> None:
        self.at.append(time.process_time())
        if len(self.at) == self.most + 2:
            self.ended.set_result(0)
        super().sync(study)


def loop(folder: Path, config: StudyConfig, count: int) -> list[float]:
    """CPU seconds of each turn of the parent's loop while nothing ends.

    The first shows all trials, the second imports what the mirror needs: both are left out.
    """
    stub, ended = Stub(), Future[int]()
    tracker = Turns(config.search.trials, count, ended)
    workers: Any = SimpleNamespace(search=lambda: [ended], result=Workers.result)
    model, reference = stub.model, stub.reference
    subject = Subject(model.noise, model.spec, reference, stub.identity, model.guidance)
    tools = Tools(config, subject, workers, tracker, lambda *_: None)
    search(tools, folder, open_study(folder, config), stub.space(config), [], FLOOR)
    return np.diff(tracker.at)[1:].tolist()
