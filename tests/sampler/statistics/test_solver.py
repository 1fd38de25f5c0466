import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toy

from stepsampler import Schedule, Step, UserError
from stepsampler.grids import from_sigmas
from stepsampler.noise import NoiseSchedule
from stepsampler.sample import execute, sample
from stepsampler.schedule import StatisticsSpec
from stepsampler.solvers import tableau
from stepsampler.statistics.file import Statistics, ends_of
from stepsampler.statistics.solver import ByStatistics

SD = NoiseSchedule.scaled_linear()
# Inputs and outputs of the authors' class (thu-ml/DPM-Solver-v3, stable-diffusion), in double
# precision, on the network of `network` under smooth random statistics
AUTHORS = json.loads((Path(__file__).parent / "authors.json").read_text())

FORMS = [(1.0, 0.0, "data"), (0.0, -1.0, "noise")]  # the l and s that are no statistics


def statistics(l, s, b, ends=None, scale=1.0):  # noqa: E741
    return Statistics(l, s, b, ends or ends_of(SD), scale, 1, "made up")


def constant(l, s=0.0, intervals=250):  # noqa: E741
    zero = np.zeros((intervals + 1, 1, 1, 1))
    return statistics(zero + l, zero + s, zero)


def in_double(denoise, start, schedule, known):
    """The end of a trajectory whose rows stay in double precision."""

    def doubled(value):
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value)
        return tuple(map(doubled, value)) if isinstance(value, tuple) else value

    rows = [
        row._replace(
            advance=type(row.advance)(*map(doubled, row.advance)),
            correct=row.correct and type(row.correct)(*map(doubled, row.correct)),
        )
        for row in tableau(schedule, ByStatistics(known, schedule))
    ]
    *_, end = execute(denoise, start, rows)
    return end


def network(mean, weight):
    def denoise(y, step):
        u = y / np.sqrt(1 + step.sigma**2)
        return torch.tanh(mean + weight * u + 0.3 * torch.roll(u, 1, -1) * np.exp(-step.sigma))

    return denoise


@pytest.mark.parametrize("run", range(len(AUTHORS["runs"])))
def test_samples_are_those_of_the_authors_class(run):
    record, shape = AUTHORS["runs"][run], AUTHORS["shape"]
    arrays = {k: np.array(AUTHORS[k]).reshape(-1, *shape) for k in ("l", "s", "b", "start")}
    known = statistics(arrays["l"], arrays["s"], arrays["b"], AUTHORS["ends"])
    sigmas = np.exp(-known.lambdas[record["indexes"]])
    last = len(record["orders"]) - 1
    steps = [
        Step(
            sigma,
            1.0,
            order,
            corrector=record["corrector"] and i < last,
            prediction="data" if record["degenerate"] else None,
        )
        for i, (sigma, order) in enumerate(zip(sigmas[:-1], record["orders"], strict=True))
    ]
    spec = StatisticsSpec(1.0, known.intervals, None, record["p_pseudo"], record["c_pseudo"])
    schedule = Schedule(tuple(steps), sigmas[-1], "dpm-v3", statistics=spec)
    mean, weight = (torch.tensor(AUTHORS[k]).double().reshape(shape) for k in ("mean", "weight"))
    # theirs starts from unit variance, that is from y = start / alpha
    start = torch.from_numpy(arrays["start"]) * np.sqrt(1 + sigmas[0] ** 2)
    found = in_double(network(mean, weight), start, schedule, known)
    assert found.numpy().ravel() == pytest.approx(np.array(record["x"]), abs=2e-6)


def plan(solver, order=3, final=0.1, corrector=False, **more):
    sigmas = [10.0, 4.0, 1.7, 0.8, 0.35]
    made = from_sigmas(sigmas, final, [1.0] * 5, order, "exact")
    steps = [replace(s, corrector=corrector and i < 4) for i, s in enumerate(made.steps)]
    spec = StatisticsSpec(1.0, 250) if solver == "dpm-v3" else None
    return replace(made, solver=solver, steps=tuple(steps), statistics=spec, **more)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("l", "s", "form"), FORMS)
