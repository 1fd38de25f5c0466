#!/usr/bin/env python3
"""Published methods for few steps, each at its best guidance, on the bundled model.

    python scripts/compare_methods.py                       # resumes; writes docs/methods.*
    python scripts/compare_methods.py --methods UniPC "DPM++(2M)" --steps 5

For 5, 6 and 8 network calls an image (twice as many passes under guidance): each method at scales
of `--scales` on selection seeds, from 2 on towards what is better; at the best of them, by the
geometric mean of both FDs, it is tested on fresh seeds. Differences are to UniPC, paired image by
image. Methods that the table has already stay in it. A method is a line of `METHODS`: a function of
(bench, calls, guidance scale) that returns a contender.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from stepsampler.generate import seeded_noise
from stepsampler.grids import guide, make_schedule
from stepsampler.models import LatentModel, load
from stepsampler.npnet.files import BUNDLED, digest_of
from stepsampler.sample import execute, sample
from stepsampler.schedule import GoldenNoise, LearnedNoise, Schedule
from stepsampler.schedule import load as load_schedule
from stepsearch.compare.contenders import Contender, OnSchedule
from stepsearch.compare.harness import Clock, Harness, Metric
from stepsearch.compare.learned import OnPredictor
from stepsearch.compare.table import as_data, compare, with_error
from stepsearch.metrics.alignment import ClassAlignment
from stepsearch.metrics.evaluator import SEARCH, SELECTION, load_prompts, model_digest, seeds_of
from stepsearch.metrics.features import load_extractor
from stepsearch.metrics.protocol import Seeds
from stepsearch.metrics.reference import load_reference
from stepsearch.paths import write_whole
from stepsearch.polish.knobs import Knobs
from stepsearch.polish.objective import NUDGE
from stepsearch.rivals.amed.command import train
from stepsearch.rivals.amed.predictor import Setting
from stepsearch.rivals.amed.predictor import load as load_predictor
from stepsearch.rivals.amed.training import Training
from stepsearch.rivals.live import Following, LiveTableau
from stepsearch.rivals.placement import Counting

FRESH = 70_000_000  # test seeds that nothing has seen
CALLS = [5, 6, 8]
BASE, DPM = "UniPC", "DPM++(2M)"
SOLVERS = {BASE: "unipc-bh2", DPM: "dpmpp-midpoint"}
LEARNED_AT = 2.0  # guidance scale under which methods learn, and the first that is tried


class Bench:
    """The model and the rulers, and what methods are made of."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.model = load("tiny", args.device)
        assert isinstance(self.model, LatentModel)
        self.digest = model_digest(self.model)
        cache = args.run / "images"
        extractors = [load_extractor(name, args.device) for name in ("texture", "lite0")]
        metrics = [Metric(e, load_reference("fashion-mnist", e, 32, cache)) for e in extractors]
        self.prompts = load_prompts("fashion-mnist")
        clock, judge = Clock(torch.device(args.device)), ClassAlignment(args.device)
        self.harness = Harness(metrics, self.prompts, args.batch, cache, clock, judge)

    def on(self, name: str, schedule: Schedule) -> Contender:
        return OnSchedule(name, schedule, self.model, self.digest)

    def plan(self, name: str, calls: int, w: float) -> Schedule:
        """A solver of order 2, and of order 1 in its last step, as diffusers runs it."""
        options = {"solver": SOLVERS[name], "guidance_scale": w, "model": self.model.spec}
        return make_schedule("linspace", calls, self.model.noise, lower_order_final=True, **options)

    def rule(self, name: str, calls: int, w: float) -> Contender:
        return self.on(name, self.plan(name, calls, w))

    def raw(self, name: str, calls: int, w: float) -> Contender:
        """From raw golden noise: inversion from the second level, two calls more."""
        plan = self.plan(name, calls, w)
        golden = GoldenNoise(plan.sigmas[1], w, "inversion")
        return self.on(f"{name}, raw golden noise", replace(plan, golden_noise=golden))

    def learned(self, name: str, calls: int, w: float) -> Contender:
        """From golden noise of the network that is bundled for `tiny`."""
        golden = LearnedNoise(digest_of(BUNDLED / "tiny.safetensors"))
        plan = replace(self.plan(name, calls, w), golden_noise=golden)
        return self.on(f"{name}, learned golden noise", plan)

    def amed(self, calls: int) -> Path:
        """A predictor of the authors' setting, trained here."""
        path = self.args.run / f"amed-{calls}.safetensors"
        if not path.exists():
            texts = [prompt.text for prompt in self.prompts]
            setting = Setting(calls, LEARNED_AT, 0)
            print(f"{calls} calls: training of AMED", flush=True)
            train(self.model, texts, setting, self.args.trajectories, 32, path)
        return path

    def amed_learned(self, calls: int, w: float) -> Contender:
        found = OnPredictor(self.amed(calls), self.model, self.digest, guidance_scale=w)
        found.name = "AMED, learned"
        return found

    def amed_static(self, calls: int, w: float) -> Contender:
        path = self.amed(calls).with_suffix(".json")
        if not path.exists():
            predictor, _ = load_predictor(self.amed(calls))
            texts = [prompt.text for prompt in self.prompts]
            Training(predictor, self.model, texts).averages().save(path)
        return self.on("AMED, static", guide(load_schedule(path), w))

    def neural(self, calls: int, w: float) -> Contender:
        """Levels and weights learned from a teacher, as NeuralSolver's (arXiv 2505.21114)."""
        path = self.args.run / f"neural-{calls}.json"
        if not path.exists():
            print(f"{calls} calls: training of levels and weights", flush=True)
            self.learned_weights(calls).save(path)
        return self.on("NeuralSolver-like", guide(load_schedule(path), w))

    def learned_weights(self, calls: int) -> Schedule:
        """By gradients of the squared distance to where 50 steps of the same noise end.

        From DPM++(2M), whose guidance stays; NeuralSolver's own tables are of flow models, whose
        first level a variance-preserving model does not reach.
        """
        options = {"guidance_scale": LEARNED_AT, "model": self.model.spec}
        knobs = Knobs(make_schedule("linspace", calls, self.model.noise, **options), "weights")
        teacher = make_schedule("linspace", 50, self.model.noise, **options)
        parameters = knobs.zero().requires_grad_()
        free = torch.tensor([not name.startswith("scale") for name in knobs.names])
        adam = torch.optim.Adam([parameters], 1.0)
        for k in range(self.args.iterations):
            seeds = seeds_of(SEARCH + 16 * k, 16)
            texts = [self.prompts[seed % len(self.prompts)].text for seed in seeds]
            part = Counting(self.model, texts, "", seeded_noise(seeds, self.model.shape))
            with torch.no_grad():
                goal = sample(part, part.latents, teacher)
            rows = LiveTableau(knobs.schedule, parameters).at(parameters)
            start = part.latents * knobs.start.sigmas[0]
            *_, end = execute(Following(part, nudge=NUDGE), start, rows)
            adam.zero_grad()
            (end - goal).square().mean().backward()
            before = parameters.detach().clone()
            adam.step()  # of one unit; each kind has its own, and falls to nothing
            share = 1 - k / self.args.iterations
            moved = (parameters.detach() - before) * knobs.rates * free * share
            parameters.data = before + moved
        return replace(knobs.schedule(parameters.detach()), provenance={})

    def ours(self, calls: int) -> Contender | None:
        """What the search of `bench_peers.py` came to, at its own guidance."""
        rows = json.loads((self.args.docs / "benchmarks.json").read_text())["steps"]
        found = [row["contenders"][0] for row in rows if row["steps"] == calls]
        plan = Schedule.from_json(json.dumps(found[0]["schedule"])) if found else None
        return plan and self.on("ours, searched", replace(plan, provenance={}))


