import json
import re
import shlex
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepsampler import FreeU, GoldenNoise, ModelSpec, Schedule, Step, UserError
from stepsampler.formats import Target, export, read
from stepsampler.grids import from_sigmas, guide, make_schedule
from stepsampler.noise import FlowSchedule, NoiseSchedule
from stepsampler.presets import MODELS, names, open_schedule, preset
from stepsampler.sample import sample

SD = NoiseSchedule.scaled_linear()
SPEC = MODELS["sd15"]
FLUX = MODELS["flux"]
TARGET = Target(SD, SPEC)
FLOW_TARGET = Target(FlowSchedule(), FLUX)


def baseline(grid="linspace", n=8, solver="dpmpp-midpoint", order=2, w=7.5):
    return make_schedule(grid, n, SD, solver=solver, order=order, guidance_scale=w, model=SPEC)


def flow(sigmas=(1.0, 0.75, 0.5, 0.2), final=0.0, order=1, solver="ddim", w=3.5):
    return from_sigmas(sigmas, final, [w] * len(sigmas), order, solver, FLUX)


def toy_x0(x, sigma):
    """A denoiser that is neither linear in x nor constant in sigma; float64."""
    return torch.tanh(x / (1 + sigma)) + 0.1 * torch.sin(3 * x / (1 + sigma**2))


def ours(schedule, start):
    """From the state `start` at the first sigma."""
    noise = start / schedule.steps[0].sigma
    return sample(lambda x, step: toy_x0(x, step.sigma), noise, schedule)


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


START = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


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


@pytest.mark.parametrize(
    ("schedule", "to", "message"),
    [
        (
            guide(baseline(), 7.5, (0.5, 3.0)),
            "diffusers:DPMSolverMultistepScheduler",
            r"cannot hold guidance per step \(7.5 instead\) \(--lossy leaves it out\)",
        ),
        (
            preset("seed-sd-8").schedule,
            "diffusers:DPMSolverMultistepScheduler",
            r"the timestep 857.32 of step 1 \(857 instead\); .* the final sigma 0.147",
        ),
        (baseline(), "diffusers:EulerDiscreteScheduler", "the rule dpmpp-midpoint, orders 1 2 2"),
        (
            preset("seed-unipc-sd-8").schedule,
            "diffusers:DPMSolverMultistepScheduler",
            "the corrector; the prediction form of a step; Free-U per step",
        ),
        (
            flow(final=0.1),
            "diffusers:FlowMatchEulerDiscreteScheduler",
            r"the final sigma 0.1 \(0 instead\)",
        ),
        (
            flow(),
            "diffusers:EulerDiscreteScheduler",
            "EulerDiscreteScheduler is not for a flow model",
        ),
        (baseline(), "diffusers:FlowMatchEulerDiscreteScheduler", "is not for a model with betas"),
        (baseline(), "diffusers:DDIMScheduler", "not 'DDIMScheduler'; StepScheduler runs any"),
        (baseline(), "diffusers", "not None; StepScheduler runs any"),
        (
            from_sigmas([14.0, 13.999], 0.0, [1.0] * 2, 1, "ddim", SPEC),
            "diffusers:DPMSolverMultistepScheduler",
            "whole timesteps, of which two steps would get the same",
        ),
        (
            Schedule((Step(10.0),), model=ModelSpec("x", "epsilon", (0.1, 1, 2, 5, 10))),
            "diffusers:DPMSolverMultistepScheduler",
            "those of the schedule's model are not known",
        ),
        (
            replace(preset("seed-sd-5").schedule, decode="alpha-x"),
            "diffusers:EulerDiscreteScheduler",
            "decode 'alpha-x'",
        ),
        (baseline(solver="exact", order=3), "comfyui", "the rule exact at orders 1 2 3 3 3 3 3 1"),
        (preset("seed-unipc-xl-6").schedule, "comfyui", "an analytic first step; the corrector"),
        (preset("seed-sd-8-golden").schedule, "comfyui", "cannot hold golden_noise"),
        (preset("seed-sd-5-free").schedule, "sd.cpp", "Free-U per step"),
        (
            Schedule((Step(2.0, 5.0, guidance_rescale=0.7),), model=SPEC),
            "sd.cpp",
            "guidance_rescale",
        ),
        (flow(order=2, solver="dpmpp-midpoint"), "comfyui", r"\(euler instead\)"),
        (flow(final=0.1), "comfyui", "divides the latent by 1 - sigma"),
        (flow(final=0.1), "sd.cpp", "divides the latent by 1 - sigma"),
        (baseline(solver="ipndm", order=4), "sd.cpp", r"\(ipndm instead\)"),
        (baseline(), "a1111", "a1111 has no documented way"),
        (baseline(), "invoke", "the format must be one of comfyui, sd.cpp, diffusers"),
        (
            replace(guide(flow(), 3.0, (0.3, 0.8)), guidance="distilled"),
            "comfyui",
            "FluxGuidance takes one scale; 3 instead",
        ),
        (
            replace(guide(flow(), 3.0, (0.3, 0.8)), guidance="distilled"),
            "sd.cpp",
            "distilled guidance per step",
        ),
        (
            guide(flow(), 3.0, (0.3, 0.8)),
            "comfyui",
            "the percents of this model are not known",
        ),
    ],
)
def test_what_a_format_cannot_hold_is_refused_by_name(schedule, to, message):
    with pytest.raises(UserError, match=message):
        export(schedule, to)


