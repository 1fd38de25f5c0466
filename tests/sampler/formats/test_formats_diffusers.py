"""Exports for diffusers' own schedulers, run by these schedulers."""

import json
from dataclasses import replace

import numpy as np
import pytest
from exporting import FLOW_TARGET, SD, SPEC, START, TARGET, baseline, flow, ours, toy_x0

from stepsampler import UserError
from stepsampler.formats import export, read
from stepsampler.grids import from_sigmas
from stepsampler.presets import open_schedule, preset


def stock(text, start, **config):
    """The stock scheduler of an exported text, with Stable Diffusion's betas; x of unit alpha."""
    import diffusers

    data = json.loads(text)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler_class = getattr(diffusers, data["scheduler"])
    base = {} if "FlowMatch" in data["scheduler"] else betas
    scheduler = scheduler_class.from_config({**base, **config}, **data["config"])
    scheduler.set_timesteps(**data["call"])
    is_dpm = "DPM" in data["scheduler"]
    is_flow = "FlowMatch" in data["scheduler"]
    first = float(scheduler.sigmas[0])
    x = start / np.sqrt(1 + first**2) if is_dpm else start
    for t in scheduler.timesteps:
        sigma = float(t) / 1000 if is_flow else SD.sigma(float(t))
        state = x * np.sqrt(1 + sigma**2) if is_dpm else x
        epsilon = (state - toy_x0(state, sigma)) / sigma
        x = scheduler.step(epsilon, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize(
    "schedule",
    [
        baseline(n=5),
        baseline(n=8),
        baseline(n=20),
        baseline("trailing", 6),
        baseline("linspace", 6, "dpmpp-heun"),
        baseline("linspace", 8, "exact"),
        baseline("linspace", 7, order=1),
        baseline("leading", 9, order=3),
        from_sigmas([SD.sigma(t) for t in (999, 700, 333)], SD.sigma_min, [5.0] * 3, 2, model=SPEC),
    ],
)
def test_stock_dpm_solver_runs_the_exported_schedule(schedule):
    if schedule.final_sigma:
        schedule = replace(schedule, decode="alpha-x")
    start = schedule.steps[0].sigma * START
    text = export(schedule, "diffusers:DPMSolverMultistepScheduler").text
    # step() works in float32
    assert stock(text, start).numpy() == pytest.approx(ours(schedule, start).numpy(), abs=2e-5)
    again = read(text, "diffusers", TARGET)
    assert again.sigmas == pytest.approx(schedule.sigmas, rel=1e-6)
    assert [s.order for s in again.steps] == [s.order for s in schedule.steps]
    assert ours(again, start).numpy() == pytest.approx(ours(schedule, start).numpy(), abs=1e-9)


@pytest.mark.parametrize(
    "schedule",
    [
        baseline("karras", 6, order=1),
        preset("seed-sd-5").schedule,  # fractional timesteps, and lands on sigma 0.13
        preset("seed-sd-6").schedule,
        baseline("power", 4, "ddim", 1),
    ],
)
def test_stock_euler_runs_fractional_timesteps_and_a_final_sigma(schedule):
    start = schedule.steps[0].sigma * START
    text = export(schedule, "diffusers:EulerDiscreteScheduler").text
    assert stock(text, start).numpy() == pytest.approx(ours(schedule, start).numpy(), abs=2e-5)
    again = read(text, "diffusers:EulerDiscreteScheduler", TARGET)
    assert again == replace(schedule, solver="ddim", provenance={})


def test_stock_euler_starts_from_noise_times_the_first_sigma():
    import diffusers

    data = json.loads(export(baseline(order=1), "diffusers:EulerDiscreteScheduler").text)
    scheduler = diffusers.EulerDiscreteScheduler.from_config(
        {"timestep_spacing": "leading", "steps_offset": 1}, **data["config"]
    )
    scheduler.set_timesteps(**data["call"])
    assert float(scheduler.init_noise_sigma) == pytest.approx(SD.sigma_max, rel=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_stock_flow_euler_runs_the_exported_sigmas_whatever_its_shift(shift):
    schedule = flow()
    text = export(schedule, "diffusers:FlowMatchEulerDiscreteScheduler", shift=shift).text
    sigmas = json.loads(text)["call"]["sigmas"]
    assert len(sigmas) == 4
    assert 0.0 not in sigmas
    out = stock(text, START, use_dynamic_shifting=True, shift=1.15)
    assert out.numpy() == pytest.approx(ours(schedule, START).numpy(), abs=2e-5)
    assert read(text, "diffusers", FLOW_TARGET).sigmas == pytest.approx(schedule.sigmas, abs=1e-12)


@pytest.mark.parametrize("shift", [0, -1, 1e-320, float("nan"), float("inf")])
def test_the_shift_of_a_flow_is_a_number_that_leaves_several_sigmas(shift):
    data = json.loads(export(flow(), "diffusers:FlowMatchEulerDiscreteScheduler").text)
    data["config"]["shift"] = shift
    message = f"shift must be at least 0.001 and at most 1000, got {shift:g}"
    with pytest.raises(UserError, match=message):
        read(json.dumps(data), "diffusers", FLOW_TARGET)
    with pytest.raises(UserError, match=message):
        export(flow(), "diffusers:FlowMatchEulerDiscreteScheduler", shift=shift)


@pytest.mark.parametrize("sigma", [0, -0.5, 2, float("nan")])
def test_sigmas_of_a_flow_lie_above_zero_and_up_to_one(sigma):
    data = json.loads(export(flow(), "diffusers:FlowMatchEulerDiscreteScheduler").text)
    data["config"]["shift"], data["call"]["sigmas"][0] = 0.5, sigma
    message = f"a sigma of a flow must be above 0 and at most 1, got {sigma:g}"
    with pytest.raises(UserError, match=message):
        read(json.dumps(data), "diffusers", FLOW_TARGET)


def test_a_step_scheduler_is_exported_as_the_file_of_its_folder(tmp_path):
    from stepsampler.scheduler import StepScheduler

    plan = open_schedule("seed-unipc-sd-6-plain")
    (tmp_path / "scheduler_config.json").write_text(export(plan, "diffusers:StepScheduler").text)
    scheduler = StepScheduler.from_pretrained(tmp_path)
    assert scheduler.config.beta_schedule == "scaled_linear"
    assert scheduler.sigmas.tolist() == pytest.approx(plan.sigmas, rel=1e-6)
    with pytest.raises(UserError, match="cannot hold Free-U per step"):
        export(open_schedule("seed-sd-8-free"), "diffusers:StepScheduler")
