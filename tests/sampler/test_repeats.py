"""A step whose guidance is iterated: FSG, against closed forms."""

import json
from dataclasses import replace

import pytest
import torch

from stepsampler import ModelSpec, Schedule, ScheduleError, Step
from stepsampler.cli.display import describe, differences
from stepsampler.denoiser import FirstCalls, GuidedDenoiser
from stepsampler.formats.common import losses
from stepsampler.grids import guide, scale_guidance
from stepsampler.noise import FlowSchedule, NoiseSchedule
from stepsampler.sample import sample, trajectory
from stepsampler.scheduler import StepScheduler
from stepsampler.solvers import tableau

SD = NoiseSchedule.scaled_linear()
FLOW = ModelSpec("sit", "flow_prediction", (0.0, 0.25, 0.5, 0.75, 1.0))
MEANS = {"uncond": -0.4, "cond": 0.9}
DEVIATION = 0.5
W = 3.0


class Gaussians:
    """A network for x0 ~ N(MEANS[side], DEVIATION^2) on either side, and how many rows it had."""

    def __init__(self):
        self.rows = 0

    def __call__(self, x, time, condition):
        self.rows += len(x)
        sigma = SD.sigma(time)
        x = x * (1 + sigma**2) ** 0.5  # as a network of epsilon is told it
        return (x - optimal(x, sigma, condition["side"].reshape(-1, 1))) / sigma


def optimal(x, sigma, mean):
    """E[x0 | x]."""
    share = DEVIATION**2 / (DEVIATION**2 + sigma**2)
    return mean + share * (x - mean)


def denoiser(network, n=2, **options):
    sides = {name: {"side": torch.full((n,), m).double()} for name, m in MEANS.items()}
    return GuidedDenoiser(network, SD, "epsilon", sides["cond"], sides["uncond"], **options)


def there_and_back(x, sigma, lower, w):
    """One iteration by hand: DDIM down with guidance, and up without."""
    uncond, cond = (optimal(x, sigma, MEANS[side]) for side in ("uncond", "cond"))
    guided = uncond + w * (cond - uncond)
    landed = guided + lower / sigma * (x - guided)
    x0 = optimal(landed, lower, MEANS["uncond"])
    return x0 + sigma / lower * (landed - x0)


@pytest.mark.parametrize("repeats", [1, 2, 5])
def test_the_state_is_that_of_ddim_down_with_guidance_and_up_without(repeats):
    noise = torch.tensor([[0.8], [-1.3]], dtype=torch.float64)
    steps = (Step(9.0, W, repeats=repeats), Step(2.0, W))
    x = 9.0 * noise
    for _ in range(repeats):
        x = there_and_back(x, 9.0, 2.0, W)
    found = list(trajectory(denoiser(Gaussians()), noise, Schedule(steps, 0.3, "ddim")))
    expected = list(
        trajectory(denoiser(Gaussians()), x / 9.0, Schedule((Step(9.0, W), steps[1]), 0.3, "ddim"))
    )
    assert len(found) == 2
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # sigma of a time is interpolated


def test_many_repeats_go_on_by_a_linear_map_that_is_known():
    """x -> c x + d of these Gaussians: by its powers, the state after any number of repeats.

    The two sides have one deviation and agree nowhere: each iteration moves the state along the
    difference of their means.
    """
    ends = there_and_back(torch.tensor([0.0, 1.0], dtype=torch.float64), 9.0, 6.0, W)
    shift, factor = float(ends[0]), float(ends[1] - ends[0])
    assert shift > 0, "towards the side that is asked for"
    state = [0.0]
    plan = Schedule((Step(9.0, W, repeats=7), Step(6.0)), 0.3, "ddim")
    rows = [row for row in tableau(plan) if row.alone]
    assert len(rows) == 14
    x = torch.zeros(1, 1, dtype=torch.float64)
    denoise = denoiser(Gaussians(), 1)
    for down, up in zip(rows[::2], rows[1::2], strict=True):
        x = down.advance.state * x + down.advance.x0[0] * denoise(x, down.step)
        x = up.advance.state * x + up.advance.x0[0] * denoise(x, up.step)
        state.append(float(x))
    for k, value in enumerate(state):
        assert value == pytest.approx(shift * sum(factor**j for j in range(k)), rel=1e-5)


