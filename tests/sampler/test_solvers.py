from dataclasses import replace

import numpy as np
import pytest
import torch
import toy
from hypothesis import given
from hypothesis import strategies as st

from stepsampler import GoldenNoise, ModelSpec, Schedule, Step
from stepsampler.grids import from_sigmas, make_schedule
from stepsampler.noise import NoiseSchedule
from stepsampler.sample import sample, trajectory
from stepsampler.schedule import BY_STATISTICS, SOLVERS, WITH_CORRECTOR, WITHOUT_FORMS
from stepsampler.solvers import Levels, multistep, tableau

SD = NoiseSchedule.scaled_linear()
FLOW = ModelSpec("some-flow", "flow_prediction", (0.0, 0.25, 0.5, 0.75, 1.0))


def local_error(solver, order, prediction, h):
    """Error of one step of size h in lambda from sigma 1, given exact predictions before it."""
    sigmas = np.exp(h * np.arange(order - 1, -2, -1))
    solution = [toy.gaussian_solution(2.0, 3.0, sigma) for sigma in sigmas]
    at = Levels([1.0] * len(sigmas), sigmas.tolist())
    update = multistep(at, order - 1, solver, order, prediction)
    points = solution[:-1][::-1]
    x0s = [toy.gaussian_denoiser(x, Step(s)) for x, s in zip(points, sigmas[-2::-1], strict=True)]
    x = update.state * points[0] + np.dot(update.x0, x0s)
    return abs(x + np.dot(update.points, points[: len(update.points)]) - solution[-1])


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
        ("deis", 2, 2),
        ("deis", 3, 3),
        ("unipc-bh1", 2, 2),
        ("unipc-bh2", 2, 2),
        ("unipc-bh1", 3, 3),
        ("unipc-bh2", 3, 3),
    ],
)
@pytest.mark.parametrize("prediction", ["data", "noise"])
def test_a_rule_of_order_p_has_a_local_error_of_order_p_plus_one(
    solver, order, expected, prediction
):
    sizes = np.array([0.02, 0.01, 0.005])
    errors = [local_error(solver, order, prediction, h) for h in sizes]
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope > expected + 0.85
    if solver != "unipc-bh1":  # on this target its error happens to be smaller still
        assert slope < expected + 1.15


def measured_order(schedules, first):
    """Slope of the error of whole trajectories against the number of steps."""
    noise = torch.tensor([[0.8]], dtype=torch.float64)
    errors, counts = [], []
    for schedule in schedules:
        x = sample(toy.gaussian_denoiser, noise, schedule).item()
        truth = toy.gaussian_solution(0.8 * first, first, schedule.final_sigma)
        errors.append(abs(x - truth))
        counts.append(schedule.num_steps)
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.parametrize(
    ("solver", "order", "expected"),
    [
        ("ddim", 1, 1),
        ("dpmpp-midpoint", 2, 2),
        ("exact", 2, 2),
        ("deis", 2, 2),
        ("unipc-bh2", 1, 2),  # the corrector adds one
        ("unipc-bh1", 2, 3),
        ("unipc-bh2", 2, 3),
        ("unipc-bh2", 3, 4),
        ("heun", 1, 1),
        ("heun", 2, 2),
    ],
)
def test_the_loop_converges_with_the_order_of_the_solver(solver, order, expected):
    schedules = []
    for n in (80, 160, 320):
        *sigmas, final = np.geomspace(5, 0.05, n + 1).tolist()
        schedules.append(from_sigmas(sigmas, final, [1] * n, order, solver))
    assert measured_order(schedules, 5) == pytest.approx(expected, abs=0.25)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_has_its_order_on_even_sigmas(order):
    errors, sizes = [], np.array([0.1, 0.05, 0.025])
    for h in sizes:
        sigmas = (2 + h * np.arange(order - 1, -2, -1)).tolist()
        points = [toy.gaussian_solution(2.0, 3.0, sigma) for sigma in sigmas]
        x0s = [toy.gaussian_denoiser(x, Step(s)) for x, s in zip(points, sigmas, strict=True)]
        update = multistep(Levels([1.0] * len(sigmas), sigmas), order - 1, "ipndm", order)
        x = points[-2] + np.dot(update.x0, x0s[-2::-1]) + np.dot(update.points, points[-2::-1])
        errors.append(abs(x - points[-1]))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope == pytest.approx(order + 1, abs=0.2)


