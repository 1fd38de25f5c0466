"""Sigmas for stock flow schedulers that shift and stretch them, run by these schedulers."""

import json

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler as Stock
from exporting import FLOW_TARGET, TARGET, baseline, flow
from hypothesis import given, settings
from hypothesis import strategies as st

from stepsampler import UserError
from stepsampler.formats import export, read, reading
from stepsampler.formats.stock_flow import Shifting

FLOW = "diffusers:FlowMatchEulerDiscreteScheduler"
DYNAMIC = {"use_dynamic_shifting": True, "time_shift_type": "exponential"}
QWEN = {**DYNAMIC, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192}
QWEN |= {"shift": 1.0, "shift_terminal": 0.02}
LTX = {**DYNAMIC, "base_shift": 0.95, "max_shift": 2.05, "shift_terminal": 0.1}
CONFIGS = [QWEN, LTX, {"shift": 3.0}, DYNAMIC, {**DYNAMIC, "time_shift_type": "linear"}]


def stepped(config, call):
    """The sigmas of the scheduler itself."""
    scheduler = Stock.from_config(config)
    scheduler.set_timesteps(**call)
    return scheduler.sigmas.tolist()


@pytest.mark.parametrize("config", CONFIGS)
def test_an_export_switches_off_what_would_change_its_sigmas(config):
    data = json.loads(export(flow(), FLOW).text)
    call = {**data["call"], "mu": 0.8}  # pipelines pass it always
    changed = {**config, **data["config"]}
    assert stepped(changed, call) == pytest.approx(flow().sigmas, abs=1e-6)
    naive = stepped(config, call)
    assert naive != pytest.approx(flow().sigmas, abs=1e-3)


@pytest.mark.parametrize("config", CONFIGS)
def test_sigmas_for_a_scheduler_that_is_kept_are_inverted_exactly(config):
    schedule = flow((1.0, 0.75, 0.4, config.get("shift_terminal", 0.2)))
    text = export(schedule, FLOW, scheduler_config=config, mu=0.8).text
    data = json.loads(text)
    call = {"mu": 0.8, **data["call"]}
    assert stepped({**config, **data["config"]}, call) == pytest.approx(schedule.sigmas, abs=1e-6)
    assert stepped(config, call) == pytest.approx(schedule.sigmas, abs=1e-6)
    assert read(text, "diffusers", FLOW_TARGET).sigmas == pytest.approx(schedule.sigmas, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0.01, 0.99), min_size=2, max_size=8, unique=True),
    st.floats(0.2, 3.0),
    st.sampled_from(CONFIGS),
)
def test_any_sigmas_are_run_as_the_scheduler_runs_them(handed, mu, config):
    handed = sorted(handed, reverse=True)
    ours = Shifting.of(config, mu).run(handed)
    stock = stepped(config, {"sigmas": handed, "mu": mu})[:-1]
    assert ours == pytest.approx(stock, abs=2e-5)


def test_what_no_sigmas_lead_to_is_refused():
    with pytest.raises(UserError, match="shift_terminal makes the last sigma 0.02, and the sched"):
        export(flow(), FLOW, scheduler_config=QWEN, mu=0.8)
    with pytest.raises(
        UserError, match="use_dynamic_shifting: .* is not given .of an export by --mu"
    ):
        export(flow(), FLOW, scheduler_config=QWEN)
    for name in ("use_karras_sigmas", "invert_sigmas", "stochastic_sampling"):
        with pytest.raises(UserError, match=f"the scheduler's {name} makes other steps"):
            export(flow(), FLOW, scheduler_config={name: True})


def test_a_single_step_that_would_be_no_number_is_refused():
    one = flow((1.0,))
    with np.errstate(all="ignore"):
        assert np.isnan(stepped(QWEN, {"sigmas": [1.0], "mu": 0.8})[0])
    with pytest.raises(UserError, match="which shift_terminal turns into no number"):
        export(one, FLOW, scheduler_config=QWEN, mu=0.8)
    off = json.loads(export(one, FLOW).text)
    assert stepped({**QWEN, **off["config"]}, off["call"]) == [1.0, 0.0]
    off["config"]["shift_terminal"] = 0.02
    with pytest.raises(UserError, match="the scheduler's are not a number"):
        read(json.dumps(off), "diffusers", FLOW_TARGET)


def test_what_else_a_text_for_diffusers_says_is_named():
    data = json.loads(export(baseline(), "diffusers:DPMSolverMultistepScheduler").text)
    data["config"] |= {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}
    data["call"]["eta"] = 1.0
    message = (
        r"use_karras_sigmas = true of the config; algorithm_type = \"sde-dpmsolver\+\+\" of the "
        "config; eta of the call"
    )
    with pytest.raises(UserError, match=message):
        read(json.dumps(data), "diffusers", TARGET)
    assert reading(json.dumps(data), "diffusers", TARGET, lossy=True).schedule == baseline()


# ---- Bare timesteps


@pytest.mark.parametrize("text", ["[999, 700, 400, 100]", "999 700 400 100", "(999,700,400,100,)"])
def test_bare_timesteps_are_read(text):
    made = read(text, "diffusers", TARGET._replace(guidance_scale=5.0))
    noise = TARGET.noise
    assert made.sigmas == (*(noise.sigma(t) for t in (999, 700, 400, 100)), 0.0)
    assert [step.order for step in made.steps] == [1, 2, 2, 1]
    assert {step.guidance_scale for step in made.steps} == {5.0}


def test_bare_timesteps_of_a_flow_are_a_thousand_sigma_as_the_scheduler_has_them():
    scheduler = Stock(shift=1.0)
    scheduler.set_timesteps(timesteps=[1000.0, 750.0, 300.0])
    target = FLOW_TARGET._replace(solver="ddim", order=1)
    made = read("[1000, 750, 300]", "diffusers", target)
    assert made.sigmas == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("14.6, 3.0, 0.0", "starts at 14.6: sigmas are read with --from comfyui"),
        ("1000, 500", "a timestep must be at least 0 and at most 999, got 1000"),
        ("900, 500, 500", "step 1: sigma must fall"),
        ("999, x", "expected a list of timesteps"),
        ("", "at least two sigmas, got 1"),
    ],
)
def test_other_lists_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        read(text, "diffusers", TARGET)


def test_timesteps_beyond_the_model_are_refused():
    data = json.loads(export(baseline(), "diffusers:DPMSolverMultistepScheduler").text)
    data["call"]["timesteps"][0] = 1200
    with pytest.raises(UserError, match="a timestep must be at least 0 and at most 999, got 1200"):
        read(json.dumps(data), "diffusers", TARGET)