def test_what_was_left_out_is_listed_when_asked_for():
    text = export(guide(baseline(), 7.5, (0.5, 3.0)), "diffusers:DPMSolverMultistepScheduler",
                  lossy=True)  # fmt: skip
    assert text.lost == ("guidance per step (7.5 instead)",)
    assert read(text.text, "diffusers", TARGET) == baseline()


def k_diffusion(name, sigmas, x, zero_lowers=True):
    """The samplers that ComfyUI and stable-diffusion.cpp share, as they are documented."""
    ds, x0s = [], []
    for i, (sigma, to) in enumerate(pairwise(sigmas)):
        x0 = toy_x0(x, sigma)
        d = (x - x0) / sigma
        ds, x0s = [d, *ds][:4], [x0, *x0s][:2]
        if name in ("dpmpp_2m", "dpm++2m") and i and to:
            r = np.log(sigmas[i - 1] / sigma) / np.log(sigma / to)
            mixed = (1 + 1 / (2 * r)) * x0s[0] - 1 / (2 * r) * x0s[1]
            x = to / sigma * x + (1 - to / sigma) * mixed
        elif name == "heun" and to:
            there = x + (to - sigma) * d
            x = x + (to - sigma) * (d + (there - toy_x0(there, to)) / to) / 2
        elif name == "ipndm" and (to or not zero_lowers):
            from stepsampler.solvers import ADAMS_BASHFORTH

            weights = ADAMS_BASHFORTH[len(ds)]
            x = x + (to - sigma) * sum(w * d for w, d in zip(weights, ds, strict=True))
        else:
            x = x + (to - sigma) * d
    return x


def pulled_out(text):
    """The numbers as ComfyUI's ManualSigmas takes them: it knows no exponents."""
    return [float(n) for n in re.findall(r"[-+]?\d*\.?\d+", text)]


HELD = [
    baseline(),
    baseline("karras", 5, order=1),
    baseline("karras", 5, "heun", 2),
    preset("seed-sd-8").schedule,
    preset("ays-sd15").schedule,
    preset("oss-flux-10").schedule,
    from_sigmas([14.6, 5.0, 2.0, 1.0, 0.5], 0.05, [7.5] * 5, 4, "ipndm", SPEC),
    from_sigmas([0.9, 1e-5], 1e-7, [2.0] * 2, 1, "ddim", SPEC),
    guide(preset("seed-sd-8").schedule, 7.5, (0.3, 5.0)),
    guide(baseline("linspace", 20), 6.0, (0.28, 5.42)),
]


