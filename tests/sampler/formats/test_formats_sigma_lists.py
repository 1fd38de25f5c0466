"""Exports for ComfyUI and stable-diffusion.cpp, which take a list of sigmas."""

import json
import re
import shlex
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from exporting import FLOW_TARGET, SD, SPEC, START, TARGET, baseline, ours, toy_x0

from stepsampler import UserError
from stepsampler.formats import Target, export, read, reading
from stepsampler.grids import from_sigmas, guide
from stepsampler.presets import preset


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
    text = export(schedule, "sd.cpp", version="mended").text
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


BY_STEP = from_sigmas([10.0, 5.0, 2.0, 1.0], 0.1, [8.0, 6.0, 6.0, 4.0], 1, "ddim", SPEC)


def told(text, n, counts_from_one):
    """The scale of each step as stable-diffusion.cpp takes it: `guidance.cpp`, 97d2990."""
    words = shlex.split(text)
    cfg = float(words[words.index("--cfg-scale") + 1])
    spec = words[words.index("--extra-sample-args") + 1].removeprefix("guidance_schedule=")
    runs = [part.split("x") for part in spec.split("+")]
    scales = [float(scale) for scale, count in runs for _ in range(int(count))]
    if len(scales) > n + 1:
        scales = scales[:n]
    scales += [cfg] * (n - len(scales))
    places = [len(scales) - 1 - (i + counts_from_one) for i in range(n)]
    assert min(places) >= 0, "reads before the list"
    return [scales[place] for place in places]


@pytest.mark.parametrize(("version", "counts_from_one"), [("97d2990", 1), ("mended", 0)])
def test_each_step_of_stable_diffusion_cpp_gets_its_own_guidance(version, counts_from_one):
    exported = export(BY_STEP, "sd.cpp", version=version)
    assert told(exported.text, 4, counts_from_one) == [8.0, 6.0, 6.0, 4.0]
    assert read(exported.text, "sd.cpp", TARGET) == BY_STEP
    with pytest.raises(AssertionError, match="before the list"):
        told(export(BY_STEP, "sd.cpp", version="mended").text, 4, 1)


def test_guidance_per_step_of_stable_diffusion_cpp_needs_a_version():
    with pytest.raises(
        UserError, match=r"cannot hold guidance per step \(8.0 instead\): .*97d2990"
    ):
        export(BY_STEP, "sd.cpp")
    with pytest.raises(UserError, match="--for-version must be one of 97d2990, mended, got 'x'"):
        export(BY_STEP, "sd.cpp", version="x")
    lost = export(BY_STEP, "sd.cpp", lossy=True)
    assert "guidance_schedule" not in lost.text
    interval = export(guide(baseline(), 7.5, (0.5, 3.0)), "sd.cpp", version="mended")
    assert interval.notes[-1] == "unguided steps save no passes there"
    assert export(baseline(), "sd.cpp").notes == ()


@pytest.mark.parametrize("to", ["comfyui", "comfyui-workflow", "sd.cpp"])
def test_heun_with_guidance_per_step_is_lost(to):
    heun = guide(baseline("karras", 5, "heun", 2), 7.5, (0.5, 3.0))
    with pytest.raises(UserError, match="guidance per step .* Heun step get"):
        export(heun, to, version="mended" if to == "sd.cpp" else None)
    assert export(baseline("karras", 5, "heun", 2), to).lost == ()


def test_guidance_of_stable_diffusion_cpp_runs_from_the_last_steps_to_the_first():
    words = shlex.split(export(BY_STEP, "sd.cpp", version="mended").text)
    assert words[-2:] == ["--extra-sample-args", "guidance_schedule=4.0x1+6.0x2+8.0x1"]
    short = "--sigmas 10,5,2,1,0.1 --cfg-scale 8 --extra-sample-args guidance_schedule=4x1+6x2"
    scales = [s.guidance_scale for s in read(short, "sd.cpp", TARGET).steps]
    assert scales == [8.0, 6.0, 6.0, 4.0]


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        ("--extra-sample-args guidance_schedule=4x4,apg_eta=1", "apg_eta=1 of --extra-sample-args"),
        ("--slg-scale 2.5", "--slg-scale 2.5"),
        ("--prediction v", "--prediction v of another model"),
        ("--guidance 3.5 --cfg-scale 4", "--cfg-scale 4 beside --guidance"),
        ("--hires --init-img a.png", "--hires; --init-img a.png"),
        (
            "--sampling-method heun --extra-sample-args guidance_schedule=4x1+6x3",
            "guidance per step of heun",
        ),
    ],
)
def test_other_arguments_that_bend_the_sampling_are_named(words, lost):
    text = f"--sigmas 10,5,2,1,0.1 {words}"
    with pytest.raises(UserError, match=f"a schedule does not hold {re.escape(lost)}"):
        reading(text, "sd.cpp", TARGET)
    assert reading(text, "sd.cpp", TARGET, lossy=True).schedule.num_steps == 4


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
