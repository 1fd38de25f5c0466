"""Rows of speed: a worker against the bare calls, our loop against the stock pipeline."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from gpu.bench import NAMES, PROMPTS, SCALE, Bench, Found
from stepsampler.generate import generate, seeded_noise
from stepsampler.grids import from_sigmas
from stepsampler.models.pixels import to_pixels
from stepsampler.sample import sample
from stepsampler.schedule import Schedule
from stepsearch.metrics import evaluator as evaluating
from stepsearch.metrics.evaluator import Evaluator

STEPS = 6
TRIAL = 6.0  # seconds that a trial should take, so that its ends count little
ROUNDS = 5


def worker(bench: Bench, name: str) -> Found:
    """Passes a second of a real evaluation, over those of the same calls and nothing else."""
    evaluator = bench.evaluator(name)
    plan = bench.plan(evaluator.model, STEPS)
    trial, images = trials(bench, evaluator, plan)
    calls = bare(evaluator, plan, images // evaluator.batch_size)
    whole, least = bench.times([trial, calls], ROUNDS)
    share, passes = least / whole, plan.passes * images
    return Found(
        f"{share:.3f}: {passes / whole:.1f} of {passes / least:.1f} passes a second, "
        f"{evaluator.batch_size} at once",
        share >= 0.95,
        share,
    )


def trials(bench: Bench, evaluator: Evaluator, plan: Schedule) -> tuple[Callable[[], object], int]:
    """Whole measurements of ever other seeds, and the number of images of each."""
    fresh = itertools.count(1000)

    def measure(images: int) -> object:
        start = next(fresh) * 10_000
        return evaluator.measure(plan, range(start, start + images))

    measure(evaluator.batch_size)  # encodes the prompts, and finds out what fits
    batch = evaluator.batch_size
    took = bench.seconds(lambda: measure(batch))
    longest = min(TRIAL, bench.left() / 12)
    images = batch * (2 if bench.dry else max(2, min(20, int(longest / took))))
    return lambda: measure(images), images


def bare(evaluator: Evaluator, plan: Schedule, batches: int) -> Callable[[], object]:
    """The calls of network, VAE and extractor that a trial makes, on numbers that are there."""
    model: Any = evaluator.model
    n = evaluator.batch_size
    texts = [evaluator.prompt(seed).text for seed in range(n)]
    cond, uncond = model.encode(texts), model.encode([""] * n, True)
    both = {name: torch.cat([uncond[name], value]) for name, value in cond.items()}
    x = torch.randn(2 * n, *model.shape, device=model.device, dtype=model.dtype)
    x = x.contiguous(memory_format=model._layout)
    at = torch.full((2 * n,), 500.0, device=model.device)
    latents = x[:n].float()
    pixels = to_pixels(model._decoded(latents).detach())

    @torch.inference_mode()
    def run() -> None:
        for _ in range(batches):
            for step in plan.steps:
                if step.guidance_scale == 1:
                    model._call(x[:n], at[:n], cond)
                else:
                    model._call(x, at, both)
            model._decoded(latents)
            evaluator.extractor(pixels)

    return run


def ahead(bench: Bench, name: str) -> Found:
    """A trial whose batches are made ahead of what measures them, over one in turn."""
    evaluator = bench.evaluator(name)
    plan = bench.plan(evaluator.model, STEPS)
    trial, _ = trials(bench, evaluator, plan)

    def in_turn() -> None:
        with serially():
            trial()

    with_it, without = bench.times([trial, in_turn], ROUNDS)
    ratio = without / with_it
    return Found(f"{ratio:.3f} x as fast as one batch after the other", ratio >= 1.0, ratio)


@contextmanager
def serially() -> Iterator[None]:
    kept = evaluating.made_ahead
    evaluating.made_ahead = lambda batches, device: nullcontext(batches)
    try:
        yield
    finally:
        evaluating.made_ahead = kept


def loop(bench: Bench, name: str) -> Found:
    """From prompts to images at equal passes: our loop over the stock pipeline."""
    n = max(1, bench.batch(name) // 2)
    ours, theirs = loops(bench, name, n)
    apart = (ours().int() - theirs().int()).abs().float().mean()
    mine, stock = bench.times([ours, theirs], 2 * ROUNDS)
    ratio = mine / stock
    return Found(
        f"{ratio:.3f}: {mine:.3f} s for {stock:.3f} s, {n} at once; images {apart:.1f} of 255 "
        "apart in the mean",
        ratio <= 1.0,
        ratio,
    )


def loops(bench: Bench, name: str, n: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Our loop and the pipeline with its own scheduler, on the same levels; no text is kept."""
    model = bench.model(name)
    pipeline = model.pipeline
    pipeline.scheduler.set_timesteps(STEPS)
    *sigmas, last = pipeline.scheduler.sigmas.tolist()
    plan = from_sigmas(sigmas, last, [SCALE] * STEPS, 1, "ddim", model.spec)
    prompts = [PROMPTS[k % len(PROMPTS)] for k in range(n)]

    def ours() -> torch.Tensor:
        model._encoded.clear()
        (made,) = generate(
            model, plan, prompts, range(n), negative_prompts=["blurry"] * n, batch_size=n
        )
        return made.images

    def theirs() -> torch.Tensor:
        images = pipeline(
            prompts,
            negative_prompt=["blurry"] * n,
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            generator=[torch.Generator().manual_seed(seed) for seed in range(n)],
            output_type="pt",
        ).images
        return (images.float() * 255).round().to(torch.uint8).cpu()

    return ours, theirs


def unguided(bench: Bench, name: str) -> Found:
    """Six guided steps over six of which three are unguided."""
    model, n = bench.model(name), bench.batch(name)
    noise = seeded_noise(range(n), model.shape).to(bench.device)
    cond, uncond = model.encode([PROMPTS[0]] * n), model.encode([""] * n, True)
    denoise = model.denoiser(cond, uncond)

    def run(plan: Schedule) -> Callable[[], object]:
        @torch.inference_mode()
        def once() -> object:
            return sample(denoise, noise, plan)

        return once

    plans = [bench.plan(model, STEPS), bench.plan(model, STEPS, range(1, STEPS, 2))]
    every, half = bench.times([run(plan) for plan in plans], 2 * ROUNDS)
    ratio = every / half
    return Found(f"{ratio:.3f} x as fast with half of them, {n} at once", ratio >= 1.25, ratio)


def named(name: str) -> str:
    return f"{NAMES[name]}'s shape, random weights, bfloat16"
