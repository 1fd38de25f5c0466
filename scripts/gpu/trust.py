"""Rows of trust: the same images as on a CPU, memory that runs out, graphs, two workers."""

import copy
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import numpy as np
import torch

from gpu import card, shapes
from gpu.bench import Bench, Found, SkippedError
from gpu.speed import STEPS, loops
from stepsampler.generate import generate, seeded_noise
from stepsampler.grids import GRIDS, from_sigmas
from stepsampler.models import from_pipeline, load
from stepsampler.sample import sample
from stepsampler.schedule import Schedule
from stepsearch.engine.workers import Workers
from stepsearch.metrics.evaluator import Evaluator

APART = 2  # of 255: what float32 of two devices may make of one image, after rounding
PLANS = (("dpmpp-midpoint", 2), ("unipc-bh2", 3), ("heun", 2), ("deis", 3))
HALVED = "does not fit into memory"
GIB = 2**30


def same(bench: Bench) -> Found:
    """The bundled model in float32: images of the device against those of the CPU."""
    prompts = [
        "a photo of a bag",
        "a photo of a sneaker",
        "a photo of a coat",
        "a photo of a shirt",
    ]
    here, there = load("tiny", str(bench.device)), load("tiny")

    def made(model: Any, plan: Schedule, batch: int) -> torch.Tensor:
        every = generate(model, plan, prompts, range(4), batch_size=batch)
        return torch.cat([batch.images for batch in every]).int()

    apart = rounded = 0
    for solver, order in PLANS:
        *sigmas, final = GRIDS["karras"](5, there.noise)
        plan = from_sigmas(sigmas, final, [3.0] * 5, order, solver, there.spec)
        expected = made(there, plan, 4)
        with card.exact(bench.device):
            for batch in (4, 1):
                apart = max(apart, int((made(here, plan, batch) - expected).abs().max()))
        rounded = max(rounded, int((made(here, plan, 4) - expected).abs().max()))
    return Found(
        f"at most {apart} of 255 apart, alone and in a batch; {rounded} as torch comes, with TF32",
        apart <= APART,
        apart,
    )


def auto(bench: Bench, name: str) -> Found:
    """`batch_size = "auto"`: what it chose, against one image at a time."""
    evaluator = bench.evaluator(name, "auto")
    said = io.StringIO()
    with redirect_stderr(said):
        size = evaluator.batch_size
    one, best = bench.times([lambda: evaluator._probe(1), lambda: evaluator._probe(size)], 3)
    ratio = size * one / best
    return Found(
        f"{size} at once, {size / best:.2f} images a second: {ratio:.2f} x one at a time",
        ratio >= 1.0 and "the fastest here" in said.getvalue(),
        ratio,
    )


