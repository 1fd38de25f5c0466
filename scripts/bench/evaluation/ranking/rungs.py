"""Features of images -> what ranks schedules best on a first rung of n images.

Blocks of n are disjoint. The truth of a block is FD of all images outside it, on real images that
no statistic has seen. The baseline is the known grid that a search would begin with, the best of
them by FD of all its images; it is ranked by nobody, and N further images of it are known, on seeds
of no block. Of FD_n is taken off beta (FD_n(baseline) - FD_N(baseline)), both baselines' FD on the
search's real images and the first on the seeds of the block:

- "beta 1": as it stands. On common seeds, and at equal n, that is one constant for all schedules;
- "beta by jackknife": the slope of one jackknife's values left out on the other's, block by block.

"Moments" are those of the baseline's N images, plus the difference of both at n: of the mean, and
of the covariance, of which negative eigenvalues are left out under the root of FD.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from ranking.analysis import Real, tau
from stepsearch.metrics.distance import Moments, frechet_distance, score

JUDGE, FD = "cross-entropy of the judge", "FD"
ONE, SLOPE, MOMENTS = "FD, beta 1", "FD, beta by jackknife", "FD, moments"
STATISTICS = (FD, JUDGE, ONE, SLOPE, MOMENTS)


def blocks_of(images: int, n: int) -> list[slice]:
    return [slice(first, first + n) for first in range(0, images - n + 1, n)]


def without(x: np.ndarray, part: slice) -> np.ndarray:
    return np.delete(x, part, axis=0)


def distance(mean: np.ndarray, cov: np.ndarray, real: Moments) -> float:
    """FD of moments, of which the covariance need not be positive."""
    values = np.linalg.eigvalsh(real.factor.T @ cov @ real.factor)
    shift = ((mean - real.mean) ** 2).sum()
    return float(shift + np.trace(cov) + np.trace(real.cov) - 2 * np.sqrt(values.clip(0)).sum())


def slope(mine: np.ndarray, other: np.ndarray) -> float:
    """Of one jackknife's values on another's."""
    centred = other - other.mean()
    return float(centred @ (mine - mine.mean()) / max(float(centred @ centred), 1e-30))


def statistics(
    features: Sequence[np.ndarray],
    surprise: Sequence[np.ndarray],
    base: int,
    known: Moments,
    part: slice,
    real: Moments,
) -> np.ndarray:
    """Every statistic of every schedule on one block: (statistics, schedules).

    `known` are the moments of the baseline's further images.
    """
    own = score(features[base][part], real)
    off = own.value - distance(known.mean, known.cov, real)
    here = Moments.of(features[base][part])
    found = []
    for x, judged in zip(features, surprise, strict=True):
        mine, moments = score(x[part], real), Moments.of(x[part])
        mean = known.mean + moments.mean - here.mean
        cov = known.cov + moments.cov - here.cov
        beta = slope(mine.left_out, own.left_out)
        found.append(
            [
                mine.value,
                float(judged[part].mean()),
                mine.value - off,
                mine.value - beta * off,
                distance(mean, cov, real),
            ]
        )
    return np.array(found).T


def best_grid(features: Sequence[np.ndarray], grids: Sequence[int], real: Real) -> int:
    """The place of the known grid that is best by all images."""
    return min(grids, key=lambda k: frechet_distance(features[k], real.truth))


def analyse(
    features: Sequence[np.ndarray],
    surprise: Sequence[np.ndarray],
    grids: Sequence[int],
    further: np.ndarray,
    real: Real,
    sizes: Sequence[int],
) -> list[dict]:
    """A row for each statistic and n.

    `features` (images, axes) and `surprise` (images,) are of each schedule, rows of common seeds;
    `grids` are the places of the known grids, `further` the features of the best of them.
    """
    base, known = best_grid(features, grids, real), Moments.of(further)
    others = [k for k in range(len(features)) if k != base]
    ranked = [k for k, place in enumerate(others) if place in grids]
    rows = []
    for n in sizes:
        parts = blocks_of(len(features[0]), n)
        true = np.array(
            [[frechet_distance(without(features[k], p), real.truth) for k in others] for p in parts]
        )
        values = np.array(
            [statistics(features, surprise, base, known, p, real.moments)[:, others] for p in parts]
        )  # (blocks, statistics, schedules)
        for place, kind in enumerate(STATISTICS):
            mine = values[:, place]
            rows.append(
                {"statistic": kind, "n": n, "draws": len(parts), "schedules": len(others)}
                | _taus(mine, true, ranked)
                | _spreads(mine)
            )
    return rows


def _taus(values: np.ndarray, true: np.ndarray, grids: Sequence[int]) -> dict:
    """Kendall's tau of each block on common seeds and on own ones; of the known grids on common.

    On own seeds schedule k has block (draw + place_k) modulo their number, and pairs of schedules
    on the same block are left out.
    """
    blocks, count = values.shape
    place = np.random.default_rng(blocks).permutation(count) % blocks
    common, own, known = [], [], []
    for k in range(blocks):
        common.append(tau(values[k], true[k]))
        known.append(tau(values[k, grids], true[k, grids]))
        drawn = values[(place + k) % blocks, np.arange(count)]
        own.append(tau(drawn, true[k], place))
    spread = float(np.std(common, ddof=1)) if blocks > 1 else None
    return {
        "tau": float(np.mean(common)),
        "tau_sd": spread,
        "tau_own": float(np.mean(own)),
        "tau_known": float(np.mean(known)),
    }


def _spreads(values: np.ndarray) -> dict:
    """Spread of the difference of two schedules over the blocks: root mean square over pairs."""
    i, j = np.triu_indices(values.shape[1], 1)
    apart = values[:, i] - values[:, j]  # both on one block
    single = values.var(0, ddof=1)
    return {
        "sd_common": float(np.sqrt(apart.var(0, ddof=1).mean())),
        "sd_own": float(np.sqrt((single[i] + single[j]).mean())),
    }


def predictions(
    features: Sequence[np.ndarray], base: int, real: Moments, few: int, many: int
) -> Iterator[dict]:
    """How far FD of `many` images of a schedule is from what its first `few` said of it.

    On common seeds, as on a ladder. "mean shift" takes off the mean difference of the other
    schedules, as the search does with finished trials (`predicted` of `engine/algorithms.py`);
    "baseline" that of the baseline alone.
    """
    errors: dict[str, list[float]] = {"as it is": [], "mean shift": [], "baseline": [], SLOPE: []}
    for part in blocks_of(len(features[0]), many):
        short = [score(x[part][:few], real) for x in features]
        full = np.array([frechet_distance(x[part], real) for x in features])
        shift = np.array([s.value for s in short]) - full
        for k, mine in enumerate(short):
            if k == base:
                continue
            rest = [m for m in range(len(short)) if m != k]
            beta = slope(mine.left_out, short[base].left_out)
            for name, off in (
                ("as it is", 0.0),
                ("mean shift", shift[rest].mean()),
                ("baseline", shift[base]),
                (SLOPE, beta * shift[base]),
            ):
                errors[name].append((mine.value - off - full[k]) / full[k])
    for name, found in errors.items():
        x = np.array(found)
        yield {
            "few": few,
            "many": many,
            "how": name,
            "bias": float(x.mean()),
            "rms": float(np.sqrt((x**2).mean())),
            "pairs": len(x),
        }
