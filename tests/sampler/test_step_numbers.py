"""Gains, weights and times of steps, against the formulas that they come from."""

from dataclasses import replace
from math import expm1, log

import numpy as np
import pytest
import torch
import toy

from stepsampler import ModelSpec, Schedule, ScheduleError, Step, UserError
from stepsampler.denoiser import GuidedDenoiser
from stepsampler.formats.common import losses
from stepsampler.grids import make_schedule
from stepsampler.noise import FlowSchedule, NoiseSchedule
from stepsampler.presets import preset
from stepsampler.sample import sample, trajectory
from stepsampler.solvers import tableau

SD = NoiseSchedule.scaled_linear()
FLOW = ModelSpec("sit", "flow_prediction", (0.0, 0.25, 0.5, 0.75, 1.0))
NOISE = torch.tensor([[0.8], [-1.3]], dtype=torch.float64)


def changed(schedule, solver=None, **fields):
    """The same change in every step; a function is given the step's index."""
    steps = [
        replace(s, **{k: v(i) if callable(v) else v for k, v in fields.items()})
        for i, s in enumerate(schedule.steps)
    ]
    return replace(schedule, steps=tuple(steps), solver=solver or schedule.solver)


def shares(schedule):
    """Each step's rule as shares of the whole step, by solving for them from its own formula."""
    found = []
    for i, step in enumerate(schedule.steps):
        if step.order == 1:
            found.append((1.0,))
            continue
        h = log(schedule.sigmas[i] / schedule.sigmas[i + 1])
        r = log(schedule.sigmas[i - 1] / schedule.sigmas[i]) / h
        found.append((1 + 1 / (2 * r), -1 / (2 * r)))  # DPM-Solver++(2M), algorithm 2
    return found


def test_the_shares_of_dpmpp_2m_make_its_states():
    ruled = make_schedule("karras", 6, SD, solver="dpmpp-midpoint", order=2)
    own = shares(ruled)
    free = changed(ruled, "ddim", weights=lambda i: own[i])
    found = list(trajectory(toy.gaussian_denoiser, NOISE, free))
    expected = list(trajectory(toy.gaussian_denoiser, NOISE, ruled))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["data", "noise", "derivative"])
