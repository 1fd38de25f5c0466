"""DMN: the placement of least error bound; needs no call of the model."""

from math import log

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import softmax

from stepsampler.noise import NoiseSchedule
from stepsampler.solvers import exact

HIGHEST_ORDER = 3
ROUNDS = 4  # of two derivative-free methods in turn: the bound has kinks


def dmn(num_steps: int, noise: NoiseSchedule, power: float = 2.0) -> list[float]:
    """The num_steps + 1 falling sigmas that minimise the bound (Xue et al. 2024, eq. 13-17).

    The error of an x0-prediction is taken to grow like sigma^power / alpha at unit variance; 2 is
    the authors' choice for latent models, 1 that for pixels. Starts from even timesteps and is
    deterministic. Their code bounds the first three steps one by one up to 7 steps, and above them
    together with the rest, where the least bound has a first step of almost no length; here it is
    one by one always.
    """
    ends = (-log(noise.sigma_max), -log(noise.sigma_min))

    def lambdas(logits: NDArray[np.float64]) -> NDArray[np.float64]:
        gaps = softmax(np.append(logits, 0.0))
        return ends[0] + (ends[1] - ends[0]) * np.concatenate([[0], np.cumsum(gaps)])

    even = -np.log([noise.sigma(t) for t in np.linspace(noise.last, 0, num_steps + 1)])
    gaps = np.diff(even)
    logits = np.log(gaps[:-1] / gaps[-1])
    for i in range(ROUNDS if num_steps > 1 else 0):
        method = ("Powell", "Nelder-Mead")[i % 2]
        logits = minimize(lambda z: error_bound(lambdas(z), power), logits, method=method).x
    return [noise.sigma_max, *np.exp(-lambdas(logits)[1:-1]).tolist(), noise.sigma_min]


def error_bound(lambdas: NDArray[np.float64], power: float = 2.0) -> float:
    """Sum over predictions of |weight in the last state| times the error of the prediction.

    Exponential Adams-Bashforth of order 3, of 2 and 1 where it starts and ends.
    """
    n = len(lambdas) - 1
    alphas = 1 / np.sqrt(1 + np.exp(-2 * lambdas))
    errors = (1 - alphas**2) ** (power / 2) / alphas
    weights, total = np.zeros(n), 0.0
    for i in range(n):
        order = min(i + 1, n - i, HIGHEST_ORDER)
        past = np.arange(i, i - order, -1)
        step = np.exp(lambdas[i + 1]) * np.array(
            exact(lambdas[past].tolist(), lambdas[i + 1] - lambdas[i])
        )
        if order == 1 or i < HIGHEST_ORDER:
            total += float(np.linalg.norm(step * errors[past]))
        else:
            weights[past] += step
    return total + float(np.abs(weights * errors[:n]).sum())