Method = Callable[[Bench, int, float], Contender]
METHODS: dict[str, Method] = {
    BASE: lambda b, n, w: b.rule(BASE, n, w),
    DPM: lambda b, n, w: b.rule(DPM, n, w),
    f"{BASE}, raw golden noise": lambda b, n, w: b.raw(BASE, n, w),
    f"{DPM}, raw golden noise": lambda b, n, w: b.raw(DPM, n, w),
    f"{BASE}, learned golden noise": lambda b, n, w: b.learned(BASE, n, w),
    f"{DPM}, learned golden noise": lambda b, n, w: b.learned(DPM, n, w),
    "NeuralSolver-like": Bench.neural,
    "AMED, static": Bench.amed_static,
    "AMED, learned": Bench.amed_learned,
}


def best(bench: Bench, name: str, method: Method, calls: int) -> tuple[Contender, dict]:
    """A method at its best scale on selection seeds, by the geometric mean of its FDs.

    From the scale of learning on to the better neighbour, until both are worse. Also what the row
    says of that: the scale, and those that were tried.
    """
    scales = sorted(bench.args.scales)
    seeds = Seeds("selection", seeds_of(SELECTION, bench.args.selection))
    names = [metric.reference.metric for metric in bench.harness.metrics]
    found: dict[float, float] = {}
    at = min(range(len(scales)), key=lambda i: abs(scales[i] - LEARNED_AT))
    while new := [w for w in scales[max(at - 1, 0) : at + 2] if w not in found]:
        result = compare([method(bench, calls, w) for w in new], bench.harness, seeds)
        for w, scores in zip(new, result.scores, strict=True):
            values = [score.value for key, score in scores.items() if key.startswith(tuple(names))]
            found[w] = float(torch.tensor(values).log().mean().exp())
        at = scales.index(min(found, key=found.__getitem__))
    shown = ", ".join(f"w {w:g}: {found[w]:.1f}" for w in sorted(found))
    print(f"{calls} calls, {name}: {shown}", flush=True)
    w = scales[at]
    return method(bench, calls, w), {"guidance_scale": w, "tried": sorted(found)}