@pytest.mark.parametrize("flow", [False, True])
def test_a_single_share_of_one_is_a_step_of_order_one_in_every_form(form, flow):
    sigmas = [0.99, 0.7, 0.2] if flow else [9.0, 2.0, 0.3]
    plain = Schedule(tuple(Step(s) for s in sigmas), 0.0, "ddim", FLOW if flow else None)
    free = changed(plain, weights=(1.0,), prediction=form)
    found, expected = (sample(toy.gaussian_denoiser, NOISE, s) for s in (free, plain))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_adams_bashforth_is_its_shares_in_the_derivative_form():
    ruled = Schedule(
        (Step(1.0), Step(0.7, order=2), Step(0.4, order=3), Step(0.2, order=4)), 0.1, "ipndm", FLOW
    )
    weights = [(1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12)]
    weights.append((55 / 24, -59 / 24, 37 / 24, -9 / 24))
    free = changed(ruled, "ddim", weights=weights.__getitem__, prediction="derivative")
    found, expected = (sample(toy.gaussian_denoiser, NOISE, s) for s in (free, ruled))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["neuralsolver-sit-5", "neuralsolver-sit-8", "neuralsolver-sit-15"]
)
def test_neuralsolver_is_its_own_recurrence_of_velocities(name):
    schedule = preset(name).schedule
    x, t, velocities, states = NOISE.clone(), 0.0, [], []
    for i, step in enumerate(schedule.steps):  # of their paper: x += dt * sum of c_j v_j
        x0 = toy.gaussian_denoiser(x, Step(1 - t))
        velocities.append((x0 - x) / (1 - t))
        weights = step.weights or (1.0,)
        assert sum(weights) == pytest.approx(1, abs=1e-9)
        v = sum(w * velocity for w, velocity in zip(weights, velocities[::-1], strict=False))
        dt = schedule.sigmas[i] - schedule.sigmas[i + 1]
        x, t = x + dt * v, t + dt
        states.append(x)
    found = list(trajectory(toy.gaussian_denoiser, NOISE, schedule))
    assert len(found) == len(states)
    for a, b in zip(found, states, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", ["data", "noise"])
def test_a_gain_is_the_scale_of_the_direction_of_amed(form):
    """Its update at order 2, x = x0 + sigma noise: the model's terms times the scale, not x's."""
    sigmas, scales = [9.0, 4.0, 1.5, 0.6], [1.0, 0.97, 1.05]
    steps = [
        Step(s, 1.0, min(i, 1) + 1, prediction=form, gain=g)
        for i, (s, g) in enumerate(zip(sigmas[:-1], scales, strict=True))
    ]
    found = sample(toy.gaussian_denoiser, NOISE, Schedule(tuple(steps), sigmas[-1]))
    x, models = NOISE * sigmas[0], []
    for i, (s, t, scale) in enumerate(zip(sigmas[:-1], sigmas[1:], scales, strict=True)):
        x0 = toy.gaussian_denoiser(x, Step(s))
        models.append(x0 if form == "data" else (x - x0) / s)
        h = log(s / t)
        d = models[-1]
        if i:
            d = d + (models[-1] - models[-2]) * h / log(sigmas[i - 1] / s) / 2
        x = t / s * x - scale * expm1(-h) * d if form == "data" else x - scale * t * expm1(h) * d
    torch.testing.assert_close(found, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", ["heun", "ipndm"])
def test_a_gain_of_a_rule_on_the_derivative_scales_the_increment(solver):
    step = Step(2.0, 1.0, 1, gain=1.1)
    (found,) = trajectory(toy.gaussian_denoiser, NOISE, Schedule((step,), 0.5, solver))
    x = 2 * NOISE
    slope = (x - toy.gaussian_denoiser(x, step)) / 2
    torch.testing.assert_close(found, x + 1.1 * (0.5 - 2) * slope)


def test_a_corrector_has_the_gain_of_its_step():
    plain = make_schedule("karras", 4, SD, solver="unipc-bh2", order=2)
    assert any(s.corrector for s in plain.steps)
    rows, gained = tableau(plain), tableau(changed(plain, gain=1.25))
    for a, b in zip(rows, gained, strict=True):
        for ours, theirs in ((a.correct, b.correct), (a.advance, b.advance)):
            if ours and theirs:
                assert theirs.state == ours.state
                assert np.allclose(theirs.x0, np.array(ours.x0) * 1.25, rtol=1e-12)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction"])
def test_the_network_is_told_another_time_and_nothing_else_changes(kind):
    flow = kind == "flow_prediction"
    noise, told, given = (FlowSchedule() if flow else SD), [], []

    def network(x, time, condition):
        told.append(time)
        given.append(x)
        return torch.full_like(x, 0.25)

    denoise = GuidedDenoiser(network, noise, kind, {}, None)
    x, step = torch.ones(1, 4, 2, 2), Step(0.8)
    plain, scaled = denoise(x, step), denoise(x, replace(step, time_scale=0.5))
    assert torch.equal(plain, scaled)
    assert torch.equal(*given)
    assert told == [noise.network_time(0.8), noise.network_time(0.4)]


def test_what_the_weights_of_a_step_may_be_is_said():
    for steps, message in (
        ((Step(2.0, weights=()),), "step 0: weights must be 1 to 1, of this prediction and those"),
        ((Step(2.0, order=2, weights=(1.0, 0.0)),), "step 0: weights must be 1 to 1"),
        ((Step(2.0), Step(1.0, weights=(2.0, -1.0))), "step 1: order must be 2, as many as there"),
        ((Step(2.0, weights=(1.0,), prediction="x"),), "step 0: prediction must be one of data"),
        ((Step(2.0, gain=0.0),), "step 0: gain must be > 0, got 0"),
        ((Step(2.0, time_scale=-1.0),), "step 0: time_scale must be > 0, got -1"),
        ((Step(2.0, weights=(float("nan"),)),), "step 0: weight 0 must be finite"),
    ):
        with pytest.raises(ScheduleError, match=message):
            Schedule(steps)
    with pytest.raises(ScheduleError, match="step 0: weights and heun exclude each other"):
        Schedule((Step(2.0, weights=(1.0,)),), 0.0, "heun")
    both = (Step(2.0, weights=(1.0,), corrector=True), Step(1.0))
    with pytest.raises(ScheduleError, match="step 0: weights and corrector exclude each other"):
        Schedule(both, 0.0, "unipc-bh2")
    with pytest.raises(ScheduleError, match=r"step 0: sigma \* time_scale of a flow model is at"):
        Schedule((Step(0.9, time_scale=1.2),), 0.0, "ddim", FLOW)


def test_a_time_beyond_the_model_is_refused_by_the_step():
    beyond = Schedule((Step(14.0, time_scale=1.5), Step(2.0)), 0.0, "ddim")
    with pytest.raises(UserError, match=r"step 0: the network is told sigma 21 \(time_scale 1.5\)"):
        SD.check_range(beyond)
    SD.check_range(changed(beyond, time_scale=1.0))


def test_a_file_keeps_them_and_says_what_is_wrong_with_them():
    schedule = Schedule(
        (Step(2.0, gain=1.05), Step(1.0, order=2, weights=(1.5, -0.5), time_scale=0.9)), 0.0, "ddim"
    )
    assert Schedule.from_json(schedule.to_json()) == schedule
    text = schedule.to_json()
    for old, new, message in (
        ("[1.5, -0.5]", "1.5", "step 1: weights must be a list, got 1.5"),
        ("[1.5, -0.5]", '[1.5, "x"]', r"step 1: weights\[1\] must be a number, got 'x'"),
        ('"gain": 1.05', '"gain": null', "step 0: gain must be a number, got None"),
    ):
        assert old in text
        with pytest.raises(ScheduleError, match=message):
            Schedule.from_json(text.replace(old, new))


def test_no_list_of_sigmas_holds_them_and_it_is_said():
    plain = make_schedule("karras", 3, SD, solver="dpmpp-midpoint", order=2)
    assert losses(plain) == []
    assert losses(changed(plain, gain=1.05)) == ["the gain of a step"]
    assert losses(changed(plain, time_scale=0.95)) == ["time_scale"]
    own = shares(plain)
    assert losses(changed(plain, weights=lambda i: own[i])) == ["weights of a step"]


def test_weights_reach_sigma_zero_where_rules_have_no_lambda():
    """x0_0 + 0.3 (x0_0 - x0_1): all of the state is gone, as lambda is infinite there."""
    schedule = Schedule((Step(2.0), Step(0.5, order=2, weights=(1.3, -0.3))), 0.0, "ddim")
    x = 2 * NOISE
    first = toy.gaussian_denoiser(x, Step(2.0))
    x = first + 0.5 * (x - first) / 2
    last = toy.gaussian_denoiser(x, Step(0.5))
    found = sample(toy.gaussian_denoiser, NOISE, schedule)
    torch.testing.assert_close(found, 1.3 * last - 0.3 * first, rtol=1e-12, atol=1e-12)


def guided_denoiser(network):
    rows = {"side": torch.zeros(2, 1)}, {"side": torch.ones(2, 1)}
    return GuidedDenoiser(network, SD, "epsilon", rows[1], rows[0])


def test_reused_guidance_is_that_of_the_last_step_with_both_predictions():
    """A network whose difference is 1, then 2, 3, …: each call of the reusing steps has one row."""
    calls = []

    def network(x, time, condition):
        calls.append(len(x))
        return len(calls) * condition["side"].reshape(-1, 1) + 0.1 * x

    first = Step(4.0, 3.0)
    steps = (first, Step(2.0, 3.0, guidance_reuse=True), Step(1.0, 3.0), Step(0.5))
    steps = (*steps, Step(0.3, 2.0, guidance_reuse=True))
    schedule = Schedule(steps, 0.0, "ddim")
    denoise, x = guided_denoiser(network), torch.zeros(2, 1)
    found = [denoise(x, step) for step in steps]
    assert calls == [4, 2, 4, 2, 2]
    assert schedule.passes == sum(calls) / 2
    differences = [1, 1, 3, 0, 3]  # of the outputs at x = 0, where cond is the number of the call
    for k, (step, d) in enumerate(zip(steps, differences, strict=True)):
        epsilon = (k + 1) + (step.guidance_scale - 1) * d
        torch.testing.assert_close(found[k], torch.full((2, 1), -step.sigma * epsilon))


def test_reuse_changes_nothing_where_the_difference_is_constant():
    def network(x, time, condition):
        return 0.3 * x + condition["side"].reshape(-1, 1)

    plain = changed(make_schedule("karras", 5, SD, solver="dpmpp-midpoint", order=2), order=1)
    full = changed(plain, guidance_scale=4.0)
    reused = changed(full, guidance_reuse=lambda i: i > 0)
    noise = torch.randn(2, 1, dtype=torch.float64, generator=torch.manual_seed(0))
    found, expected = (sample(guided_denoiser(network), noise, s) for s in (reused, full))
    torch.testing.assert_close(found, expected)
    assert (full.passes, reused.passes) == (10, 6)


def test_reuse_without_anything_to_reuse_is_refused():
    message = "guidance_reuse needs a guidance_scale, and a step before it with both predictions"
    for steps in (
        (Step(2.0, 3.0, guidance_reuse=True),),
        (Step(2.0, 3.0), Step(1.0, guidance_reuse=True)),
        (Step(2.0), Step(1.0, 3.0, guidance_reuse=True)),
        (Step(2.0, 3.0, analytic=1.0), Step(1.0, 3.0, guidance_reuse=True)),
    ):
        with pytest.raises(ScheduleError, match=message):
            Schedule(steps)
    both = (Step(2.0, 3.0), Step(1.0, 3.0, guidance_reuse=True))
    with pytest.raises(ScheduleError, match=message):
        Schedule(both, guidance="distilled")
    assert losses(Schedule(both)) == ["guidance_reuse"]
    text = Schedule(both).to_json()
    assert Schedule.from_json(text) == Schedule(both)
    with pytest.raises(ScheduleError, match="step 1: guidance_reuse must be true or false"):
        Schedule.from_json(text.replace("true", "1"))
