from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
import toy

from stepsampler.noise import NoiseSchedule
from stepsampler.schedule import Step
from stepsearch.rivals.dmn import dmn, error_bound
from stepsearch.rivals.gits import cheapest_path, gits
from stepsearch.rivals.oss import oss

SD = NoiseSchedule.scaled_linear()
# Timesteps that the authors' optimiser finds for Stable Diffusion's betas, 4 and 5 steps; and the
# sigmas of its 6 and 7, where the least bound is flat
PUBLISHED = {4: [999, 576.4, 313.3, 98.4, 0], 5: [999, 600.5, 375.2, 207.2, 78.7, 0]}
LONGER = {
    6: [14.6146, 2.8283, 1.2937, 0.8516, 0.5153, 0.2533, 0.0292],
    7: [14.6146, 3.9324, 1.8717, 1.5062, 0.8006, 0.4472, 0.2019, 0.0292],
}


@pytest.mark.parametrize("n", [4, 5])
def test_dmn_gives_the_list_of_the_authors_optimiser(n):
    timesteps = [SD.timestep(sigma) for sigma in dmn(n, SD)]
    assert timesteps == pytest.approx(PUBLISHED[n], abs=0.2)


@pytest.mark.parametrize("n", [6, 7])
def test_dmn_finds_a_bound_no_higher_than_the_authors(n):
    ours, theirs = (error_bound(-np.log(sigmas)) for sigmas in (dmn(n, SD), LONGER[n]))
    assert ours <= theirs * 1.0005


@pytest.mark.parametrize("n", range(1, 11))
def test_dmn_falls_from_the_first_sigma_to_the_last(n):
    sigmas = dmn(n, SD)
    assert len(sigmas) == n + 1
    assert (sigmas[0], sigmas[-1]) == (SD.sigma_max, SD.sigma_min)
    assert all(a > b for a, b in pairwise(sigmas))


@pytest.mark.parametrize("coefficient", [0.8, 1.0, 1.2])
def test_the_cheapest_path_is_that_of_trying_all(coefficient):
    matrix = np.random.default_rng(0).exponential(size=(9, 9))
    matrix[np.tril_indices(9)] = np.inf

    def price(path):
        return sum(coefficient**k * matrix[a, b] for k, (a, b) in enumerate(pairwise(path)))

    for n in (1, 2, 4):
        every = [(0, *inner, 8) for inner in combinations(range(1, 8), n - 1)]
        assert tuple(cheapest_path(matrix, n, coefficient)) == min(every, key=price)


def mixture_denoiser(x, step):
    """E[x0 | x] of the points -1 and 1: trajectories that bend."""
    return torch.tanh(x / step.sigma**2)


def student_error(sigmas, noise):
    """Of Euler along `sigmas`, against many steps."""

    def run(levels):
        x = noise * levels[0]
        for a, b in pairwise(levels):
            x0 = mixture_denoiser(x, Step(a))
            x = x0 + b / a * (x - x0)
        return x

    fine = np.geomspace(sigmas[0], sigmas[-1], 2000).tolist()
    return (run(sigmas) - run(fine)).square().mean().item()


@pytest.mark.parametrize("method", [gits, oss])
def test_a_placement_for_the_model_beats_even_timesteps(method):
    noise = torch.randn(64, 8, generator=torch.manual_seed(0), dtype=torch.float64)
    sigmas = method(5, SD, mixture_denoiser, noise)
    assert len(sigmas) == 6
    assert all(a > b for a, b in pairwise(sigmas))
    even = [SD.sigma(t) for t in np.linspace(999, 0, 6)]
    assert student_error(sigmas, noise) < 0.7 * student_error(even, noise)


def test_oss_with_as_many_steps_as_the_teacher_is_the_teacher():
    noise = torch.randn(4, 3, generator=torch.manual_seed(0), dtype=torch.float64)
    sigmas = oss(6, SD, toy.gaussian_denoiser, noise, teacher_steps=6)
    assert sigmas == pytest.approx([SD.sigma(t) for t in np.linspace(999, 0, 7)])