@pytest.mark.parametrize("schedule", HELD)
def test_comfyui_nodes_hold_the_schedule(schedule):
    text = export(schedule, "comfyui").text
    nodes = json.loads(text)
    assert pulled_out(nodes["ManualSigmas"]["sigmas"]) == list(schedule.sigmas)
    target = FLOW_TARGET if schedule.flow else TARGET
    assert same_trajectory(read(text, "comfyui", target), schedule)
    name = nodes["KSamplerSelect"]["sampler_name"]
    run = k_diffusion(name, schedule.sigmas, START)
    assert run.numpy() == pytest.approx(ours(schedule, START).numpy(), abs=1e-9)


@pytest.mark.parametrize("schedule", HELD)
def test_stable_diffusion_cpp_arguments_hold_the_schedule(schedule):
    text = export(schedule, "sd.cpp").text
    words = shlex.split(text)
    sigmas = words[words.index("--sigmas") + 1]
    assert [float(s) for s in sigmas.split(",")] == list(schedule.sigmas)
    assert "e" not in sigmas
    target = FLOW_TARGET if schedule.flow else TARGET
    assert same_trajectory(read(f"sd -m x.gguf {text}", "sd.cpp", target), schedule)
    name = words[words.index("--sampling-method") + 1]
    run = k_diffusion(name, schedule.sigmas, START, zero_lowers=False)
    assert run.numpy() == pytest.approx(ours(schedule, START).numpy(), abs=1e-9)


def same_trajectory(a, b):
    """Equal up to the solver's name and what no solver reads."""
    neutral = {"provenance": {}, "solver": "dpmpp-midpoint"}
    if "heun" not in (a.solver, b.solver) and "ipndm" not in (a.solver, b.solver):
        a, b = replace(a, **neutral), replace(b, **neutral)
    return replace(a, provenance={}) == replace(b, provenance={})


def test_guidance_of_stable_diffusion_cpp_runs_from_the_last_steps_to_the_first():
    schedule = from_sigmas([10.0, 5.0, 2.0, 1.0], 0.1, [8.0, 6.0, 6.0, 4.0], 1, "ddim", SPEC)
    words = shlex.split(export(schedule, "sd.cpp").text)
    assert words[-2:] == ["--extra-sample-args", "guidance_schedule=4.0x1+6.0x2+8.0x1"]
    short = "--sigmas 10,5,2,1,0.1 --cfg-scale 8 --extra-sample-args guidance_schedule=4x1+6x2,mu=1"
    scales = [s.guidance_scale for s in read(short, "sd.cpp", TARGET).steps]
    assert scales == [8.0, 6.0, 6.0, 4.0]


def test_guidance_ranges_of_comfyui_lie_between_the_steps():
    schedule = guide(preset("seed-sd-8").schedule, 7.5, (0.3, 5.0))
    ranges = json.loads(export(schedule, "comfyui").text)["CFGOverride"]
    assert [r["cfg"] for r in ranges] == [1.0, 7.5, 1.0][: len(ranges)]
    assert (ranges[0]["start_percent"], ranges[-1]["end_percent"]) == (0.0, 1.0)
    for earlier, later in pairwise(ranges):
        assert earlier["end_percent"] == later["start_percent"]
        boundary = 999 * (1 - later["start_percent"])
        distance = min(abs(SD.timestep(s.sigma) - boundary) for s in schedule.steps)
        assert distance > 20  # timesteps: a boundary is nowhere near a step
    close = from_sigmas([2.0, 1.9999], 0.1, [1.0, 2.0], 1, "ddim", SPEC)
    with pytest.raises(UserError, match="steps 0 and 1 are too close for a percent of 3 digits"):
        export(close, "comfyui")