def test_without_statistics_it_is_the_exact_exponential_multistep(order, l, s, form):  # noqa: E741
    exact = plan("exact", order)
    exact = replace(exact, steps=tuple(replace(s, prediction=form) for s in exact.steps))
    start = torch.full((1, 1, 1, 1), 7.0).double()
    truth = sample(toy.gaussian_denoiser, start / 10, exact).item()
    errors = []
    for intervals in (250, 1000):
        known = constant(l, s, intervals)
        made = in_double(toy.gaussian_denoiser, start, plan("dpm-v3", order), known).item()
        errors.append(abs(made - truth))
    assert errors[0] < 1e-3
    assert errors[1] < errors[0] / 10 + 1e-9  # the trapezoidal rule, of second order


@pytest.mark.parametrize(("l", "s", "form"), FORMS)
def test_a_form_of_a_step_takes_the_place_of_statistics(l, s, form):  # noqa: E741
    start = torch.full((1, 1, 1, 1), 7.0).double()
    formed = plan("dpm-v3", 3, corrector=True)
    formed = replace(formed, steps=tuple(replace(s, prediction=form) for s in formed.steps))
    of_form = in_double(toy.gaussian_denoiser, start, formed, constant(0.4))
    bare = in_double(
        toy.gaussian_denoiser, start, plan("dpm-v3", 3, corrector=True), constant(l, s)
    )
    assert of_form.item() == pytest.approx(bare.item(), abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_whatever_the_statistics_the_local_error_is_of_the_next_order(order):
    """With levels between those of the grid, and exact predictions before the step."""
    x = np.linspace(0, 1, 4001)[:, None, None, None]
    known = statistics(0.5 + 0.2 * np.cos(5 * x), 0.4 * np.sin(4 * x), 0.3 * np.cos(3 * x))
    sizes, errors = [0.1, 0.05, 0.025], []
    for h in sizes:
        sigmas = np.exp(h * np.arange(order - 1, -2, -1))
        steps = [Step(sigma, 1.0, i + 1) for i, sigma in enumerate(sigmas[:-1])]
        spec = StatisticsSpec(1.0, 4000)
        schedule = Schedule(tuple(steps), sigmas[-1], "dpm-v3", statistics=spec)
        update = tableau(schedule, ByStatistics(known, schedule))[-1].advance
        points = [toy.gaussian_solution(2.0, 3.0, sigma) for sigma in sigmas]
        x0 = [toy.gaussian_denoiser(*pair) for pair in zip(points, steps, strict=False)]
        history = zip(update.x0, update.points, x0[::-1], points[-2::-1], strict=True)
        made = update.state * points[-2] + update.constant
        made = made + sum(v * x0_j + w * point for v, w, x0_j, point in history)
        errors.append(abs(made.item() - points[-1]))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope == pytest.approx(order + 1, abs=0.3)


def test_onto_sigma_0_it_is_the_prediction_itself():
    known = constant(0.5)
    schedule = plan("dpm-v3", 1, final=0.0)
    found = sample(toy.gaussian_denoiser, torch.ones(2, 1, 1, 1), schedule, statistics=known)
    before = in_double(
        toy.gaussian_denoiser,
        torch.full((1, 1, 1, 1), 10.0).double(),
        replace(schedule, steps=schedule.steps[:-1], final_sigma=0.35),
        known,
    )
    x0 = toy.gaussian_denoiser(before.item(), Step(0.35))
    assert found.flatten().tolist() == pytest.approx([x0, x0], rel=1e-5)


def test_a_level_without_statistics_is_refused():
    with pytest.raises(UserError, match=r"step 5: there are statistics for sigma 0\.02917 to"):
        sample(
            toy.gaussian_denoiser,
            torch.ones(1, 1, 1, 1),
            plan("dpm-v3", 1, final=0.01),
            statistics=constant(0.5),
        )


def test_without_statistics_it_is_refused_by_name():
    with pytest.raises(UserError, match="dpm-v3 goes by statistics"):
        sample(toy.gaussian_denoiser, torch.ones(1, 1, 1, 1), plan("dpm-v3"))