def test_exact_order_two_is_the_heun_form():
    heun = tableau(make_schedule("karras", 8, SD, solver="dpmpp-heun"))
    exact = tableau(make_schedule("karras", 8, SD, solver="exact"))
    for a, b in zip(heun, exact, strict=True):
        np.testing.assert_allclose(a.advance.x0, b.advance.x0, rtol=1e-11)


@st.composite
def schedules(draw):
    """Any solver on any levels, flow or not, with every option that the solver has."""
    solver = draw(st.sampled_from(sorted(set(SOLVERS) - {BY_STATISTICS})))
    n = draw(st.integers(1, 8))
    flow = draw(st.booleans())
    level = st.floats(0.05, 0.95 if flow else 20)
    *sigmas, final = sorted(
        draw(st.lists(level, min_size=n + 1, max_size=n + 1, unique_by=lambda s: round(s, 6)))
    )[::-1]
    if flow and draw(st.booleans()):
        sigmas[0] = 1.0
    if draw(st.booleans()):
        final = 0.0
    order = draw(st.integers(1, SOLVERS[solver]))
    steps = []
    for i, sigma in enumerate(sigmas):
        most = 1 if final == 0 and i == n - 1 else 2 if solver == "heun" else i + 1
        forms = st.sampled_from([None, "data", "noise"])
        prediction = None if solver in WITHOUT_FORMS else draw(forms)
        corrector = solver in WITH_CORRECTOR and i < n - 1 and draw(st.booleans())
        steps.append(Step(sigma, 1.0, min(order, most), corrector, prediction))
    return Schedule(tuple(steps), final, solver, FLOW if flow else None)


@given(schedules())
def test_a_constant_prediction_is_sampled_exactly(schedule):
    """Every solver takes x0 + sigma * noise to x0 + sigma_next * noise, whatever its weights."""
    x0, noise = 0.3, torch.tensor([[-1.1]], dtype=torch.float64)
    first = schedule.steps[0].sigma
    if not schedule.flow or first < 1:  # the loop starts at sigma * noise: put x0 into the noise
        noise = noise + ((1 - first) if schedule.flow else 1.0) * x0 / first
        truth = -1.1
    else:
        truth = -1.1
    states = list(trajectory(lambda x, step: torch.full_like(x, x0), noise, schedule))
    weight = sum(
        abs(w) for row in tableau(schedule) for w in (*row.advance.x0, *row.advance.points)
    )
    for state, sigma in zip(states, schedule.sigmas[1:], strict=True):
        alpha = 1 - sigma if schedule.flow else 1.0
        expected = alpha * x0 + sigma * truth
        assert state.item() == pytest.approx(expected, abs=1e-9 * max(1.0, weight**2))


def test_the_trajectory_yields_a_state_for_every_step():
    schedule = Schedule((Step(2.0), Step(1.0)), 0.5)
    states = list(trajectory(toy.gaussian_denoiser, torch.ones(3, 1), schedule))
    assert [tuple(x.shape) for x in states] == [(3, 1), (3, 1)]


def calls(schedule):
    """Levels and guidance scales with which the network is called."""
    seen = []

    def denoise(x, step):
        seen.append((step.sigma, step.guidance_scale))
        return toy.gaussian_denoiser(x, step)

    final = sample(denoise, torch.ones(1, 1, dtype=torch.float64), schedule)
    return seen, final.item()


def test_heun_calls_the_network_twice_a_step_but_for_the_last():
    schedule = from_sigmas([4.0, 1.0], 0.0, [3.0, 1.0], 2, "heun")
    assert calls(schedule)[0] == [(4.0, 3.0), (1.0, 3.0), (1.0, 1.0)]
    assert schedule.passes == 5


