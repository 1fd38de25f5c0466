"""Known schedules with a gain each, and our searches, on a second model that nobody trained.

    python scripts/bench/bench_second.py      # resumes; writes docs/second-model.*

The model is the exact posterior mean over smoothed letters in pixels (`second.model`), so that
whatever is gained on it is no mending of a network. A study takes it as it would yours: by
`model = "second.model:pipeline"`, with --allow-code, a folder of images and a file of prompts.
Every placement with a formula comes under DPM++(2M) and UniPC of order 3, with n guided steps or
2 n unguided ones, whichever of `--scales` is best on selection seeds; those that are best there are
tested as they are and with the constant gain that is, and so are many steps of DPM++(2M). FD of
`letters`, features of a classifier of such letters, is what searches see and gains are chosen by.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from bench_gains import Bench, fill, gained, mean_of, options, study
from second import judges
from second.model import pipeline
from second.sprites import LETTERS

import stepsearch
from peers.measure import Entry, with_gain
from peers.second import page
from stepsampler.grids import GRIDS, make_schedule
from stepsampler.models import from_pipeline
from stepsampler.schedule import Schedule
from stepsampler.support.pictures import save_png
from stepsearch.compare.harness import Clock, Harness
from stepsearch.config import StudyConfig
from stepsearch.metrics.alignment import Prompt
from stepsearch.metrics.distance import score
from stepsearch.metrics.evaluator import Metric, model_digest
from stepsearch.metrics.features import EXTRACTORS, load_extractor
from stepsearch.metrics.reference import load_reference
from stepsearch.paths import write_whole

RULES = {"DPM++(2M)": ("dpmpp-midpoint", 2), "UniPC": ("unipc-bh2", 3)}


class Second(Bench):
    """The same of another model; ours is searched for as a user would do it from Python."""

    seen = 1  # of the metrics, by searches and by whoever chooses

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.real, self.prompts = args, args.run / "real", args.run / "prompts.txt"
        self.model = from_pipeline(pipeline())
        self.digest = model_digest(self.model)
        if not self.prompts.exists():
            self.real.mkdir(parents=True, exist_ok=True)
            for k, image in enumerate(self.model.net.draw(args.real, 0)):
                save_png(image, self.real / f"{k:05}.png")
            for name, seed in (("letters", 1), ("judge", 2)):
                judges.train(args.run / f"{name}.safetensors", seed, args.real)
            write_whole(self.prompts, lambda p: p.write_text("\n".join(LETTERS)))
        judges.FOLDER, cache = args.run, args.run / "test"
        EXTRACTORS["letters"] = judges.Letters
        extractors = [load_extractor(name) for name in ("letters", "squeezenet", "patches")]
        metrics = [Metric(e, load_reference(str(self.real), e, 32, cache)) for e in extractors]
        prompts = [Prompt(letter, k) for k, letter in enumerate(LETTERS)]
        clock, judge = Clock(torch.device("cpu")), judges.LetterJudge()
        self.harness = Harness(metrics, prompts, args.batch, cache, clock, judge)

    def column(self, n: int) -> dict:
        """All that is tested at n guided steps, and what each gain does to what is known."""
        known = [*self.known(n), *(self.long(steps) for steps in self.args.long)]
        many, curves = self.args.selection[1], {}
        for entry in known:
            plans = {gain: with_gain(entry.schedule, gain) for gain in self.args.gains}
            curves[entry.name] = self.values(plans, many)
        chosen = {name: min(found, key=found.__getitem__) for name, found in curves.items()}
        entries = [*known, *gained(known, chosen)]
        entries += [self.searched(n, seed) for seed in range(self.args.search_seeds)]
        real = self.real_ones()
        return {"steps": n, "passes": 2 * n, "curves": curves, "real": real, **self.test(entries)}

    def known(self, n: int) -> list[Entry]:
        """The best of each rule, at the scale that is best for each."""
        found = []
        for rule in RULES:
            entries = [self.scaled(grid, rule, n, 2 * n) for grid in GRIDS]
            scores = self.values({e.name: e.schedule for e in entries}, self.args.selection[1])
            found += sorted(entries, key=lambda e: scores[e.name])[: self.args.known]
        return found

    def long(self, steps: int) -> Entry:
        return self.scaled("linspace", "DPM++(2M)", steps, steps, "long")

    def scaled(self, grid: str, rule: str, n: int, unguided: int, kind: str = "placement") -> Entry:
        solver, order = RULES[rule]

        def plan(w: float) -> Schedule:
            steps, (m, spec) = n if w != 1 else unguided, (self.model.noise, self.model.spec)
            options = {"solver": solver, "order": order, "guidance_scale": w, "model": spec}
            return make_schedule(grid, steps, m, **options)

        found = self.best({w: plan(w) for w in self.args.scales})
        w = min(found, key=found.__getitem__)
        shape = f"{n} steps, w {w:g}" if w != 1 else f"{unguided} unguided steps"
        return Entry(f"{grid}, {rule}, {shape}", plan(w), kind)

    def searched(self, n: int, seed: int) -> Entry:
        """By `stepsearch.run`, which goes on where it was killed."""
        config = StudyConfig.model_validate(self.study(n, seed))
        found = stepsearch.run(config, self.args.run / config.name, allow_code=True)
        assert found.schedule is not None
        print(f"  {config.name}: {found.verdict}", flush=True)
        result = json.loads((self.args.run / config.name / "result.json").read_text())
        passes = {"search": result["search_passes"]}
        return Entry(f"ours, search seed {seed}", found.schedule, "now", passes)

    def study(self, n: int, seed: int) -> dict:
        found = study(self.args, n, seed) | {"name": f"second-{n}-seed-{seed}"}
        found["model"], solvers = "second.model:pipeline", [solver for solver, _ in RULES.values()]
        real = {"reference": str(self.real), "prompts": str(self.prompts)}
        found["evaluation"] |= {"extractor": "letters", **real}
        found["space"] |= {"max_steps": 2 * n, "solvers": solvers, "reuse": 4}
        found["baselines"] |= {"guidance_scales": (1.5,), "solvers": solvers}
        return found

    def real_ones(self) -> dict[str, float]:
        """What a perfect sampler would have, at as many images."""
        images, found = self.model.net.draw(self.args.images, 1), {}
        for metric in self.harness.metrics:
            rows = torch.cat([metric.extractor(part) for part in images.split(self.args.batch)])
            features = metric.reference.project(rows.numpy())
            scored = score(features, metric.reference.test)
            found[metric.reference.metric] = scored
        mean = mean_of(found)
        return {**{k: v.value for k, v in found.items()}, "mean": mean.value, "se": mean.se}


def main(argv: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    add = parser.add_argument
    add("--scales", type=float, nargs="+", default=[1.0, 1.25, 1.5, 2.0], help="of guidance")
    add("--long", type=int, nargs="*", default=[20, 100], help="steps of what costs more")
    add("--known", type=int, default=2, help="schedules of each rule that are tested")
    add("--real", type=int, default=2000, help="images that all are compared with")
    parser.set_defaults(steps=[5, 3], gains=[0.97, 1.0, 1.03, 1.07], selection=[60, 200])
    parser.set_defaults(trials=30, trial_images=200, polish=2, iterations=2, patterns=0)
    parser.set_defaults(images=1000, sees="letters", model="second.model", run=Path("runs/second"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    fill(args.docs / "second-model.json", args, Second(args).column, page)


if __name__ == "__main__":
    main()
