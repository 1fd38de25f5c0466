"""The updates of DPM-Solver-v3, computed in double precision once for a schedule.

With y = x / alpha, which is x0 + sigma noise, and lambda = -log sigma (Zheng et al. 2023, eq. 8 to
13; their x is alpha y): f = (1 - l) y - x0 is what the linear part l leaves of the noise, and

    g_j = exp(-S_j) f_j - B_j,    S = integral of s,    B = integral of exp(-S) b

is what s and b leave of its change. From lambda_0 to lambda, integrals beginning at lambda_0,

    y' = exp(-L) (y - C - sum_k M_k g^(k)),    L = integral of l,
    M_k = integral of exp(L + S) (tau - lambda_0)^k / k!,    C = integral of exp(L + S) B,

with derivatives g^(k) from differences of the g_j, g^(0) = g_0. All integrals are by the
trapezoidal rule over the levels of the statistics and those of the steps, as the authors have them;
between the levels l, s and b are linear. With l = 1 and s = b = 0, the authors' degenerate form,
g is -x0 and this is the data form of `solvers.exact`; with l = 0, s = -1 and b = 0 it is the noise
form.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import factorial
from typing import TYPE_CHECKING

import numpy as np
import torch

from stepsampler.schedule import Schedule, Step
from stepsampler.solvers import Levels, Row, Update

if TYPE_CHECKING:
    from stepsampler.statistics.file import Array, Statistics


class ByStatistics:
    """The updates of a schedule under statistics.

    Raises:
        UserError: a level of the schedule at which there are none.
    """

    def __init__(self, statistics: "Statistics", schedule: Schedule) -> None:
        assert schedule.statistics
        self.known, self.spec = statistics, schedule.statistics
        self.known.check_levels(schedule)

    def advance(self, at: Levels, i: int, step: Step) -> Update:
        past = list(range(i, i - step.order, -1))
        return self._update(at, i, i + 1, past, self.spec.p_pseudo, step)

    def correct(self, at: Levels, i: int, step: Step) -> Update | None:
        """A pseudo corrector has one prediction more than its predictor; of one there is none."""
        count = step.order + self.spec.c_pseudo
        if count == 1:
            return None
        past = [i - 1, i, *range(i - 2, i - count, -1)]
        found = self._update(at, i - 1, i, past, self.spec.c_pseudo, step)
        # newest first, as the loop keeps predictions: the one at i stands before that at i - 1
        swap = [1, 0, *range(2, count)]
        return found._replace(
            x0=tuple(found.x0[j] for j in swap), points=tuple(found.points[j] for j in swap)
        )

    def _update(
        self, at: Levels, start: int, end: int, past: list[int], pseudo: bool, step: Step
    ) -> Update:
        """From level `start` to `end`, with the predictions at the levels `past`, `start` first."""
        first, last = at.log_snr(start), at.log_snr(end)
        ends = [at.log_snr(j) for j in past]
        ahead = self._integrals(first, last, step)
        g = [self._integrals(first, lam, step) for lam in ends]
        shares = _derivatives([lam - first for lam in ends], pseudo)
        moments = ahead.moments(len(past))
        decay = np.exp(-ahead.big_l)
        x0, points, constant = [], [], -decay * ahead.c
        for j, behind in enumerate(g):
            of_g = -decay * sum(m * row[j] for m, row in zip(moments, shares, strict=True))
            weight = step.gain * of_g * np.exp(-behind.big_s)
            x0.append(-weight)
            points.append(weight * (1 - behind.l))
            constant = constant - of_g * behind.big_b
        return Update(decay, tuple(x0), tuple(points), step.gain * constant)

    def _integrals(self, start: float, end: float, step: Step) -> "_Integrals":
        """From `start` to `end`, which may be before it."""
        known, lambdas = self.known, self.known.lambdas
        low, high = min(start, end), max(start, end)
        inside = lambdas[(lambdas > low) & (lambdas < high)]
        nodes = np.array([low, *inside, high] if high > low else [low])
        if end < start:
            nodes = nodes[::-1]
        place = np.clip(
            (nodes - lambdas[0]) / (lambdas[-1] - lambdas[0]) * known.intervals, 0, known.intervals
        )
        below = np.minimum(place.astype(int), known.intervals - 1)
        share = (place - below)[:, None, None, None]

        def on_nodes(values: "Array") -> "Array":
            lower, upper = values[below].astype(float), values[below + 1].astype(float)
            return lower + share * (upper - lower)  # type: ignore[no-any-return]

        if step.prediction is None:
            return _Integrals(nodes, *(on_nodes(v) for v in (known.l, known.s, known.b)))
        zero = np.zeros((len(nodes), 1, 1, 1))
        data = step.prediction == "data"
        return _Integrals(nodes, zero + data, zero - (not data), zero)


class _Integrals:
    """Those of a step, from the first of the nodes to the last."""

    def __init__(self, nodes: "Array", l: "Array", s: "Array", b: "Array") -> None:  # noqa: E741
        self.nodes, self.l = nodes, l[-1]
        big_l, big_s = _integral(nodes, l), _integral(nodes, s)
        big_b = _integral(nodes, np.exp(-big_s) * b)
        self.grown = np.exp(big_l + big_s)
        self.big_l, self.big_s, self.big_b = big_l[-1], big_s[-1], big_b[-1]
        self.c = _integral(nodes, self.grown * big_b)[-1]

    def moments(self, count: int) -> list["Array"]:
        """M_0 to M_(count - 1)."""
        since = (self.nodes - self.nodes[0])[:, None, None, None]
        return [
            _integral(self.nodes, self.grown * since**k / factorial(k))[-1] for k in range(count)
        ]


def _integral(nodes: "Array", values: "Array") -> "Array":
    """From the first node to each."""
    widths = np.diff(nodes)[:, None, None, None]
    parts = widths * (values[1:] + values[:-1]) / 2
    return np.concatenate([np.zeros_like(values[:1]), np.cumsum(parts, 0)])


def _derivatives(since: Sequence[float], pseudo: bool) -> list[list[float]]:
    """g^(0), g^(1), … at the first of some lambdas as shares of the g there and at the others.

    Whole orders are those of the polynomial through all. A pseudo order is a divided difference
    times k!: of the first k + 1, which has order 1 alone.
    """
    n = len(since)
    if not pseudo:
        powers = np.vander(np.asarray(since), increasing=True) / [factorial(k) for k in range(n)]
        return np.linalg.inv(powers).tolist()  # type: ignore[no-any-return]
    level = np.eye(n).tolist()
    found = [level[0]]
    for k in range(1, n):
        level = [
            [(a - b) / (since[j] - since[j + k]) for a, b in zip(one, other, strict=True)]
            for j, (one, other) in enumerate(pairwise(level))
        ]
        found.append([factorial(k) * share for share in level[0]])
    return found


def on(row: Row, device: torch.device) -> Row:
    """A row whose arrays are tensors of single precision on a device."""

    def moved(value: object) -> object:
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value).to(device, torch.float32)
        return tuple(map(moved, value)) if isinstance(value, tuple) else value

    def of(update: Update | None) -> Update | None:
        return update and Update(*map(moved, update))  # type: ignore[arg-type]

    advance = of(row.advance)
    assert advance
    return row._replace(advance=advance, correct=of(row.correct))