def test_where_both_sides_agree_it_changes_little_and_less_with_shorter_steps():
    """Every state is a fixed point then, but for the error of two steps of order 1."""
    noise = torch.tensor([[0.8], [-1.3]], dtype=torch.float64)
    same = {"side": torch.full((2,), 0.7).double()}
    denoise = GuidedDenoiser(Gaussians(), SD, "epsilon", same, same)
    errors = []
    for lower in (4.5, 8.0, 8.9):
        rows = [r for r in tableau(Schedule((Step(9.0, W, repeats=1),), lower)) if r.alone]
        x = 9.0 * noise
        for row in rows:
            x = row.advance.state * x + row.advance.x0[0] * denoise(x, row.step)
        errors.append(float((x - 9.0 * noise).abs().max()))
    # both have 1 + h a; (1 + h a) (1 - h b) with a -> b: an error in h^2
    assert errors[1] < errors[0] / 8
    assert errors[2] < errors[1] / 50


@pytest.mark.parametrize(
    ("steps", "solver"),
    [
        ((Step(9.0, W, repeats=2), Step(3.0, W, 2), Step(1.0, order=2)), "dpmpp-midpoint"),
        ((Step(9.0), Step(3.0, W, 2, repeats=1), Step(1.0, W, 2)), "unipc-bh2"),
        ((Step(9.0, W, 2, repeats=1), Step(3.0, 2.0, 2, repeats=3)), "heun"),
        ((Step(9.0, W), Step(3.0, W, churn=0.4, repeats=1)), "ddim"),
    ],
)
def test_passes_are_the_rows_that_the_network_has(steps, solver):
    network, n = Gaussians(), 2
    plan = Schedule(steps, 0.3, solver)
    noise = torch.randn(n, 1, dtype=torch.float64, generator=torch.manual_seed(0))
    sample(denoiser(network, n), noise, plan, lambda: torch.zeros(n, 1, dtype=torch.float64))
    assert network.rows == n * plan.passes
    bare = replace(plan, steps=tuple(replace(s, repeats=0) for s in steps))
    assert plan.passes - bare.passes == 3 * sum(s.repeats for s in steps)


def test_what_is_iterated_is_no_history_of_later_steps():
    """DPM++(2M) goes on from the state alone, with the predictions of its own steps."""
    noise = torch.tensor([[0.8], [-1.3]], dtype=torch.float64)
    steps = (Step(9.0, W), Step(4.0, W, 2, repeats=2), Step(1.5, W, 2))
    plan = Schedule(steps, 0.3, "dpmpp-midpoint")
    bare = replace(plan, steps=(steps[0], replace(steps[1], repeats=0), steps[2]))
    kept, advance = [], [row.advance for row in tableau(bare)]
    state = 9.0 * noise
    for i, step in enumerate(bare.steps):
        for _ in range(steps[i].repeats):
            state = there_and_back(state, step.sigma, bare.sigmas[i + 1], W)
        uncond, cond = (optimal(state, step.sigma, MEANS[side]) for side in ("uncond", "cond"))
        kept.insert(0, uncond + W * (cond - uncond))
        state = advance[i].state * state
        for weight, x0 in zip(advance[i].x0, kept, strict=False):
            state = state + weight * x0
    found = sample(denoiser(Gaussians()), noise, plan)
    torch.testing.assert_close(found, state, rtol=1e-6, atol=1e-6)


def test_a_flow_model_may_start_it_from_pure_noise():
    flow = FlowSchedule()

    def network(x, time, condition):  # x0 is -1 or 2, whatever x is: v = (x - x0) / sigma
        return (x - condition["side"].reshape(-1, 1)) / (time / 1000)

    sides = [{"side": torch.full((1,), m).double()} for m in (2.0, -1.0)]
    denoise = GuidedDenoiser(network, flow, "flow_prediction", *sides)
    plan = Schedule((Step(1.0, W, repeats=1), Step(0.5)), 0.1, "ddim", FLOW)
    rows = [row for row in tableau(plan) if row.alone]
    x = torch.tensor([[0.3]], dtype=torch.float64)
    down = rows[0].advance.state * x + rows[0].advance.x0[0] * denoise(x, rows[0].step)
    guided = -1.0 + W * 3.0
    assert float(down) == pytest.approx(0.5 * guided + 0.5 * 0.3)
    up = rows[1].advance.state * down + rows[1].advance.x0[0] * denoise(down, rows[1].step)
    assert float(up) == pytest.approx((float(down) - 0.5 * -1.0) / 0.5), "epsilon under x0 = -1"