def test_an_analytic_first_step_calls_no_network():
    """Its epsilon is x at unit variance times the gain; the step is then DDIM."""
    schedule = Schedule((Step(4.0, 2.0, analytic=0.9), Step(1.0, 2.0)), 0.5, "ddim")
    seen, final = calls(schedule)
    assert seen == [(1.0, 2.0)]
    assert schedule.passes == 2
    x = 4.0 + (1.0 - 4.0) * 0.9 * 4.0 / np.sqrt(17)
    x0 = toy.gaussian_denoiser(x, Step(1.0))
    assert final == pytest.approx(x0 + 0.5 * (x - x0))


@pytest.mark.parametrize("start", ["prediction", "inversion"])
def test_golden_noise_is_two_more_calls_and_a_new_start(start):
    golden = GoldenNoise(3.0, 5.0, start)
    schedule = Schedule((Step(4.0), Step(1.0)), 0.5, "ddim", golden_noise=golden)
    seen, final = calls(schedule)
    assert seen == [(4.0, 5.0), (3.0, 5.0), (4.0, 1.0), (1.0, 1.0)]
    assert schedule.passes == 2 * 2 + 2
    x0 = toy.gaussian_denoiser(4.0, Step(4.0))
    below = x0 + 3.0 * (4.0 - x0) / 4.0
    epsilon = (below - toy.gaussian_denoiser(below, Step(3.0))) / 3.0
    again = x0 + 4.0 * epsilon if start == "prediction" else below + 1.0 * epsilon
    _, expected = calls(Schedule(schedule.steps, 0.5, "ddim"))
    plain = sample(
        toy.gaussian_denoiser,
        torch.tensor([[again / 4.0]], dtype=torch.float64),
        Schedule(schedule.steps, 0.5, "ddim"),
    ).item()
    assert final == pytest.approx(plain)
    assert final != pytest.approx(expected)


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("exact", 2), ("heun", 2)])
def test_churn_keeps_the_distribution_and_forgets_the_noise(solver, order):
    """Every other step draws half of its noise anew: the samples stay those of the target."""
    *sigmas, final = np.geomspace(8, 0.01, 81).tolist()
    plain = from_sigmas(sigmas, final, [1] * 80, order, solver)
    steps = [replace(s, churn=0.5 * (i % 2)) for i, s in enumerate(plain.steps)]
    generator = torch.manual_seed(0)
    draw = lambda: torch.randn(20000, dtype=torch.float64, generator=generator)  # noqa: E731
    noise = draw()
    x = sample(toy.gaussian_denoiser, noise, replace(plain, steps=tuple(steps)), draw)
    assert x.mean().item() == pytest.approx(toy.MEAN, abs=0.05)
    assert x.std().item() == pytest.approx(toy.DEVIATION, abs=0.03)
    still = sample(toy.gaussian_denoiser, noise, plain)
    assert torch.corrcoef(torch.stack([still, noise]))[0, 1] > 0.99
    assert abs(torch.corrcoef(torch.stack([x, noise]))[0, 1]) < 0.1
    with pytest.raises(ValueError, match="it needs a source of noise"):
        sample(toy.gaussian_denoiser, noise, replace(plain, steps=tuple(steps)))


def test_a_latent_may_be_decoded_at_unit_variance():
    steps = (Step(4.0), Step(1.0))
    as_it_is = calls(Schedule(steps, 0.5, "ddim"))[1]
    scaled = calls(Schedule(steps, 0.5, "ddim", decode="alpha-x"))[1]
    assert scaled == pytest.approx(as_it_is / np.sqrt(1.25))


# ---- diffusers as the oracle, in float64, on integer timesteps


def linear_network(x, timestep):
    """Some smooth epsilon-prediction, far from a Gaussian's."""
    return torch.tanh(x * 0.8 + timestep / 1000) + 0.1 * x


def ours(schedule, noise):
    def denoise(x, step):
        scaled = x / (1 + step.sigma**2) ** 0.5
        return x - step.sigma * linear_network(scaled, SD.timestep(step.sigma))

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


