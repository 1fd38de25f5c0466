#!/usr/bin/env python3
"""Published methods for few steps, each at its best guidance, on the bundled model.

    python scripts/compare_methods.py                       # resumes; writes docs/methods.*
    python scripts/compare_methods.py --methods UniPC "DPM++(2M)" --steps 5
    python scripts/compare_methods.py --page                # only the page, of the same numbers

For 5, 6 and 8 network calls an image (twice as many passes under guidance): each method at scales
of `--scales` on selection seeds, from 2 on towards what is better; at the best of them, by the
geometric mean of both FDs, it is tested on fresh seeds. Differences are to UniPC, paired image by
image. Golden noise, raw and learned, is put under each method that is a schedule. Methods that the
table has already stay in it, if it was measured with the same options. A method is a line of
`METHODS` in `methods/bench.py`.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from methods.bench import BASE, GOLDEN, LEARNED_AT, METHODS, OURS, PREDICTED, V3, Bench
from methods.page import page

from stepsearch.compare.contenders import Contender
from stepsearch.compare.table import as_data, compare
from stepsearch.metrics.evaluator import SELECTION, seeds_of
from stepsearch.metrics.protocol import Seeds
from stepsearch.paths import write_whole

FRESH = 70_000_000  # test seeds that nothing has seen
CALLS = [5, 6, 8]
FINALISTS = 2  # scales that have the second look
UNDER = [name for name in METHODS if name != PREDICTED]  # golden noise is a schedule's
WITH_GOLDEN = [f"{name}, {how}" for name in UNDER for how in GOLDEN]
EVERY = [*METHODS, *WITH_GOLDEN, OURS]
# What numbers depend on; a table of others is measured anew.
SETTINGS = ("images", "selection", "scales", "trajectories", "taught", "iterations", "part")
SETTINGS += ("samples", "trials", "trial_images", "batch", "dtype", "compile")


class Chosen:
    """A method at its best scale on selection seeds."""

    def __init__(
        self,
        bench: Bench,
        name: str,
        make: Callable[[float], Contender],
        calls: int,
        scales: list[float],
        start: float = LEARNED_AT,
    ) -> None:
        """From the scale `start` on to the better neighbour until both are worse, by few images;
        then the best two of these by many."""
        self.name, self.work = name, f"{name} {calls} choosing"
        few, many = bench.args.selection
        scales = sorted(scales)
        found: dict[float, float] = {}
        at = min(range(len(scales)), key=lambda i: abs(scales[i] - start))
        for w in scales:  # what is learned for it is counted with the method
            if w in scales[max(at - 1, 0) : at + 2]:
                make(w)
        with bench.spent.on(self.work):
            while new := [w for w in scales[max(at - 1, 0) : at + 2] if w not in found]:
                found |= values(bench, [make(w) for w in new], new, few)
                at = scales.index(min(found, key=found.__getitem__))
            finalists = sorted(found, key=found.__getitem__)[:FINALISTS]
            last = values(bench, [make(w) for w in finalists], finalists, many)
        self.scale = min(last, key=last.__getitem__)
        self.tried, self.finalists = sorted(found), finalists
        self.contender = make(self.scale)
        images = len(found) * few + len(finalists) * (many - few)
        bench.spent.passes(self.work, images * (self.contender.passes or 0))
        shown = [f"w {w:g}: {found[w]:.1f}" for w in self.tried]
        shown += [f"w {w:g}: {last[w]:.1f} of {many}" for w in finalists]
        print(f"{calls} calls, {name}: {', '.join(shown)}", flush=True)


def values(
    bench: Bench, contenders: list[Contender], scales: list[float], images: int
) -> dict[float, float]:
    """The geometric mean of both FDs at each scale, on the first selection seeds."""
    seeds = Seeds("selection", seeds_of(SELECTION, images))
    result = compare(contenders, bench.harness, seeds)
    names = tuple(metric.reference.metric for metric in bench.harness.metrics)
    found = {}
    for w, scores in zip(scales, result.scores, strict=True):
        each = [score.value for key, score in scores.items() if key.startswith(names)]
        found[w] = float(torch.tensor(each).log().mean().exp())
    return found


def columns(bench: Bench, calls: int, earlier: list[str]) -> Iterator[dict]:
    """The rows of a number of calls, ever more; golden noise comes last."""
    asked = bench.args.methods
    wanted = {BASE, *(asked or EVERY), *earlier}
    chosen = list[Chosen]()
    for name in (name for name in METHODS if name in wanted):
        # statistics are of a scale, and dear
        scales = chosen[0].finalists if name == V3 else bench.args.scales
        make = partial(METHODS[name], bench, calls)
        chosen.append(Chosen(bench, name, make, calls, scales))
    ours = list[Contender]()
    yield tested(bench, calls, chosen, ours)
    if OURS in wanted:
        ours.append(bench.ours(calls))
        yield tested(bench, calls, chosen, ours)
    best = {each.name: each.scale for each in chosen}
    for name in UNDER:
        for how in GOLDEN:
            if f"{name}, {how}" in wanted:
                make = partial(bench.golden, how, name, calls)
                scales = chosen[0].finalists if name == V3 else bench.args.scales
                start = best.get(name, LEARNED_AT)
                chosen.append(Chosen(bench, f"{name}, {how}", make, calls, scales, start))
                yield tested(bench, calls, chosen, ours)


def tested(bench: Bench, calls: int, chosen: list[Chosen], ours: list[Contender]) -> dict:
    """Rows on fresh seeds, with what each took."""
    chosen = sorted(chosen, key=lambda each: EVERY.index(each.name))
    entrants = [each.contender for each in chosen] + ours
    seeds = Seeds("test", seeds_of(FRESH, bench.args.images))
    work = f"{calls} test"
    with bench.spent.on(work):
        result = compare(entrants, bench.harness, seeds)
    bench.spent.passes(work, bench.args.images * sum(each.passes or 0 for each in entrants))
    data = as_data(result, bench.harness, {"model": "tiny"})
    every = {work}
    for row, each in zip(data["contenders"], [*chosen, *ours], strict=True):
        scale = each.scale if isinstance(each, Chosen) else None
        learning, choosing = (
            bench.works(row["name"], calls, scale),
            f"{row['name']} {calls} choosing",
        )
        row |= {"learning": bench.spent.of(*learning), "choosing": bench.spent.of(choosing)}
        if isinstance(each, Chosen):
            row |= {"guidance_scale": scale, "tried": each.tried}
        every |= {*learning, choosing}
    return {"calls": calls, **data, "spent": bench.spent.of(*every)}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--steps", type=int, nargs="+", default=CALLS, help="network calls an image")
    add("--methods", nargs="+", choices=EVERY, help="all")
    add("--scales", type=float, nargs="+", default=[1.25, 1.5, 2.0, 3.0, 4.0, 5.0])
    add("--images", type=int, default=2000)
    add("--selection", type=int, nargs=2, default=[100, 200], help="images that choose a scale")
    add("--trajectories", type=int, default=640, help="that AMED learns from")
    add("--taught", type=int, default=160, help="trajectories, of NeuralSolver-like weights")
    add("--iterations", type=int, default=40, help="of these")
    add("--part", type=int, default=12, help="trajectories an iteration")
    add("--samples", type=int, default=64, help="of statistics of DPM-Solver-v3")
    add("--trials", type=int, default=24, help="of our search")
    add("--trial-images", type=int, default=100)
    add("--batch", type=int, default=50)
    add("--device", default="cpu")
    add("--dtype", default="bfloat16", choices=("float32", "bfloat16"), help="of the images")
    add("--no-compile", dest="compile", action="store_false", help="the network as it is")
    add("--run", type=Path, default=Path("runs/methods"))
    add("--docs", type=Path, default=Path("docs"))
    add("--page", action="store_true", help="write the page of the numbers that are there, and end")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(1)
    path = args.docs / "methods.json"
    done = {}
    if path.exists():
        done = {rows["calls"]: rows for rows in json.loads(path.read_text())["calls"]}
    if args.page:
        write(path, done)
        return
    bench = Bench(args)
    settings = {name: getattr(args, name) for name in SETTINGS}
    for calls in args.steps:  # other numbers of calls of an earlier table stay
        earlier = done.get(calls, {})
        kept = earlier.get("contenders", []) if earlier.get("settings") == settings else []
        for rows in columns(bench, calls, [row["name"] for row in kept]):
            done[calls] = rows | {"settings": settings, "command": command(args)}
            write(path, done)
    print(path.with_suffix(".md").read_text())


def write(path: Path, done: dict[int, dict]) -> None:
    """Numbers and page."""
    data = {"calls": [done[n] for n in sorted(done)]}
    text = page(data, CALLS, EVERY)
    for file, content in ((path, json.dumps(data)), (path.with_suffix(".md"), text)):
        write_whole(file, partial(Path.write_text, data=content, encoding="utf-8"))


def command(args: argparse.Namespace) -> str:
    """What makes this table anew: what is not by default, places apart."""
    plain, said = parse([]), ["python scripts/compare_methods.py"]
    for name in SETTINGS:
        value = getattr(args, name)
        if value != getattr(plain, name):
            option = "no-compile" if name == "compile" else name.replace("_", "-")
            each = value if isinstance(value, list) else [value]
            said.append(" ".join([f"--{option}", *map(str, each if name != "compile" else [])]))
    return " ".join(said)


if __name__ == "__main__":
    main()