def out_of_memory(bench: Bench, name: str) -> Found:
    """A batch that is too large is halved until it fits, and no trial tries it again."""
    asked = 8 * max(1, bench.batch(name) // 8) * 2
    small = bench.evaluator(name, 2)
    plan = bench.plan(small.model, STEPS)
    small.measure(plan, range(2))
    evaluator, told = bench.evaluator(name, asked), []
    with tight(bench, evaluator, lambda: small._measure(plan, range(2), (), 2)):
        for k in (1, 2):
            said = io.StringIO()
            with redirect_stderr(said):
                found = evaluator.measure(plan, range(k * asked, (k + 1) * asked))
            told.append(said.getvalue().count(HALVED))
    size = evaluator.batch_size
    held = size < asked and told[0] > 0 and told[1] == 0 and found.finite
    return Found(f"{asked} became {size}; halved {told[0]} times, then {told[1]} times", held, size)


@contextmanager
def tight(bench: Bench, evaluator: Evaluator, two: Callable[[], object]) -> Iterator[None]:
    """Memory for a few images. A CPU has no such limit: its network says that there is none."""
    if bench.device.type == "cuda":
        card.free(bench.device)
        held = torch.cuda.memory_allocated(bench.device)
        more = card.peak(two, bench.device) - held
        with card.memory_of(held + 2 * more + GIB // 4, bench.device):
            yield
        return

    def refuse(_: Any, given: tuple[torch.Tensor, ...]) -> None:
        if len(given[0]) > 2 * 3:  # a guided step has each image twice
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model: Any = evaluator.model
    hook = model.net.register_forward_pre_hook(refuse)
    try:
        yield
    finally:
        hook.remove()


def memory(bench: Bench, name: str) -> Found:
    """The most that lies on the device while images are made, weights included."""
    n = max(1, bench.batch(name) // 2)
    ours, theirs = loops(bench, name, n)
    mine, stock = (card.peak(run, bench.device) for run in (ours, theirs))
    ratio = mine / stock
    return Found(
        f"{ratio:.3f}: {mine / GIB:.2f} GiB for {stock / GIB:.2f} GiB, {n} at once",
        ratio <= 1.05,
        ratio,
    )


def compiled(bench: Bench, name: str) -> Found:
    """The network compiled, in trials of other levels, guidance and numbers of steps."""
    counters = torch._dynamo.utils.counters["stats"]
    if bench.dry:
        pipeline = copy.deepcopy(bench.pipeline(name))
    else:
        pipeline = shapes.pipeline(name, bench.device, torch.bfloat16)
    model, n = from_pipeline(pipeline), bench.batch(name)
    noise = seeded_noise(range(n), model.shape).to(bench.device)
    denoise = model.denoiser(model.encode(["a bag"] * n), model.encode([""] * n, True))

    @torch.inference_mode()
    def trial(plan: Schedule) -> torch.Tensor:
        return sample(denoise, noise, plan)

    first = bench.plan(model, STEPS, (1,))
    others = [bench.plan(model, k, range(k // 2)) for k in (3, 5, 8)]
    trial(first)
    plain = bench.seconds(lambda: trial(first))
    model.compile()
    torch._dynamo.reset()
    began, before = time.monotonic(), counters["unique_graphs"]
    trial(first)
    warm, graphs = time.monotonic() - began, counters["unique_graphs"] - before
    for plan in others:
        trial(plan)
    more = counters["unique_graphs"] - before - graphs
    fast = min(bench.seconds(lambda: trial(first)) for _ in range(3))
    torch._dynamo.reset()
    return Found(
        f"{graphs} graphs in the first trial ({warm:.0f} s), {more} more in three others; "
        f"{fast / plain:.2f} of the time uncompiled",
        graphs > 0 and more == 0,
        more,
    )


def workers(bench: Bench, name: str) -> Found:
    """Two worker processes on the one card, beside one: the same features, and how fast."""
    jobs_each = 2 * bench.batch(name)
    config = bench.study(name, bench.batch(name))
    plan = bench.plan(bench.model(name), STEPS)
    card.free(bench.device)

    def measured(count: int) -> tuple[np.ndarray, float]:
        folder = bench.folder / f"workers-{count}"
        folder.mkdir()
        said = print_nothing
        with Workers(config, folder, [str(bench.device)] * count, said) as pool:
            pool.describe()
            starts = [k * jobs_each for k in range(4)]
            list(pool.measure([(plan, range(s + 10**6, s + 10**6 + jobs_each)) for s in starts]))
            began = time.monotonic()
            found = dict(pool.measure([(plan, range(s, s + jobs_each)) for s in starts]))
            took = time.monotonic() - began
        return np.concatenate([found[k].features for k in range(4)]), took

    one, alone = measured(1)
    if not np.isfinite(one).all():
        raise SkippedError("the random model's images are not finite")
    two, together = measured(2)
    apart = float(np.abs(one - two).max() / np.abs(one).max())
    return Found(
        f"features {apart:.1g} apart; {alone / together:.2f} x the images of one worker",
        apart <= 0.02,
        alone / together,
    )


def print_nothing(_: str) -> None:
    """Nobody waits for long here."""
