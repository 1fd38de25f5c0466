"""Our Fréchet distance against torchmetrics and clean-fid, side by side.

    scripts/test_fid                                      # once: makes .venv-fid, where both are
    export PYTHONPATH=search:sampler
    .venv-fid/bin/python scripts/bench/evaluation/bench_distance.py  # a few minutes on two cores
    .venv-fid/bin/python scripts/bench/evaluation/bench_distance.py --sizes 500x256

Features are the same for all, so that no network and no image is timed; each time is the smallest
of as many calls. Ours takes the covariance of the real images apart once, whatever is scored
against them: that time is printed on its own. Ratios hold on a busy machine, seconds do not. In
`.venv` clean-fid's column says that it is not installed.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable

import numpy as np
import torch

import operators
from stepsearch.metrics.distance import Moments, frechet_distance

SIZES = ("500x2048", "2000x2048", "10000x2048", "1000x256")
TARGETS = {(500, 2048): 50.0, (10000, 2048): 3.0}


def features(n: int, d: int, seed: int, scale: float = 1.0) -> np.ndarray:
    """With the falling spectrum of a network's features."""
    generator = np.random.default_rng(seed)
    return scale * generator.normal(size=(n, d)) / np.sqrt(1 + np.arange(d)) + 0.01


def torchmetrics_distance(x: np.ndarray, reference: Moments) -> float:
    """As its metric computes it: float64 moments of the images, then the eigenvalues."""
    from torchmetrics.image.fid import _compute_fid

    t = torch.from_numpy(x)
    mean = t.mean(0)
    cov = (t.T @ t - len(t) * torch.outer(mean, mean)) / (len(t) - 1)
    real = [torch.from_numpy(a) for a in (reference.mean, reference.cov)]
    return float(_compute_fid(*real, mean, cov))


def cleanfid_distance(x: np.ndarray, reference: Moments) -> float:
    """As its `fid_from_feats` computes it."""
    from cleanfid.fid import frechet_distance as theirs

    return float(theirs(x.mean(0), np.cov(x, rowvar=False), reference.mean, reference.cov))


def timed(call: Callable[[], float], repeats: int) -> tuple[float, float]:
    """The result and the smallest of `repeats` times."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        value = call()
        times.append(time.perf_counter() - started)
    return value, min(times)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="such as 500x2048")
    parser.add_argument("--repeats", type=int, default=3, help="of each call; the best counts")
    args = parser.parse_args(argv)
    rivals = {"torchmetrics": torchmetrics_distance, "clean-fid": cleanfid_distance}
    if importlib.util.find_spec("torchvision"):
        operators.declare()
    warm, absent = features(8, 4, seed=2), set()
    for name, theirs in rivals.items():  # imports and libraries' first calls are not timed
        try:
            theirs(warm, Moments.of(features(20, 4, seed=3)))
        except ImportError:
            absent.add(name)
    print(
        f"{'n x d':>12} {'once':>9} {'ours':>9}"
        + "".join(f"{n:>14} {'ratio':>7} {'agree':>8}" for n in rivals)
    )
    for size in args.sizes:
        n, d = map(int, size.split("x"))
        x = features(n, d, seed=0, scale=1.1)
        reference = Moments.of(features(max(4 * d, n), d, seed=1))
        _, once = timed(lambda r=reference: float(r.factor[0, 0]), 1)
        ours, seconds = timed(lambda x=x, r=reference: frechet_distance(x, r), args.repeats)
        line = f"{size:>12} {once:8.3f}s {seconds:8.3f}s"
        for name, theirs in rivals.items():
            if name in absent:
                line += f"{'not installed':>14} {'':>7} {'':>8}"
                continue
            try:
                value, spent = timed(lambda f=theirs, x=x, r=reference: f(x, r), args.repeats)
            except ValueError as error:  # an imaginary root
                line += f"{str(error)[:13]:>14} {'':>7} {'':>8}"
                continue
            line += f"{spent:13.2f}s {spent / seconds:6.1f}x {abs(value / ours - 1):8.0e}"
        target = TARGETS.get((n, d))
        print(line + (f"   target {target:g}x" if target else ""), flush=True)


if __name__ == "__main__":
    main()
