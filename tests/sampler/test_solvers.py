import numpy as np
import pytest
import torch
import toy
from hypothesis import given
from hypothesis import strategies as st

from stepsampler import Schedule, Step
from stepsampler.grids import from_sigmas, make_schedule
from stepsampler.noise import NoiseSchedule
from stepsampler.sample import sample, trajectory
from stepsampler.solvers import RULES, rows, tableau

SD = NoiseSchedule.scaled_linear()


def local_error(solver, order, h):
    """Error of one step of size h in lambda from sigma 1, given exact predictions before it."""
    sigmas = np.exp(h * np.arange(order - 1, -2, -1))
    solution = [toy.gaussian_solution(2.0, 3.0, sigma) for sigma in sigmas]
    row = rows(RULES[solver], np.ones_like(sigmas), sigmas, [1] * (order - 1) + [order])[-1]
    x0s = [toy.gaussian_denoiser(x, s) for x, s in zip(solution, sigmas, strict=True)][:-1][::-1]
    x = row.decay * solution[-2] + sum(w * x0 for w, x0 in zip(row.weights, x0s, strict=True))
    return abs(x - solution[-1])


@pytest.mark.parametrize(
    ("solver", "order", "expected"),
    [
        ("ddim", 1, 1),
        ("dpmpp-midpoint", 2, 2),
        ("dpmpp-heun", 2, 2),
        ("dpmpp-midpoint", 3, 2),  # as published: its last difference has half the right weight
        ("exact", 1, 1),
        ("exact", 2, 2),
        ("exact", 3, 3),
    ],
)
def test_a_rule_of_order_p_has_a_local_error_of_order_p_plus_one(solver, order, expected):
    sizes = np.array([0.02, 0.01, 0.005])
    errors = [local_error(solver, order, h) for h in sizes]
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope == pytest.approx(expected + 1, abs=0.1)


@pytest.mark.parametrize(("order", "solver"), [(1, "ddim"), (2, "dpmpp-midpoint"), (2, "exact")])
def test_the_loop_converges_with_the_order_of_the_rule(order, solver):
    counts = np.array([80, 160, 320])
    errors = []
    for n in counts:
        *sigmas, final = np.geomspace(5, 0.05, n + 1)
        schedule = from_sigmas(sigmas, final, [1] * n, order, solver)
        noise = torch.tensor([[0.8]], dtype=torch.float64)
        x = sample(toy.gaussian_denoiser, noise, schedule).item()
        errors.append(abs(x - toy.gaussian_solution(0.8 * 5, 5, 0.05)))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.2)


def test_exact_order_two_is_the_heun_form():
    heun = tableau(make_schedule("karras", 8, SD, solver="dpmpp-heun"))
    exact = tableau(make_schedule("karras", 8, SD, solver="exact"))
    for a, b in zip(heun, exact, strict=True):
        np.testing.assert_allclose(a.weights, b.weights, rtol=1e-11)


@given(st.sampled_from(sorted(RULES)), st.integers(1, 12), st.integers(1, 3), st.data())
def test_a_constant_prediction_is_sampled_exactly(solver, n, order, data):
    """Every row maps x0 + sigma * noise to x0 + sigma_next * noise."""
    levels = sorted(
        data.draw(st.lists(st.floats(0.01, 20), min_size=n + 1, max_size=n + 1, unique=True))
    )[::-1]
    *sigmas, final = levels
    order = 1 if solver == "ddim" else order
    schedule = from_sigmas(sigmas, final, [1] * n, order, solver)
    for row, sigma, sigma_next in zip(
        tableau(schedule), schedule.sigmas, schedule.sigmas[1:], strict=False
    ):
        assert row.decay == pytest.approx(sigma_next / sigma)
        scale = max(1.0, *map(abs, row.weights))
        assert row.decay + sum(row.weights) == pytest.approx(1, abs=1e-6 * scale)


def test_a_flow_model_starts_exactly_where_alpha_is_zero():
    """x = (1 - s) x0 + s noise: the first row, from s = 1, leaves no trace of a wrong lambda."""
    s = np.array([1.0, 0.7, 0.3, 0.0])
    table = rows(RULES["exact"], 1 - s, s, [1, 2, 1])
    x0, noise = 0.3, -1.1
    x = noise
    for row, level in zip(table, s[1:], strict=True):
        x = row.decay * x + sum(row.weights) * x0
        assert x == pytest.approx((1 - level) * x0 + level * noise)


def test_the_trajectory_yields_a_state_for_every_step():
    schedule = Schedule((Step(2.0), Step(1.0)), 0.5)
    states = list(trajectory(toy.gaussian_denoiser, torch.ones(3, 1), schedule))
    assert [tuple(x.shape) for x in states] == [(3, 1), (3, 1)]


# ---- diffusers as the oracle, in float64, on integer timesteps


def linear_network(x, timestep):
    """Some smooth epsilon-prediction, far from a Gaussian's."""
    return torch.tanh(x * 0.8 + timestep / 1000) + 0.1 * x


def ours(schedule, noise):
    def denoise(x, sigma, guidance_scale):
        scaled = x / (1 + sigma**2) ** 0.5
        return x - sigma * linear_network(scaled, SD.timestep(sigma))

    return sample(denoise, noise, schedule)


def theirs(scheduler, noise, n):
    scheduler.set_timesteps(n)
    x = noise.clone()  # these schedulers live at unit variance
    first = scheduler.alphas_cumprod[int(scheduler.timesteps[0])].double()
    x = x * (1 - first) ** 0.5  # ours starts at sigma * noise: x0 = 0
    for t in scheduler.timesteps:
        x = scheduler.step(linear_network(x, float(t)), t, x).prev_sample
    return x


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("n", [4, 5, 8, 20])
@pytest.mark.parametrize(
    ("solver", "order", "options"),
    [
        ("dpmpp-midpoint", 1, {"solver_order": 1}),
        ("dpmpp-midpoint", 2, {"solver_order": 2, "solver_type": "midpoint"}),
        ("dpmpp-heun", 2, {"solver_order": 2, "solver_type": "heun"}),
        ("dpmpp-midpoint", 3, {"solver_order": 3}),
    ],
)
def test_dpm_solver_equals_diffusers(solver, order, options, n):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(**BETAS, **options)
    noise = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(0), dtype=torch.float64)
    schedule = make_schedule("linspace", n, SD, solver=solver, order=order)
    if order == 3:  # theirs lowers the order over the last steps when there are fewer than 15
        lowered = [Step(s.sigma, 1, min(s.order, n - i)) for i, s in enumerate(schedule.steps)]
        if n < 15:
            schedule = Schedule(tuple(lowered), 0.0, solver)
    torch.testing.assert_close(
        ours(schedule, noise), theirs(scheduler, noise, n), rtol=2e-5, atol=2e-5
    )


@pytest.mark.parametrize("n", [4, 5, 10])
def test_ddim_equals_diffusers(n):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
    )
    noise = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(0), dtype=torch.float64)
    # its last step lands on timestep 0 unless one of the steps is there
    scheduler.set_timesteps(n)
    sigmas = [SD.sigma(int(t)) for t in scheduler.timesteps]
    schedule = from_sigmas(sigmas, 0.0, [1] * n, 1, "ddim")
    torch.testing.assert_close(
        ours(schedule, noise), theirs(scheduler, noise, n), rtol=1e-5, atol=1e-5
    )