def tested(bench: Bench, calls: int, earlier: list[str]) -> dict:
    """The rows of a number of calls: the methods asked for, and those of the earlier table."""
    wanted = {BASE, *bench.args.methods, *earlier}
    methods = {name: METHODS[name] for name in METHODS if name in wanted}
    chosen = [best(bench, name, method, calls) for name, method in methods.items()]
    ours = bench.ours(calls)
    entrants = [contender for contender, _ in chosen] + ([ours] if ours else [])
    seeds = Seeds("test", seeds_of(FRESH, bench.args.images))
    result = compare(entrants, bench.harness, seeds)
    data = as_data(result, bench.harness, {"model": "tiny"})
    for row, (_, scales) in zip(data["contenders"], chosen, strict=False):
        row |= scales
    return {"calls": calls, **data}


def page(found: dict) -> str:
    """The tables in markdown."""
    lines = [
        "# Published methods for few steps, on the bundled model",
        "",
        f"By `python scripts/compare_methods.py`: FD of {found['images']:,} images of fresh seeds, "
        "± its standard error, each method",
        f"at the guidance scale w that is best by both FDs on {found['selection']} selection "
        "seeds, of those in brackets; where it is the first or",
        "the last of them, one beyond may be better. A call of the network is the papers' NFE, and "
        "two passes under guidance; raw [golden",
        "noise](golden-noise.md) has two calls more, learned is of the bundled network. "
        "Differences are to UniPC, paired, with their 95 %",
        "interval: above 0 the method loses to it. Lower is better.",
    ]
    for rows in found["calls"]:
        metrics = [metric["name"] for metric in rows["metrics"]]
        keys = [k for k in rows["contenders"][0]["scores"] if k != "alignment"]
        heads = [f"`{k}` | minus UniPC" for k in keys]
        lines += ["", f"## {rows['calls']} calls", ""]
        lines.append(f"| method | w | passes | {' | '.join(heads)} | alignment |")
        lines.append("|---|---|---|" + "---|---|" * len(metrics) + "---|")
        for row in rows["contenders"]:
            w = "its own"
            if "tried" in row:
                tried = ", ".join(f"{scale:g}" for scale in row["tried"])
                w = f"{row['guidance_scale']:g} ({tried})"
            cells = [row["name"], w, f"{row['passes']:g}"]
            for key in keys:
                score = row["scores"][key]
                cells += [with_error(score["value"], score["standard_error"])]
                cells += [difference(rows, row["name"], key)]
            cells.append(f"{row['scores']['alignment']['value']:.1%}")
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", *verdicts(rows, keys)]
    measured = {rows["calls"] for rows in found["calls"]}
    for calls in (n for n in CALLS if n not in measured):
        lines += ["", f"## {calls} calls", "", "Not measured."]
    return "\n".join([*lines, ""])


def verdicts(rows: dict, keys: list[str]) -> list[str]:
    """Which methods lose to UniPC under which FD, and which were not measured, in sentences."""
    said = []
    for key in keys:
        losers = [
            row["name"]
            for row in rows["contenders"]
            if difference(rows, row["name"], key).endswith("(loses)")
        ]
        said.append(f"Under `{key}` these lose to UniPC: {'; '.join(losers) or 'none'}.")
    measured = {row["name"] for row in rows["contenders"]}
    missing = [name for name in METHODS if name not in measured]
    if missing:
        said.append(f"Not measured here: {'; '.join(missing)}.")
    return [line for sentence in said for line in (sentence, "")][:-1]


def difference(rows: dict, name: str, metric: str) -> str:
    for entry in rows["differences"]:
        if (entry["contender"], entry["metric"]) == (name, metric):
            low, high = entry["interval_95"]
            verdict = " (loses)" if low > 0 else ""
            return f"{entry['difference']:+.2f} [{low:+.2f}, {high:+.2f}]{verdict}"
    return ""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--steps", type=int, nargs="+", default=CALLS, help="network calls an image")
    add("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    add("--scales", type=float, nargs="+", default=[1.25, 1.5, 2.0, 3.0, 4.0, 5.0])
    add("--images", type=int, default=2000)
    add("--selection", type=int, default=300, help="images that choose a scale")
    add("--trajectories", type=int, default=640, help="that AMED learns from")
    add("--iterations", type=int, default=40, help="of 16 images, of NeuralSolver-like weights")
    add("--batch", type=int, default=50)
    add("--device", default="cpu")
    add("--run", type=Path, default=Path("runs/methods"))
    add("--docs", type=Path, default=Path("docs"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(1)
    bench = Bench(args)
    found = {"images": args.images, "selection": args.selection}
    path = args.docs / "methods.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    same = {key: earlier.get(key) for key in found} == found
    done = {rows["calls"]: rows for rows in earlier["calls"]} if same else {}
    for calls in args.steps:  # other numbers of calls of an earlier table stay
        kept = [row["name"] for row in done.get(calls, {}).get("contenders", [])]
        done[calls] = tested(bench, calls, kept)
        data = {**found, "calls": [done[n] for n in sorted(done)]}
        for file, text in ((path, json.dumps(data)), (path.with_suffix(".md"), page(data))):
            write_whole(file, partial(Path.write_text, data=text, encoding="utf-8"))
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
