"""A target whose probability-flow ODE is solved in closed form."""

import numpy as np

MEAN, DEVIATION = 0.7, 0.5


def gaussian_denoiser(x, step):
    """E[x0 | x] of x0 ~ N(MEAN, DEVIATION^2)."""
    share = DEVIATION**2 / (DEVIATION**2 + step.sigma**2)
    return MEAN + share * (x - MEAN)


def gaussian_solution(x, sigma, sigma_next):
    """Where the exact ODE takes x."""
    scale = np.sqrt((DEVIATION**2 + sigma_next**2) / (DEVIATION**2 + sigma**2))
    return MEAN + scale * (x - MEAN)
