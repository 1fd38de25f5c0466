"""What our loop costs beside the network, against the stock pipeline with its own DPM-Solver++.

    python scripts/bench/bench_sampler.py --rounds 60

Both sides run the bundled model on one thread, from the same encoded prompts and noise to latents:
8 guided steps of order 2. They take turns in one process, and who begins alternates. Times are CPU
seconds of this process, so that other programs on the machine count less. Ratios are medians over
the rounds, with a bootstrap 95 % interval.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler

from cluster.builds import report
from stepsampler.generate import seeded_noise
from stepsampler.grids import make_schedule
from stepsampler.models import LatentModel, load
from stepsampler.sample import sample
from stepsampler.schedule import Schedule

STEPS = 8
GUIDANCE_SCALE = 3.0
Run = Callable[[], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=40, help="at batch 64; batch 1 takes 4 times as many"
    )
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    model = load("tiny")
    model.pipeline.set_progress_bar_config(disable=True)
    guided = make_schedule("linspace", STEPS, model.noise, guidance_scale=GUIDANCE_SCALE)
    for batch, count in ((1, 4 * rounds), (64, rounds)):
        ours, stock = own_loop(model, guided, batch), stock_pipeline(model, batch)
        difference = float((ours() - stock()).abs().max())
        times = interleave([ours, stock], count)
        report(f"batch {batch}: our loop / stock pipeline", times[0] / times[1], "<= 1.02")
        print(f"  latents differ by at most {difference:.1g}; ours {np.median(times[0]):.4f} s")
    outside = [
        share_outside(model, own_loop(model, guided, 64)) for _ in range(max(3, rounds // 4))
    ]
    report("batch 64: share of our loop outside of the network", np.array(outside), "<= 0.03")
    six = make_schedule("linspace", 6, model.noise, guidance_scale=GUIDANCE_SCALE)
    half = [replace(s, guidance_scale=1.0) if i % 2 else s for i, s in enumerate(six.steps)]
    runs = [own_loop(model, s, 64) for s in (six, replace(six, steps=tuple(half)))]
    times = interleave(runs, rounds)
    report("batch 64: 6 guided steps / 3 of them unguided", times[0] / times[1], ">= 1.2")


def conditions(model: LatentModel, batch: int) -> tuple[torch.Tensor, dict, dict]:
    noise = seeded_noise(range(batch), model.shape)
    prompts = ["a photo of a sneaker", "a photo of a bag"] * batch
    return noise, model.encode(prompts[:batch]), model.encode([""] * batch, True)


def own_loop(model: LatentModel, schedule: Schedule, batch: int) -> Run:
    noise, cond, uncond = conditions(model, batch)
    return lambda: sample(model.denoiser(cond, uncond), noise, schedule)


def stock_pipeline(model: LatentModel, batch: int) -> Run:
    noise, cond, uncond = conditions(model, batch)
    pipeline = model.pipeline
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="linspace", final_sigmas_type="zero"
    )
    first = model.noise.sigma_max  # its noise has unit variance, ours no x0 in it
    latents = noise * first / (1 + first**2) ** 0.5
    return lambda: pipeline(
        prompt_embeds=cond["encoder_hidden_states"],
        negative_prompt_embeds=uncond["encoder_hidden_states"],
        latents=latents,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        output_type="latent",
        return_dict=False,
    )[0]


def seconds(run: Run) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


@torch.inference_mode()
def interleave(runs: list[Run], rounds: int) -> np.ndarray:
    """CPU seconds, of shape (runs, rounds)."""
    for run in runs:
        run()
    times = np.empty((len(runs), rounds))
    for k in range(rounds):
        for i in (range(len(runs)), reversed(range(len(runs))))[k % 2]:
            times[i, k] = seconds(runs[i])
    return times


@torch.inference_mode()
def share_outside(model: LatentModel, run: Run) -> float:
    with network_time(model) as inside:
        total = seconds(run)
    return 1 - sum(inside) / total


@contextmanager
def network_time(model: LatentModel) -> Iterator[list[float]]:
    inside: list[float] = []
    forward = model.net.forward

    def timed(*args, **options):
        started = time.process_time()
        output = forward(*args, **options)
        inside.append(time.process_time() - started)
        return output

    model.net.forward = timed
    try:
        yield inside
    finally:
        del model.net.forward


if __name__ == "__main__":
    main()
