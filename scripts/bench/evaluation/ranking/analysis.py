"""Features of images -> how well each statistic of a small subset ranks the schedules.

The subsets of n are disjoint blocks of one pool of seeds, and their number is the number of draws.
Under "common" seeds all schedules are ranked on the same block. Under "own" seeds the schedules are
dealt over the blocks, each goes once through all of them, and tau counts the pairs of schedules
that lie on different blocks: it takes no further images. Blocks that are no whole turns of the
prompts have other prompts too, as a fresh draw of seeds would have. The regrets of "own" are of
that deal, in which schedules share a block where blocks are few.

The truth is the same for all: FD on other seeds, and on real images that no statistic has seen.
How well one half of it ranks as the other half does says how far it can be believed itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stepsearch.metrics.distance import (
    Moments,
    frechet_distance,
    frechet_infinity,
    kernel_among,
    score,
    score_kernel,
)
from stepsearch.metrics.reference import Reference

KNOWN = "the teacher's guidance"
HALVES = "FD, one half of the truth"
PIXELS, FEATURES = "teacher, pixels", "teacher, features"
STATISTICS = ("FD", "FD-infinity", "KID", PIXELS, FEATURES)


@dataclass(frozen=True, eq=False)
class Real:
    """Real images under one extractor, on either side."""

    moments: Moments  # of FD and FD-infinity
    sample: np.ndarray  # (m, axes), of KID
    truth: Moments  # of neither of them

    @classmethod
    def of(cls, reference: Reference) -> "Real":
        """The sample lies among the test images of the reference: the truth does without it."""
        assert reference.sample is not None
        truth = reference.test.minus(Moments.of(reference.sample))
        return cls(reference.search, reference.sample, truth)

    @cached_property
    def among(self) -> float:
        """The part of KID that no schedule changes."""
        return kernel_among(self.sample)


@dataclass(frozen=True, eq=False)
class Images:
    """What was measured of the schedules of one number of steps, under one extractor."""

    pool: Sequence[np.ndarray]  # (images, axes) of each schedule; a row has the same seed in all
    truth: Sequence[np.ndarray]  # the same of other seeds
    known: Sequence[int]  # places of the schedules at the teacher's guidance
    gaps: dict[str, np.ndarray]  # statistic -> (known, images): distances to the teacher


def analyse(images: Images, real: Real, sizes: Sequence[int]) -> Iterator[dict]:
    """A row for each statistic, set of schedules, n, and common or own seeds."""
    true = np.array([frechet_distance(x, real.truth) for x in images.truth])
    everyone = list(range(len(true)))
    half = len(images.truth[0]) // 2
    if half >= 2:
        one, other = (
            np.array([frechet_distance(x[part], real.truth) for x in images.truth])
            for part in (slice(half), slice(half, 2 * half))
        )
        yield {
            "statistic": HALVES,
            "among": "all",
            "schedules": len(true),
            "seeds": "common",
            "n": half,
            "truth_images": half,
            **rank(one[None], other, False, half),
        }
    for kind in STATISTICS:
        for n in sizes:
            values = table(kind, images, real, n)
            if not len(values):
                continue
            groups = {KNOWN: list(images.known)}
            if kind not in images.gaps and len(images.known) < len(true):
                groups = {"all": everyone, **groups}
            for name, members in groups.items():
                if len(members) < 2:
                    continue
                mine = values if kind in images.gaps else values[:, members]
                for seeds in ("common", "own"):
                    if seeds == "common" or len(mine) > 1:
                        found = rank(mine, true[members], seeds == "own", n)
                        yield {
                            "statistic": kind,
                            "among": name,
                            "schedules": len(members),
                            "seeds": seeds,
                            "n": n,
                            "truth_images": len(images.truth[0]),
                            **found,
                        }


def paired(images: Images, real: Real, n: int) -> dict | None:
    """Do the errors of paired differences cover? On blocks of n of the truth's images.

    The differences are those of each schedule to the truly best one; "covered" is the share of
    their 95 % intervals that hold the mean difference of all blocks.
    """
    blocks = len(images.truth[0]) // n
    if blocks < 2 or len(images.truth) < 2:
        return None
    best = int(np.argmin([frechet_distance(x, real.truth) for x in images.truth]))
    rows = [[score(x[k * n : k * n + n], real.truth) for k in range(blocks)] for x in images.truth]
    found = np.array(
        [
            [mine.minus(other) for mine, other in zip(row, rows[best], strict=True)]
            for place, row in enumerate(rows)
            if place != best
        ]
    )
    differences, errors = found[..., 0], found[..., 1]
    off = np.abs(differences - differences.mean(1, keepdims=True))
    return {
        "n": n,
        "draws": blocks,
        "pairs": len(found),
        "conservative": rows[best][0].conservative,
        "covered": float((off <= rows[best][0].quantile * errors).mean()),
        "error_over_spread": float(np.sqrt((errors**2).mean() / differences.var(1, ddof=1).mean())),
    }


def table(kind: str, images: Images, real: Real, n: int) -> np.ndarray:
    """A statistic on every block of n: (blocks, schedules), of the known ones for a teacher's."""
    if kind in images.gaps:
        gaps = images.gaps[kind]
        blocks = gaps.shape[1] // n
        return gaps[:, : blocks * n].reshape(len(gaps), blocks, n).mean(2).T
    blocks = len(images.pool[0]) // n
    rows = [slice(k * n, k * n + n) for k in range(blocks)]
    return np.array([[value(kind, x[part], real) for x in images.pool] for part in rows])


def value(kind: str, x: np.ndarray, real: Real) -> float:
    if kind == "FD":
        return frechet_distance(x, real.moments)
    if kind == "FD-infinity":
        return frechet_infinity(x, real.moments)
    return score_kernel(x, real.sample, 0, real.among).value  # without its error


def rank(values: np.ndarray, true: np.ndarray, own: bool, seed: int) -> dict:
    """Means over the draws of `values` (blocks, schedules), and the spread of tau."""
    blocks, count = values.shape
    place = np.zeros(count, int)
    if own:
        place = np.random.default_rng(seed).permutation(count) % blocks
    draws = []
    for k in range(blocks):
        drawn = values[(place + k) % blocks, np.arange(count)]
        best, ten = np.argsort(drawn)[:5], np.argsort(true)[:10]
        draws.append(
            {
                "tau": tau(drawn, true, place if own else None),
                "tau_best_ten": tau(drawn[ten], true[ten], place[ten] if own else None),
                "top5_regret": true[best].min() - true.min(),
                "regret": true[best[0]] - true.min(),
            }
        )
    found = {key: _mean([draw[key] for draw in draws]) for key in draws[0]}
    spread = float(np.std([draw["tau"] for draw in draws], ddof=1)) if blocks > 1 else None
    return {"draws": blocks, **found, "tau_sd": spread}


def tau(values: np.ndarray, true: np.ndarray, place: np.ndarray | None = None) -> float:
    """Kendall's tau, with `place` over the pairs at different places alone; NaN without any."""
    i, j = np.triu_indices(len(values), 1)
    if place is not None:
        apart = place[i] != place[j]
        i, j = i[apart], j[apart]
    signs = np.sign(values[i] - values[j]) * np.sign(true[i] - true[j])
    return float(signs.mean()) if len(signs) else float("nan")


def _mean(values: list[float]) -> float | None:
    mean = float(np.mean(values))
    return mean if np.isfinite(mean) else None
