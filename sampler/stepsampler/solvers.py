"""Each solver as a tableau of plain numbers.

With levels (alpha, sigma) of x = alpha * x0 + sigma * noise and lambda = log(alpha / sigma), the
probability-flow ODE of an x0-prediction is linear in x, so a multistep rule is one row a step:

    x_next = decay * x + sum_j weights[j] * x0_j        (newest prediction first)

decay = sigma_next / sigma, and the weights integrate an extrapolation of x0 in lambda. Everything
is float64 and computed once per schedule.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import exp, expm1, inf, log
from typing import NamedTuple

import numpy as np

from stepsampler.schedule import Schedule


class Row(NamedTuple):
    """One update of the state."""

    decay: float
    weights: tuple[float, ...]


Rule = Callable[[list[float], float], list[float]]
# (lambdas of the predictions, newest first; h = lambda_next - lambdas[0]) -> weights at alpha = 1


def tableau(schedule: Schedule) -> list[Row]:
    """Rows of a schedule, one a step, in the coordinates x = x0 + sigma * noise."""
    rule = RULES[schedule.solver]
    orders = [step.order for step in schedule.steps]
    return rows(rule, [1.0] * len(schedule.sigmas), schedule.sigmas, orders)


def rows(
    rule: Rule, alphas: Sequence[float], sigmas: Sequence[float], orders: Sequence[int]
) -> list[Row]:
    """Rows for `len(orders)` steps between `len(orders) + 1` levels.

    A step onto sigma 0, or from alpha 0, has order 1 and is exact for a constant prediction.
    """
    lambdas = [
        inf if sigma == 0 else -inf if alpha == 0 else log(alpha / sigma)
        for alpha, sigma in zip(alphas, sigmas, strict=True)
    ]
    result = []
    for i, ((lam, lam_next), order) in enumerate(zip(pairwise(lambdas), orders, strict=True)):
        if lam == -inf or lam_next == inf:
            order = 1
        past = lambdas[i - order + 1 : i + 1][::-1]
        if order > 1 and past[-1] == -inf:  # a prediction made at infinite noise has no lambda
            order, past = order - 1, past[:-1]
        decay = sigmas[i + 1] / sigmas[i]
        if order == 1:
            weights = [1.0 if lam == -inf or lam_next == inf else -expm1(lam - lam_next)]
        else:
            weights = rule(past, lam_next - lam)
        if lam == -inf:  # x_next = alpha_next * x0 + sigma_next * (x / sigma)
            weights = [1.0]
        result.append(Row(decay, tuple(alphas[i + 1] * w for w in weights)))
    return result


def ddim(lambdas: list[float], h: float) -> list[float]:
    """Song et al. 2021; the same as DPM-Solver++(1), and as Euler in (x, sigma)."""
    return [-expm1(-h)]


def exact(lambdas: list[float], h: float) -> list[float]:
    """Exponential Adams-Bashforth: a polynomial through the predictions, integrated exactly.

    The moments are the integrals of s^k e^(s - h) over [0, h]; order k + 1 has local error h^(k+2).
    """
    lam = np.asarray(lambdas)
    moments = [-expm1(-h)]
    for k in range(1, len(lambdas)):
        moments.append(h**k - k * moments[-1])
    vandermonde = np.vander(lam - lam[0], increasing=True).T
    return np.linalg.solve(vandermonde, moments).tolist()  # type: ignore[no-any-return]


def dpmpp_midpoint(lambdas: list[float], h: float) -> list[float]:
    """DPM-Solver++ (Lu et al. 2022): 2M with the first difference weighted by half of 1 - e^-h."""
    if len(lambdas) == 2:
        return _second(lambdas, h, -expm1(-h) / 2)
    return _dpmpp_third(lambdas, h)


def dpmpp_heun(lambdas: list[float], h: float) -> list[float]:
    """DPM-Solver++ with diffusers' `solver_type="heun"`: the first difference exactly weighted."""
    if len(lambdas) == 2:
        return _second(lambdas, h, (exp(-h) - 1) / h + 1)
    return _dpmpp_third(lambdas, h)


def _second(lambdas: list[float], h: float, slope: float) -> list[float]:
    """x0 plus `slope` times (x0_0 - x0_1) / r, where r = (lambda_0 - lambda_1) / h."""
    share = slope * h / (lambdas[0] - lambdas[1])
    return [-expm1(-h) + share, -share]


def _dpmpp_third(lambdas: list[float], h: float) -> list[float]:
    """DPM-Solver++(3M) as published and as everybody ships it.

    The last difference carries half the weight that its integral has, so that the measured order
    is 2; `exact` has the full one.
    """
    if len(lambdas) < 3:
        return ddim(lambdas, h)
    r0, r1 = (lambdas[0] - lambdas[1]) / h, (lambdas[1] - lambdas[2]) / h
    first = np.array([1, -1, 0]) / r0
    older = np.array([0, 1, -1]) / r1
    d1 = first + r0 / (r0 + r1) * (first - older)
    d2 = (first - older) / (r0 + r1)
    phi1, phi2 = -expm1(-h), (exp(-h) - 1) / h + 1
    phi3 = (exp(-h) - 1 + h) / h**2 - 0.5
    return (phi1 * np.array([1, 0, 0]) + phi2 * d1 - phi3 * d2).tolist()  # type: ignore[no-any-return]


RULES: dict[str, Rule] = {
    "ddim": ddim,
    "dpmpp-midpoint": dpmpp_midpoint,
    "dpmpp-heun": dpmpp_heun,
    "exact": exact,
}
