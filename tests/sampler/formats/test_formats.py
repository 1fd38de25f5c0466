"""What every format refuses or loses, by name; whatever it is given to read."""

import json
from contextlib import suppress
from dataclasses import replace

import pytest
from exporting import FLOW_TARGET, SPEC, TARGET, baseline, flow
from hypothesis import given, settings
from hypothesis import strategies as st
from workflows import KSAMPLER, between, inside, page

from stepsampler import FreeU, GoldenNoise, ModelSpec, Schedule, Step, UserError
from stepsampler.formats import Target, export, read
from stepsampler.grids import from_sigmas, guide
from stepsampler.noise import FlowSchedule
from stepsampler.presets import names, preset


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
        (baseline(), "diffusers", "so give one after a colon; StepScheduler runs any"),
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
        (
            baseline(),
            "invoke",
            "the format must be one of comfyui, comfyui-workflow, sd.cpp, diffusers",
        ),
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


@pytest.mark.parametrize(
    ("text", "source", "message"),
    [
        ("x, y", "comfyui", "expected a list of sigmas, found no number in 'x, y'"),
        ("", "comfyui", "expected a list of sigmas"),
        ("1.0", "comfyui", "at least two sigmas, got 1"),
        ("--sigmas 1.0", "sd.cpp", "at least two sigmas, got 1"),
        ("1.0, 2.0", "comfyui", "step 0: sigma must fall, got 1 -> 2"),
        ("nan, 2.0, 1.0", "comfyui", "ManualSigmas knows no 'nan', and passes over it"),
        ("5, 1e-2", "comfyui", "knows no exponents, and reads '1e-2' as two numbers"),
        ("{", "comfyui", "expected JSON with the inputs of ManualSigmas"),
        ('{"ManualSigmas": 3}', "comfyui", "expected JSON with the inputs of ManualSigmas"),
        (
            '{"ManualSigmas": {"sigmas": "2,1"}, "KSamplerSelect": {"sampler_name": "lcm"}, '
            '"CFGGuider": {"cfg": 1}}',
            "comfyui",
            "sampler_name must be one of euler, heun, ipndm, dpmpp_2m, ddim, got 'lcm'",
        ),
        (
            '{"ManualSigmas": {"sigmas": "2,1"}, "KSamplerSelect": {"sampler_name": ["euler"]}, '
            '"CFGGuider": {"cfg": 1}}',
            "comfyui",
            r"sampler_name must be one of euler, heun, ipndm, dpmpp_2m, ddim, got \['euler'\]",
        ),
        ("--steps 4", "sd.cpp", "with --sigmas"),
        ("--sigmas '2,1", "sd.cpp", "a quote in it is not closed"),
        ("--sigmas 2,1 --sampling-method lcm", "sd.cpp", "--sampling-method must be one of"),
        ("--sigmas 2,1 --cfg-scale x", "sd.cpp", "--cfg-scale must be a number, got 'x'"),
        (
            "--sigmas 2,1 --extra-sample-args guidance_schedule=7",
            "sd.cpp",
            "expected <scale>x<steps>, got '7'",
        ),
        ("{}", "diffusers", "expected JSON with scheduler, config, call"),
        ('{"scheduler": "DDIM", "config": {}, "call": {"sigmas": []}}', "diffusers", "must be one"),
        (
            '{"scheduler": "EulerDiscreteScheduler", "config": {}, "call": {"sigmas": []}}',
            "diffusers",
            "sigmas must not be empty",
        ),
        (
            "1, 0",
            "toml",
            "the format must be one of comfyui, comfyui-workflow, sd.cpp, diffusers, got 'toml'",
        ),
        ("1, 0", "forge", "forge has no documented way"),
    ],
)
def test_other_texts_are_refused_in_one_sentence(text, source, message):
    with pytest.raises(UserError, match=message) as caught:
        read(text, source, TARGET)
    assert "\n" not in str(caught.value)


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
        (INTERVAL, "comfyui-workflow", TARGET),
        (preset("oss-flux-10").schedule, "comfyui", FLOW_TARGET),
        (baseline(), "diffusers:DPMSolverMultistepScheduler", TARGET),
        (baseline(order=1), "diffusers:EulerDiscreteScheduler", TARGET),
        (flow(), "diffusers:FlowMatchEulerDiscreteScheduler", FLOW_TARGET),
    ]
]
EXPORTED += [
    (json.dumps(data), "comfyui", TARGET)
    for data in (
        KSAMPLER,
        between(page(), "ModelSamplingDiscrete", ["eps", False]),
        between(page(), "CFGOverride", [1.0, 0.0, 0.5]),
        inside(page(), promoted=4.0),
    )
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