def test_distilled_guidance_has_its_own_node_and_argument():
    schedule = preset("oss-flux-10").schedule
    nodes = json.loads(export(schedule, "comfyui").text)
    assert nodes["FluxGuidance"] == {"guidance": 3.5}
    assert nodes["CFGGuider"] == {"cfg": 1.0}
    assert "--cfg-scale 1.0 --guidance 3.5" in export(schedule, "sd.cpp").text


def test_a_bare_list_gets_the_solver_order_and_guidance_asked_for():
    target = Target(SD, SPEC, "exact", 2, 5.0)
    made = read("[14.6, 3.0, 1.0, 0.0]\n", "comfyui", target)
    assert made == from_sigmas([14.6, 3.0, 1.0], 0.0, [5.0] * 3, 2, "exact", SPEC)
    assert read("14.6 3.0\n1.0, 0.0", "comfyui", target) == made
    assert read("--sigmas 14.6,3.0,1.0,0.0", "sd.cpp", target) == made


@pytest.mark.parametrize(
    ("text", "source", "message"),
    [
        ("x, y", "comfyui", "expected a list of sigmas, could not convert"),
        ("", "comfyui", "expected a list of sigmas"),
        ("1.0", "comfyui", "at least two sigmas, got 1"),
        ("--sigmas 1.0", "sd.cpp", "at least two sigmas, got 1"),
        ("1.0, 2.0", "comfyui", "step 0: sigma must fall, got 1 -> 2"),
        ("nan, 2.0", "comfyui", "must be finite"),
        ("{", "comfyui", "expected JSON with the inputs of ManualSigmas"),
        ('{"ManualSigmas": 3}', "comfyui", "expected JSON with the inputs of ManualSigmas"),
        (
            '{"ManualSigmas": {"sigmas": "2,1"}, "KSamplerSelect": {"sampler_name": "lcm"}, '
            '"CFGGuider": {"cfg": 1}}',
            "comfyui",
            "sampler_name must be one of euler, heun, ipndm, dpmpp_2m, got 'lcm'",
        ),
        (
            '{"ManualSigmas": {"sigmas": "2,1"}, "KSamplerSelect": {"sampler_name": ["euler"]}, '
            '"CFGGuider": {"cfg": 1}}',
            "comfyui",
            r"sampler_name must be one of euler, heun, ipndm, dpmpp_2m, got \['euler'\]",
        ),
        ("--steps 4", "sd.cpp", "with --sigmas"),
        ("--sigmas '2,1", "sd.cpp", "No closing quotation"),
        ("--sigmas 2,1 --sampling-method lcm", "sd.cpp", "--sampling-method must be one of"),
        ("--sigmas 2,1 --cfg-scale x", "sd.cpp", "--cfg-scale must be a number, got 'x'"),
        (
            "--sigmas 2,1 --extra-sample-args guidance_schedule=7",
            "sd.cpp",
            "expected <scale>x<steps>, got '7'",
        ),
        ("[]", "diffusers", "expected JSON with scheduler, config, call"),
        ('{"scheduler": "DDIM", "config": {}, "call": {"sigmas": []}}', "diffusers", "must be one"),
        (
            '{"scheduler": "EulerDiscreteScheduler", "config": {}, "call": {"sigmas": []}}',
            "diffusers",
            "sigmas must not be empty",
        ),
        ("1, 0", "toml", "the format must be one of comfyui, sd.cpp, diffusers, got 'toml'"),
        ("1, 0", "forge", "forge has no documented way"),
    ],
)
def test_other_texts_are_refused_in_one_sentence(text, source, message):
    with pytest.raises(UserError, match=message) as caught:
        read(text, source, TARGET)
    assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("to", ["comfyui", "sd.cpp"])
