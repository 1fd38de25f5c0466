"""HSO: the least midpoint error proxy, from the best of many starts; needs no call of the model."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import differential_evolution, minimize

from stepsampler.noise import NoiseSchedule

# What the upper level chooses from: rho of a Karras grid, its last and first times (of 1).
BOUNDS = ((3.0, 16.0), (0.01, 0.03), (0.96, 1.0))
PENALTY = 1e9  # of the squared shortfall in spacing: in effect a constraint
SHORTEST = ((4, 20), (0.15, 0.01))  # numbers of steps, and the shortest gap that each may have


def hso(num_steps: int, noise: NoiseSchedule, power: float = 2.0) -> list[float]:
    """The num_steps + 1 falling sigmas of Zhu et al. 2025 (HSO, arXiv 2511.11688).

    Upper level: differential evolution over the start, scored by the proxy and a penalty for
    timesteps too close to each other. Lower level: the proxy alone, from that start. Deterministic,
    takes seconds. As with the authors the last sigma lies above the model's smallest.
    """
    shortest = float(np.interp(num_steps, *SHORTEST))
    known: dict[tuple[float, ...], NDArray[np.float64]] = {}

    def refined(start: NDArray[np.float64]) -> NDArray[np.float64]:
        key = tuple(start)
        if key not in known:
            known[key] = _refine(_karras(num_steps, noise, *start), power)
        return known[key]

    def fitness(start: NDArray[np.float64]) -> float:
        lambdas = refined(start)
        times = [noise.timestep(sigma) / noise.count for sigma in np.exp(-lambdas)]
        short = np.maximum(0, shortest - np.abs(np.diff(times)))
        return midpoint_error(lambdas, power) + PENALTY * float(np.sum(short**2))

    found = differential_evolution(fitness, BOUNDS, maxiter=20, popsize=8, tol=0.01, rng=0)
    return np.exp(-refined(found.x)).tolist()  # type: ignore[no-any-return]


def midpoint_error(lambdas: NDArray[np.float64], power: float = 2.0) -> float:
    """Sum over steps of the prediction's error at the middle times the gain of e^lambda (eq. MEP).

    The error of an x0-prediction is taken to grow like sigma^power / alpha at unit variance.
    """
    middle = (lambdas[1:] + lambdas[:-1]) / 2
    alphas = 1 / np.sqrt(1 + np.exp(-2 * middle))
    errors = (1 - alphas**2) ** (power / 2) / alphas
    return float(np.sum(errors * np.diff(np.exp(lambdas))))


def _karras(
    num_steps: int, noise: NoiseSchedule, rho: float, last: float, first: float
) -> NDArray[np.float64]:
    """Lambdas of a Karras grid between two times of 1."""
    start, end = (noise.sigma(time * noise.count - 1) ** (1 / rho) for time in (first, last))
    return -rho * np.log(np.linspace(start, end, num_steps + 1))


def _refine(start: NDArray[np.float64], power: float) -> NDArray[np.float64]:
    """The local minimum of the proxy next to a start, between the same ends."""
    ends = start[[0, -1]]

    def whole(inner: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([ends[:1], np.sort(inner), ends[1:]])

    if len(start) == 2:
        return start
    found = minimize(lambda inner: midpoint_error(whole(inner), power), start[1:-1], method="SLSQP")
    return whole(found.x) if found.success else start
