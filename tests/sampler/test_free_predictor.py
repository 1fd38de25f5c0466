"""A step that reuses x0: the seed's free predictor."""

import json
from dataclasses import replace
from math import sqrt

import pytest
import torch

from stepsampler import FreeU, Schedule, ScheduleError, Step
from stepsampler.cli.display import describe, differences
from stepsampler.formats.common import losses
from stepsampler.grids import guide, scale_guidance
from stepsampler.noise import NoiseSchedule
from stepsampler.presets import preset
from stepsampler.sample import sample
from stepsampler.scheduler import StepScheduler

SD = NoiseSchedule.scaled_linear()
STEPS = (Step(14.0, 5.0), Step(3.0, 5.0), Step(1.0, x0_reuse=True))
# Timesteps, and the last state that the seed's scheduler (use_afs, use_free_predictor) comes to
# from START under the toy network below; in steps of 5 to 9 calls
START = [-1.5, -0.4, 0.3, 1.1]
SEED = {
    5: (
        "999, 809.6, 627.3, 453.5, 290.4, 141.7, 18.3",
        [-0.21978595361566394, -0.039607346570787946, 0.02924368464194011, 0.1338196965475479],
    ),
    6: (
        "999, 836.2, 678.6, 526.9, 382.2, 246.2, 122.1, 18.3",
        [-0.2125815003307342, -0.03993549093797801, 0.029555275320929386, 0.1314251120778764],
    ),
    7: (
        "999, 917.6, 836.2, 678.6, 526.9, 382.2, 246.2, 122.1, 18.3",
        [-0.15687990005370261, -0.03355817481452382, 0.025005829653034828, 0.10218240891557058],
    ),
    8: (
        "999, 927.7, 856.3, 717.5, 583.0, 453.5, 330.0, 213.9, 107.7, 18.3",
        [-0.1830171204006206, -0.035110385555604695, 0.025525813333938517, 0.12078980942920602],
    ),
    9: (
        "999, 935.9, 872.9, 749.7, 629.9, 513.7, 401.8, 294.9, 194.2, 101.7, 22.7",
        [-0.15583454114223155, -0.033410040144329654, 0.024900821736847198, 0.10159792390720879],
    ),
}


@pytest.mark.parametrize("n", SEED)
def test_the_presets_are_the_seeds_scheduler(n):
    plan = preset(f"seed-dunipc-anime-{n}-free-predictor").schedule
    timesteps, last = SEED[n]
    expected = [float(t) for t in timesteps.split(",")]
    assert [SD.timestep(step.sigma) for step in plan.steps] == pytest.approx(expected, abs=0.06)
    calls = []

    def toy(x, step):
        calls.append(step)
        unit = x / sqrt(1 + step.sigma**2)
        return x - step.sigma * (torch.sin(unit) + 0.001 * SD.timestep(step.sigma) * unit)

    first = plan.steps[0].sigma
    start = torch.tensor(START, dtype=torch.float64) * sqrt(1 + first**2) / first
    assert sample(toy, start, plan).tolist() == pytest.approx(last, rel=2e-5)
    assert len(calls) == len(plan.steps) - 2 == plan.passes / 2
    assert len(calls) == n


def test_it_is_free_and_repeats_the_prediction():
    plan = Schedule(STEPS, 0.1, "ddim")
    assert plan.passes == 4
    seen = []

    def denoise(x, step):
        seen.append(step.sigma)
        return torch.sin(x)

    noise = torch.linspace(-1, 1, 5, dtype=torch.float64)
    made = sample(denoise, noise, plan)
    assert seen == [14.0, 3.0]
    # of order 1 two steps with one x0 are one: only where it lands is another place
    once = sample(denoise, noise, replace(plan, steps=STEPS[:2]))
    assert made.tolist() == pytest.approx(once.tolist(), abs=1e-12)


def test_after_a_step_of_order_2_it_is_no_longer_one_step():
    steps = (STEPS[0], replace(STEPS[1], order=2), STEPS[2])
    noise = torch.linspace(-1, 1, 5, dtype=torch.float64)

    def run(plan):
        return sample(lambda x, _: torch.sin(x), noise, plan)

    plan = Schedule(steps, 0.1)
    assert (run(plan) - run(replace(plan, steps=steps[:2]))).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("steps", "solver", "message"),
    [
        ((Step(2.0, x0_reuse=True),), "ddim", "step 0: x0_reuse needs a step before it"),
        ((Step(2.0), Step(1.0, x0_reuse=True)), "heun", "step 1: x0_reuse .* none of heun"),
        (
            (Step(2.0, corrector=True), Step(1.0, x0_reuse=True)),
            "unipc-bh2",
            "step 1: x0_reuse .* which has no corrector",
        ),
        (
            (Step(2.0, 3.0), Step(1.0, 3.0, x0_reuse=True, guidance_reuse=True)),
            "ddim",
            "step 1: guidance_reuse needs",
        ),
        (
            (Step(3.0), Step(2.0, 3.0, x0_reuse=True), Step(1.0, 3.0, guidance_reuse=True)),
            "ddim",
            "step 2: guidance_reuse needs .* a step before it with both",
        ),
    ],
)
def test_where_there_is_nothing_to_reuse_it_is_refused(steps, solver, message):
    with pytest.raises(ScheduleError, match=message):
        Schedule(steps, 0.0, solver)


def test_files_show_diff_and_other_tools_know_it():
    plan = Schedule(STEPS, 0.1, "ddim")
    assert Schedule.from_json(plan.to_json()) == plan
    data = json.loads(plan.to_json())
    data["steps"][2]["x0_reuse"] = 1
    with pytest.raises(ScheduleError, match="step 2: x0_reuse must be true or false"):
        Schedule.from_json(json.dumps(data))
    assert "reuses x0" in describe(plan)
    called = replace(plan, steps=(*STEPS[:2], Step(1.0)))
    assert differences(called, plan) == ["step 2: x0_reuse False -> True"]
    assert losses(plan) == ["x0_reuse"]
    with pytest.raises(ValueError, match="a step that reuses x0 calls no network"):
        StepScheduler(schedule=plan)


def test_changes_of_guidance_leave_it_alone():
    plan = Schedule((*STEPS[:2], replace(STEPS[2], free_u=FreeU(1, 1, 1, 1))), 0.1, "ddim")
    assert guide(plan, 7.0).steps[2] == plan.steps[2]
    assert [s.guidance_scale for s in scale_guidance(plan, 3.0).steps] == [3.0, 3.0, 1.0]
