"""Further rivals of `bench_gains.py`, which are made for a column: learned, cached and judged ones.

What took passes to make lies in the run's folder as JSON, and is not made again.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path

import torch

from peers.further.contenders import BestOf, Seen, passes_of
from peers.further.learning import (
    PART,
    Classified,
    Learned,
    Loss,
    Part,
    learn,
    parts_of,
    regression,
)
from peers.further.trajectories import SCALE, Trajectories, reusing, teach, tors
from peers.measure import Entry, Measure, with_gain
from stepsampler.grids import GRIDS, from_sigmas, is_guided
from stepsampler.models import load
from stepsampler.schedule import Schedule
from stepsearch.metrics.evaluator import SEARCH, seeds_of
from stepsearch.metrics.features import Judge
from stepsearch.paths import recall, write_whole

LEARNING = 40  # iterations
PAIRS, CHECKED = 50, 30  # images that the learned ones learn from, and that choose the iterate
LOOKED = 20  # trajectories that those look at which do not learn
LEAST = 9  # passes from which features are cached, as their authors do
PLACES = ("kl-optimal", "ays-sdxl")  # that are best with a gain at six and at ten passes


class Rivals:
    """Entries by their names, for one number of guided steps and the known rows of its column."""

    def __init__(
        self, bench: Measure, args: argparse.Namespace, steps: int, known: Sequence[Entry]
    ) -> None:
        self.bench, self.args, self.steps, self.known = bench, args, steps, known

    @property
    def makers(self) -> dict[str, Callable[[], Entry]]:
        few = 2 * self.steps < LEAST
        return {
            name: partial(make, self, name)
            for name, make in RIVALS.items()
            if not (few and make is Rivals.seen)
        }

    @cached_property
    def model(self):
        """In float32: gradients, and a teacher that all dtypes have in common."""
        plain = self.args.dtype == "float32" and not self.args.compile
        return self.bench.model if plain else load(self.args.model, self.args.device, "float32")

    @property
    def texts(self) -> list[str]:
        return [prompt.text for prompt in self.bench.harness.prompts]

    @cached_property
    def taught(self) -> Trajectories:
        return teach(self.model, self.texts, seeds_of(SEARCH, PAIRS + CHECKED), self.args.run)

    def regressed(self, name: str) -> Entry:
        """Against the teacher's end; its passes count."""

        def parts() -> tuple[list[Part], list[Part]]:
            ends = self.taught.states[-1]
            train = self.parts_of(seeds_of(SEARCH, PAIRS), ends[:PAIRS])
            return train, self.parts_of(seeds_of(SEARCH + PAIRS, CHECKED), ends[PAIRS:])

        return self.learned(name, regression, parts, self.taught.passes)

    def classified(self, name: str) -> Entry:
        """Of fresh seeds in each iteration, since they need no teacher."""

        def parts() -> tuple[list[Part], list[Part]]:
            fresh = seeds_of(SEARCH + PAIRS + CHECKED, LEARNING * PART)
            return self.parts_of(fresh), self.parts_of(seeds_of(SEARCH + PAIRS, CHECKED))

        return self.learned(name, Classified(self.model, Judge(self.args.device)), parts)

    def parts_of(self, seeds: range, goals: torch.Tensor | None = None) -> list[Part]:
        return parts_of(self.model, self.bench.harness.prompts, seeds, goals)

    def learned(
        self,
        name: str,
        loss: Loss,
        parts: Callable[[], tuple[list[Part], list[Part]]],
        teaching: int = 0,
    ) -> Entry:
        """From the known schedule of least loss, of those that are guided as the teacher is."""
        path = self.args.run / f"learned-{self.steps}-{name}.json"
        found = recall(path, lambda p: json.loads(p.read_text()))
        if found is None:
            starts = [
                entry.schedule
                for entry in self.known
                if any(map(is_guided, entry.schedule.steps))
                and entry.schedule.passes == 2 * self.steps
            ]
            made = learn(starts, *parts(), loss, LEARNING)
            found = asdict(made) | {"schedule": made.schedule.to_json()}
            text = json.dumps(found)
            write_whole(path, partial(Path.write_text, data=text, encoding="utf-8"))
        made = Learned(**found | {"schedule": Schedule.from_json(found["schedule"])})
        print(f"  {name}: held-out loss {made.before:.4f} to {made.after:.4f}", flush=True)
        passes = {"teacher": teaching, "learning": made.passes}
        return Entry(name, made.schedule, "learned", passes)

    def reused(self, name: str) -> Entry:
        some = self.taught[:LOOKED]
        plan = reusing(self.steps, some, self.model)
        calls = [i for i, step in enumerate(plan.steps) if step.calls]
        print(f"  {name}: calls at {calls}", flush=True)
        return Entry(name, plan, "cached", {"teacher": some.passes})

    def rotating(self, name: str) -> Entry:
        """Its levels under the solver and the order that are best for them on selection seeds."""
        some = self.taught[:LOOKED]
        *sigmas, final = tors(self.steps, some, self.model)
        print(f"  {name}: {[round(sigma, 3) for sigma in (*sigmas, final)]}", flush=True)
        plans = {
            f"{solver}, order {order}": from_sigmas(
                sigmas, final, [SCALE] * self.steps, order, solver, self.model.spec
            )
            for solver in ("dpmpp-midpoint", "unipc-bh2")
            for order in (1, 2, 3)
        }
        values = self.bench.best(plans)
        best = min(values, key=values.__getitem__)
        few, many = self.args.selection
        tried = 2 * self.steps * (len(plans) * few + 2 * (many - few))
        passes = {"teacher": some.passes, "choosing": tried}
        return Entry(f"{name}, {best}", plans[best], "placement", passes)

    def judged(self, name: str) -> Entry:
        """Each of the passes that a half has: any number of guided steps first, the others not.

        Of two placements; chosen with the middle gain on selection seeds, then its gain there.
        """
        half, bench = 2 * self.steps // BestOf.count, self.bench
        middle = sorted(self.args.gains)[len(self.args.gains) // 2]
        plans = {}
        for place in PLACES:
            for on in range(half // 2 + 1):
                scales = [SCALE] * on + [1.0] * (half - 2 * on)
                *sigmas, final = GRIDS[place](len(scales), self.model.noise)
                plan = from_sigmas(sigmas, final, scales, 3, "unipc-bh2", self.model.spec)
                plans[f"{place}, {shape(len(scales), on)}"] = plan
        gained = {key: with_gain(plan, middle) for key, plan in plans.items()}
        values = bench.best(gained, BestOf)
        best = min(values, key=values.__getitem__)
        found = bench.best({g: with_gain(plans[best], g) for g in self.args.gains}, BestOf)
        gain = min(found, key=found.__getitem__)
        few, many = self.args.selection
        tried = len(plans) * few + len(self.args.gains) * few + 4 * (many - few)
        plan = with_gain(plans[best], gain)
        shown = f"{name} ({best}, gain {gain:g})"
        return Entry(shown, plan, "judged", {"choosing": tried * 2 * self.steps}, make=BestOf)

    def seen(self, name: str) -> Entry:
        """The best known placement on as many steps as fit the passes."""
        net, passes = self.model.nets[0], 2 * self.steps

        def plan(count: int) -> Schedule:
            *sigmas, final = GRIDS["ays-sdxl"](count, self.model.noise)
            scales = [SCALE] * count
            return from_sigmas(sigmas, final, scales, 3, "unipc-bh2", self.model.spec)

        steps = self.steps
        while passes_of(net, plan(steps + 1)) <= passes:
            steps += 1
        return Entry(f"{name}, {steps} steps", plan(steps), "cached", make=Seen)


def shape(n: int, on: int) -> str:
    """What n steps are called of which the first `on` are guided."""
    if not on:
        return f"{n} unguided steps"
    return f"{n} steps, {'all' if on == n else f'the first {on}'} guided"


RIVALS = {
    "S4S-like": Rivals.regressed,
    "Dual-Solver-like": Rivals.classified,
    "reuse on a 50-step grid": Rivals.reused,
    "TORS-like": Rivals.rotating,
    "best of 2 by the judge": Rivals.judged,
    "TaylorSeer": Rivals.seen,
}
