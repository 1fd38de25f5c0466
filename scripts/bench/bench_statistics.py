"""What statistics for DPM-Solver-v3 cost: to be made, and when sampling goes by them.

    python scripts/bench/bench_statistics.py making [--samples 96] [--threads 2]
    python scripts/bench/bench_statistics.py sampling [--rounds 600]

`making` calls `stepsample statistics` for the bundled model, and beside it the sampling of a batch,
each in a process of its own: wall and CPU seconds, and peaks of memory. What 1,024 samples take is
said from the first batch, which measures errors too, and from those after it, which are all alike.
On a busy machine CPU seconds say better than the wall what quiet cores need.

`sampling` has the bundled model under DPM-Solver-v3 and under UniPC in turns, step by step, and who
begins alternates: CPU seconds of this process on one thread, the median of the ratios of neighbours
with a bootstrap 95 % interval. What a trajectory takes before its first step is in the sum that is
printed below, without the network. The statistics are random, as their values cost nothing.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from bench_sampler import conditions, seconds

from cluster.builds import report
from stepsampler.grids import make_schedule
from stepsampler.models import LatentModel, load
from stepsampler.sample import Denoiser, trajectory
from stepsampler.schedule import Schedule
from stepsampler.statistics.file import Statistics, ends_of

INTERVALS, SCALE = 120, 2.0
WHOLE = 1024  # samples of a file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="what", required=True)
    one = parts.add_parser("making")
    one.add_argument("--samples", type=int, default=96)
    one.add_argument("--batch-size", type=int, default=32)
    one.add_argument("--threads", type=int, default=2)
    two = parts.add_parser("sampling")
    two.add_argument("--rounds", type=int, default=600)
    two.add_argument("--images", type=int, default=1)
    two.add_argument("--steps", type=int, nargs="+", default=[6, 8])
    args = parser.parse_args()
    if args.what == "making":
        making(args.samples, args.batch_size, args.threads)
    else:
        sampling(args.rounds, args.images, args.steps)


def making(samples: int, batch_size: int, threads: int) -> None:
    """The two commands, and what 1,024 samples take at the rate of these."""
    batch = ["--prompt", "a coat", "--batch-size", str(batch_size)]
    with tempfile.TemporaryDirectory() as folder:

        def make(count: int) -> dict[str, float]:
            out = ["-o", f"{folder}/{count}.safetensors", "--guidance-scale", f"{SCALE:g}"]
            size = ["--intervals", str(INTERVALS), "--samples", str(count)]
            return measured(["statistics", *size, *batch, *out], threads)

        first, made = make(batch_size), make(samples)
        plan = f"{folder}/plan.json"
        measured(["make", "linspace", "--steps", "8", "-o", plan], threads)
        seeds = ["--seeds", f"0-{batch_size - 1}", "-o", f"{folder}/images"]
        sampled = measured([plan, *batch, *seeds], threads)
    each = (made["cpu"] - first["cpu"]) / (samples - batch_size)
    whole = first["cpu"] + (WHOLE - batch_size) * each
    print(
        f"{INTERVALS} intervals, batches of {batch_size}, {threads} threads: the first batch "
        f"{first['cpu']:.0f} CPU s with loading, then {each:.2f} a sample; {samples} samples "
        f"{made['wall']:.0f} s, {made['cpu']:.0f} CPU s"
    )
    print(
        f"{WHOLE} samples: {whole:.0f} CPU s, over {threads} cores "
        f"{whole / threads / 60:.1f} minutes, wanted <= 10"
    )
    print(
        f"peak of memory: {made['peak']:.0f} MiB, of sampling a batch {sampled['peak']:.0f} MiB: "
        f"{made['peak'] / sampled['peak']:.2f} times, wanted <= 2"
    )


def measured(arguments: list[str], threads: int) -> dict[str, float]:
    """Wall and CPU seconds, and the peak in MiB, of one call of `stepsample`."""
    command = [sys.executable, "-c", "from stepsampler.cli import main; main()", *arguments]
    started = time.perf_counter()
    with subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
    ) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"failed: stepsample {' '.join(arguments)}")
    return {
        "wall": time.perf_counter() - started,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak": usage.ru_maxrss / 1024,
    }


def sampling(rounds: int, images: int, steps: list[int]) -> None:
    """Steps side by side, and what of a trajectory is outside of the network."""
    torch.set_num_threads(1)
    model = load("tiny")
    assert isinstance(model, LatentModel)
    numbers = np.random.default_rng(0).uniform(0, 1, (3, INTERVALS + 1, *model.shape))
    known = Statistics(*numbers, ends_of(model.noise), SCALE, 1, "random")
    noise, cond, uncond = conditions(model, images)
    still = torch.zeros_like(noise)

    def run(plan: Schedule, denoise: Denoiser | None = None) -> Iterator[torch.Tensor]:
        given = known if plan.solver == "dpm-v3" else None
        denoise = denoise or model.denoiser(cond, uncond)
        return trajectory(denoise, noise, plan, statistics=given)

    for count in steps:
        plans = [
            make_schedule(
                "linspace",
                count,
                model.noise,
                solver=solver,
                guidance_scale=SCALE,
                statistics=known.spec if solver == "dpm-v3" else None,
            )
            for solver in ("dpm-v3", "unipc-bh2")
        ]
        started = time.process_time()
        known.rows(plans[0], torch.device("cpu"))
        once = time.process_time() - started
        times = in_turns([partial(run, plan) for plan in plans], rounds)
        bare = in_turns([partial(run, plan, lambda x, step: still) for plan in plans], rounds)
        ratios = (times[0] / times[1]).ravel()
        report(f"{count} steps, batch {images}: dpm-v3 / unipc-bh2", ratios, "<= 1.01")
        outside, whole = (1e3 * np.median(t.sum(2), 1) for t in (bare, times))
        print(
            f"  outside of the network {outside[0]:.2f} and {outside[1]:.2f} ms of {whole[1]:.0f}"
        )
        print(f"  the numbers of the steps, once for a schedule: {once:.3f} s", flush=True)


@torch.inference_mode()
def in_turns(runs: list[Callable[[], Iterator[torch.Tensor]]], rounds: int) -> np.ndarray:
    """CPU seconds of each step of each trajectory, of shape (runs, rounds, steps)."""
    times: list[list[list[float]]] = []
    for k in range(rounds + 1):
        pair = [run() for run in runs]
        found: list[list[float]] = [[] for _ in runs]
        while True:
            order = range(len(pair)) if (k + len(found[0])) % 2 else reversed(range(len(pair)))
            try:
                for i in order:
                    found[i].append(seconds(partial(next, pair[i])))
            except StopIteration:
                break
        times.append(found)
    return np.moveaxis(np.array(times[1:]), 1, 0)  # the first warms up


if __name__ == "__main__":
    main()