def test_known_first_calls_are_those_of_an_iteration_too():
    noise = torch.tensor([[0.8], [-1.3]], dtype=torch.float64)
    plan = Schedule((Step(SD.sigma_max, W, repeats=1), Step(2.0)), 0.3, "ddim")
    network = Gaussians()
    kept = denoiser(network, first_calls=FirstCalls(SD.network_time(SD.sigma_max) * 0.999))
    with torch.no_grad():
        first, again = sample(kept, noise, plan), sample(kept, noise, plan)
        assert network.rows == 2 * (plan.passes + plan.passes - 4)  # both calls at the first level
        torch.testing.assert_close(again, first, rtol=0, atol=0)
        torch.testing.assert_close(sample(denoiser(Gaussians()), noise, plan), first)


@pytest.mark.parametrize(
    ("steps", "options", "message"),
    [
        ((Step(2.0, repeats=1),), {}, "step 0: repeats need a call with both predictions"),
        ((Step(2.0, W), Step(1.0, W, repeats=1)), {"final_sigma": 0.0}, "step 1: .* above 0"),
        ((Step(2.0, W, repeats=1),), {"guidance": "distilled"}, "step 0: repeats need"),
        ((Step(2.0, W, analytic=1.0, repeats=1),), {}, "step 0: repeats need"),
        ((Step(2.0, W), Step(1.0, W, x0_reuse=True, repeats=1)), {}, "step 1: repeats need"),
        ((Step(2.0, W), Step(1.0, W, guidance_reuse=True, repeats=1)), {}, "step 1: repeats need"),
        (
            (Step(2.0, W, corrector=True), Step(1.0, W, repeats=1)),
            {"solver": "unipc-bh2"},
            "step 1: repeats and a corrector before them exclude each other",
        ),
        ((Step(2.0, W, repeats=-1),), {}, "step 0: repeats must be 0 to 100, got -1"),
        ((Step(2.0, W, repeats=101),), {}, "step 0: repeats must be 0 to 100, got 101"),
    ],
)
def test_where_guidance_cannot_be_iterated_it_is_refused(steps, options, message):
    with pytest.raises(ScheduleError, match=message):
        Schedule(steps, **{"final_sigma": 0.1, "solver": "ddim", **options})


def test_files_show_diff_and_other_tools_know_it():
    plan = Schedule((Step(9.0, W, repeats=2), Step(2.0, W)), 0.1, "ddim")
    assert Schedule.from_json(plan.to_json()) == plan
    assert plan.to_json().count("repeats") == 1
    for value in (True, 1.0, "2", None):
        data = json.loads(plan.to_json())
        data["steps"][0]["repeats"] = value
        with pytest.raises(ScheduleError, match="step 0: repeats must be a whole number, got "):
            Schedule.from_json(json.dumps(data))
    assert "repeats 2" in describe(plan)
    bare = replace(plan, steps=(Step(9.0, W), Step(2.0, W)))
    assert differences(bare, plan) == ["step 0: repeats 0 -> 2"]
    assert losses(plan) == ["repeats"]
    with pytest.raises(ValueError, match="repeats call the network more than once a step"):
        StepScheduler(schedule=plan)


def test_changes_of_guidance_keep_it_where_there_is_some():
    plan = Schedule((Step(9.0, W, repeats=2), Step(2.0, W)), 0.1, "ddim")
    assert [s.repeats for s in guide(plan, 7.0).steps] == [2, 0]
    assert [s.repeats for s in guide(plan, 7.0, (1.0, 5.0)).steps] == [0, 0]
    assert [s.repeats for s in scale_guidance(plan, 5.0).steps] == [2, 0]