def test_every_preset_is_held_or_refused(name, to):
    schedule = preset(name).schedule
    try:
        text = export(schedule, to)
    except UserError:
        text = export(schedule, to, lossy=True)
        assert text.lost
    else:
        assert not text.lost
        target = Target(FlowSchedule(), schedule.model) if schedule.flow else TARGET
        assert read(text.text, to, target).sigmas == schedule.sigmas


texts = st.text(alphabet='0123456789.,-+e[]{}":x= \nsigmas-', max_size=60)


@settings(max_examples=300)
@given(texts, st.sampled_from(["comfyui", "sd.cpp", "diffusers"]))
def test_no_text_raises_anything_else(text, source):
    with suppress(UserError):
        read(f"--sigmas {text}" if source == "sd.cpp" else text, source, TARGET)


INTERVAL = guide(baseline("linspace", 20), 6.0, (0.28, 5.42))
EXPORTED = [
    (export(schedule, to, lossy=True).text, to.partition(":")[0], target)
    for schedule, to, target in [
        (INTERVAL, "comfyui", TARGET),
        (preset("oss-flux-10").schedule, "comfyui", FLOW_TARGET),
        (baseline(), "diffusers:DPMSolverMultistepScheduler", TARGET),
        (baseline(order=1), "diffusers:EulerDiscreteScheduler", TARGET),
        (flow(), "diffusers:FlowMatchEulerDiscreteScheduler", FLOW_TARGET),
    ]
]
ODD = [None, True, 0, -1, 0.5, 2, 10**400, float("nan"), float("inf"), -1e308, 1e-320, "", "x", "1"]
ODD += [[], ["x"], [0], [[1]], {}, {"x": 1}]


def places(value, path=()):
    """Paths to everything inside of a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in inside if isinstance(value, (dict, list)) else ():
        yield (*path, key)
        yield from places(part, (*path, key)) if isinstance(part, (dict, list)) else ()


@pytest.mark.parametrize(("text", "source", "target"), EXPORTED)
def test_no_odd_value_in_an_exported_text_raises_anything_else(text, source, target):
    data = json.loads(text)
    read(text, source, target)
    for *path, last in [*places(data), ("config", "shift"), ("config", "solver_order")]:
        parent = data
        for key in path:
            parent = parent.setdefault(key, {}) if isinstance(parent, dict) else parent[key]
        before = dict(parent) if isinstance(parent, dict) else list(parent)
        for odd in ODD:
            parent[last] = odd
            with suppress(UserError):
                read(json.dumps(data), source, target)
            if isinstance(parent, dict):
                parent.clear()
                parent.update(before)
            else:
                parent[:] = before


def test_a_schedule_with_unused_features_is_held():
    """Golden noise and Free-U are lost, an unused prediction form is not."""
    first_order = Schedule(
        (Step(10.0, 5.0, prediction="noise"), Step(2.0, 5.0)), 0.1, "exact", SPEC
    )
    assert export(first_order, "comfyui").lost == ()
    lost = export(
        replace(
            first_order,
            golden_noise=GoldenNoise(9.0, 5.0),
            steps=(Step(10.0, 5.0, free_u=FreeU(1, 1, 1, 1)),),
        ),
        "comfyui",
        lossy=True,
    ).lost
    assert lost == ("golden_noise", "Free-U per step")


def test_a_step_scheduler_is_exported_as_the_file_of_its_folder(tmp_path):
    from stepsampler.scheduler import StepScheduler

    plan = open_schedule("seed-unipc-sd-6-plain")
    (tmp_path / "scheduler_config.json").write_text(export(plan, "diffusers:StepScheduler").text)
    scheduler = StepScheduler.from_pretrained(tmp_path)
    assert scheduler.config.beta_schedule == "scaled_linear"
    assert scheduler.sigmas.tolist() == pytest.approx(plan.sigmas, rel=1e-6)
    with pytest.raises(UserError, match="cannot hold Free-U per step"):
        export(open_schedule("seed-sd-8-free"), "diffusers:StepScheduler")