def lowered(solver, order, n, predictions=None, no_corrector=()):
    """Diffusers' default grid; its order falls over the last steps (`lower_order_final`)."""
    schedule = make_schedule("linspace", n, SD, solver=solver, order=order)
    steps = [
        Step(
            s.sigma,
            1.0,
            min(s.order, n - i),
            s.corrector and i not in no_corrector,
            predictions,
        )
        for i, s in enumerate(schedule.steps)
    ]
    return Schedule(tuple(steps), 0.0, solver)


def agree(scheduler, schedule, n):
    noise = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(
        ours(schedule, noise), theirs(scheduler, noise, n), rtol=2e-5, atol=2e-5
    )


@pytest.mark.parametrize("n", [4, 5, 8])
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

    agree(DPMSolverMultistepScheduler(**BETAS, **options), lowered(solver, order, n), n)


@pytest.mark.parametrize("n", [4, 8])
@pytest.mark.parametrize("bh", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("no_corrector", [(), (0,), (1, 2)])
def test_unipc_equals_diffusers(bh, order, form, no_corrector, n):
    from diffusers import UniPCMultistepScheduler

    to_sigma_min = form == "noise" or bh == "bh1"  # theirs is NaN at zero
    scheduler = UniPCMultistepScheduler(
        **BETAS,
        solver_order=order,
        solver_type=bh,
        predict_x0=form == "data",
        disable_corrector=list(no_corrector),
        final_sigmas_type="sigma_min" if to_sigma_min else "zero",
    )
    schedule = lowered(f"unipc-{bh}", order, n, form, no_corrector)
    if to_sigma_min:
        schedule = Schedule(schedule.steps, SD.sigma_min, schedule.solver, decode="alpha-x")
    agree(scheduler, schedule, n)


@pytest.mark.parametrize("n", [4, 8])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_equals_diffusers(order, n):
    from diffusers import DEISMultistepScheduler

    schedule = lowered("deis", order, n)
    scheduler = DEISMultistepScheduler(**BETAS, solver_order=order)
    scheduler.set_timesteps(n)
    final = float(scheduler.sigmas[-1])
    agree(scheduler, Schedule(schedule.steps, final, "deis", decode="alpha-x"), n)


@pytest.mark.parametrize("n", [4, 5, 10])
def test_ddim_equals_diffusers(n):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
    )
    # its last step lands on timestep 0 unless one of the steps is there
    scheduler.set_timesteps(n)
    sigmas = [SD.sigma(int(t)) for t in scheduler.timesteps]
    agree(scheduler, from_sigmas(sigmas, 0.0, [1] * n, 1, "ddim"), n)


@pytest.mark.parametrize("n", [1, 4, 9])
def test_a_flow_of_order_one_equals_flow_match_euler(n):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(n)
    *sigmas, final = scheduler.sigmas.tolist()
    noise = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(0), dtype=torch.float64)
    velocity = lambda x, sigma: torch.tanh(x + sigma)  # noqa: E731
    schedule = from_sigmas(sigmas, final, [1] * n, 1, "ddim", FLOW)
    x = noise.clone()
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=True):
        x = scheduler.step(velocity(x, sigma), t, x).prev_sample
    mine = sample(lambda x, s: x - s.sigma * velocity(x, s.sigma), noise, schedule)
    torch.testing.assert_close(mine, x.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [3, 8])
def test_heun_equals_diffusers(n):
    from diffusers import HeunDiscreteScheduler

    scheduler = HeunDiscreteScheduler(**BETAS)
    scheduler.set_timesteps(n)
    sigmas = [scheduler.sigmas[0].item(), *scheduler.sigmas[1:-1:2].tolist()]
    noise = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(0), dtype=torch.float64)
    x = noise * sigmas[0]
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(linear_network(scaled, float(t)), t, x).prev_sample
    schedule = from_sigmas(sigmas, 0.0, [1] * n, 2, "heun")
    torch.testing.assert_close(ours(schedule, noise), x, rtol=1e-4, atol=1e-4)
