import json
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepsampler import (
    FORMAT,
    FreeU,
    GoldenNoise,
    ModelSpec,
    Schedule,
    ScheduleError,
    Step,
    load,
)

SD = ModelSpec("stable-diffusion", "epsilon", (0.029, 0.6, 1.6, 4.6, 14.6))


@st.composite
def schedules(draw):
    n = draw(st.integers(1, 12))
    levels = sorted(
        draw(
            st.lists(
                st.floats(1e-3, 100),
                min_size=n + 1,
                max_size=n + 1,
                unique_by=lambda s: round(s, 6),
            )
        ),
        reverse=True,
    )
    final = draw(st.sampled_from([0.0, levels[-1]]))
    solver = draw(st.sampled_from(["ddim", "dpmpp-midpoint", "dpmpp-heun", "exact"]))
    highest = 1 if solver == "ddim" else 3
    orders = [draw(st.integers(1, min(i + 1, highest))) for i in range(n)]
    if final == 0:
        orders[-1] = 1
    scales = draw(st.lists(st.floats(0, 20), min_size=n, max_size=n))
    steps = tuple(Step(s, w, o) for s, w, o in zip(levels, scales, orders, strict=False))
    model = draw(st.sampled_from([None, SD]))
    return Schedule(steps, final, solver, model, draw(st.sampled_from([{}, {"a": [1, "é"]}])))


@given(schedules())
def test_no_number_changes_in_a_round_trip(schedule):
    again = Schedule.from_json(schedule.to_json())
    assert again == schedule
    assert again.to_json() == schedule.to_json()


@given(schedules())
def test_passes_count_guided_steps_twice(schedule):
    unguided = sum(step.guidance_scale == 1 for step in schedule.steps)
    assert schedule.passes == 2 * schedule.num_steps - unguided


def test_a_file_survives(tmp_path):
    schedule = Schedule((Step(1.0 / 3, 7.5, 1),), 0.1, "ddim", SD, {"study": "x"})
    schedule.save(tmp_path / "deep" / "x.json")
    assert load(tmp_path / "deep" / "x.json") == schedule
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x.json"]  # no temporary is left


@pytest.mark.parametrize(
    ("steps", "final_sigma", "solver", "message"),
    [
        ((), 0.0, "ddim", "at least one step"),
        ((Step(1), Step(1)), 0.0, "ddim", "step 0: sigma must fall, got 1 -> 1"),
        ((Step(1), Step(2)), 0.0, "ddim", "step 0: sigma must fall, got 1 -> 2"),
        ((Step(1), Step(1 - 1e-12)), 0.0, "ddim", "step 0: sigma must fall, got 1 -> 1"),
        ((Step(1),), 1.5, "ddim", "step 0: sigma must fall, got 1 -> 1.5"),
        ((Step(1),), -0.5, "ddim", "final_sigma must be finite and >= 0, got -0.5"),
        ((Step(1),), float("nan"), "ddim", "final_sigma must be finite"),
        ((Step(float("inf")),), 0.0, "ddim", "step 0: sigma must be finite"),
        ((Step(1, -2.0),), 0.0, "ddim", "step 0: guidance_scale must be >= 0, got -2"),
        ((Step(2), Step(1, 1, 2)), 0.1, "ddim", "step 1: order of ddim must be 1 to 1"),
        ((Step(2, 1, 2),), 0.1, "exact", "step 0: order of exact must be 1 to 1 here, got 2"),
        ((Step(2), Step(1, 1, 2)), 0.0, "exact", "step 1: the step onto sigma 0 must have order 1"),
        ((Step(2),), 0.0, "rk4", "solver must be one of ddim, .*, got 'rk4'"),
    ],
)
def test_what_cannot_be_sampled_is_refused(steps, final_sigma, solver, message):
    with pytest.raises(ScheduleError, match=message):
        Schedule(steps, final_sigma, solver)


def edited(**changes):
    data = json.loads(Schedule((Step(1.0),), 0.0, "ddim", SD).to_json())
    data.update(changes)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected format 'stepsearch.schedule/1', got None"),
        (edited(format="stepsearch.schedule/9"), "got 'stepsearch.schedule/9'"),
        (edited(churn=1), "unknown key 'churn'"),
        (edited(steps=3), "steps must be a list, got 3"),
        (edited(steps=[3]), "step 0 must be an object, got 3"),
        (edited(steps=[{"sigma": 1, "guidance_scale": 1}]), "step 0: order is missing"),
        (
            edited(steps=[{"sigma": "1", "guidance_scale": 1, "order": 1}]),
            "step 0: sigma must be a number, got '1'",
        ),
        (
            edited(steps=[{"sigma": 1, "guidance_scale": True, "order": 1}]),
            "step 0: guidance_scale must be a number, got True",
        ),
        (
            edited(steps=[{"sigma": 1, "guidance_scale": 1, "order": 1.5}]),
            "step 0: order must be a whole number, got 1.5",
        ),
        (edited(final_sigma=None), "final_sigma must be a number, got None"),
        (edited(provenance=[]), r"provenance must be an object, got \[\]"),
        (edited(model={"family": "x"}), "model: prediction_type is missing"),
        (json.dumps({"format": FORMAT, "steps": [], "solver": "ddim"}), "final_sigma is missing"),
    ],
)
def test_what_cannot_be_read_is_refused(text, message):
    with pytest.raises(ScheduleError, match=message):
        Schedule.from_json(text)


def test_errors_name_the_file(tmp_path):
    with pytest.raises(ScheduleError, match=r"absent\.json: No such file"):
        load(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ScheduleError, match=r"bad\.json"):
        load(tmp_path / "bad.json")


def test_reading_a_schedule_needs_no_torch():
    code = (
        "import stepsampler, sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


FULL = Schedule(
    (
        Step(14.6, 1.0, 1, True, "noise", 0.975),
        Step(2.0, 5.0, 2, True, "data", guidance_rescale=0.7),
        Step(1.0, 5.0, 1, free_u=FreeU(1.1, 1.2, 0.9, 0.2)),
    ),
    0.1,
    "unipc-bh1",
    SD,
    decode="alpha-x",
    golden_noise=GoldenNoise(14.0, 5.0, "inversion"),
)


def test_every_optional_key_survives_a_round_trip_and_defaults_are_not_written():
    again = Schedule.from_json(FULL.to_json())
    assert again == FULL
    data = json.loads(FULL.to_json())
    assert data["steps"][0] == {
        "sigma": 14.6,
        "guidance_scale": 1.0,
        "order": 1,
        "corrector": True,
        "prediction": "noise",
        "analytic": 0.975,
    }
    assert data["steps"][2]["free_u"] == {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}
    assert (data["decode"], data["golden_noise"]["start"]) == ("alpha-x", "inversion")
    plain = json.loads(Schedule((Step(1.0),), 0.0, "ddim").to_json())
    assert list(plain) == ["format", "solver", "steps", "final_sigma"]
    assert list(plain["steps"][0]) == ["sigma", "guidance_scale", "order"]


def test_passes_count_what_is_called():
    assert FULL.passes == 0 + 2 + 2 + 4  # an analytic step, two guided ones, golden noise
    flow = ModelSpec("flux", "flow_prediction", (0.0, 0.5, 1.0))
    heun = Schedule((Step(1.0, 3.0, 2), Step(0.5, 1.0, 2), Step(0.2, 3.0)), 0.0, "heun", flow)
    assert heun.passes == 4 + 2 + 2
    assert replace(heun, guidance="distilled").passes == 5


FLOW = ModelSpec("flux", "flow_prediction", (0.0, 0.5, 1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver": "dpmpp-midpoint"}, "step 0: dpmpp-midpoint has no corrector; unipc-bh1, unipc"),
        ({"decode": "latent"}, "decode must be one of x, alpha-x, got 'latent'"),
        ({"guidance": "auto"}, "guidance must be one of classifier-free, distilled, got 'auto'"),
        ({"model": FLOW}, "step 0: only the first step may be analytic, of a variance-preserving"),
        ({"golden_noise": GoldenNoise(14.6, 5.0)}, "golden_noise: sigma must be between 0 and"),
        ({"golden_noise": GoldenNoise(0.0, 5.0)}, "golden_noise: sigma must be between 0 and"),
        ({"golden_noise": GoldenNoise(14.0, -1.0)}, "golden_noise: guidance_scale must be >= 0"),
        ({"golden_noise": GoldenNoise(14.0, 5.0, "x")}, "golden_noise: start must be one of"),
        (
            {"steps": (Step(2.0, corrector=True),)},
            "step 0: no prediction follows the last step to correct it",
        ),
        ({"steps": (Step(2.0, prediction="v"),)}, "step 0: prediction must be one of data, noise"),
        (
            {"steps": (Step(2.0, prediction="data"),), "solver": "ipndm"},
            "step 0: ipndm has no data or noise form",
        ),
        (
            {"steps": (Step(2.0), Step(1.0, analytic=1.0))},
            "step 1: only the first step may be analytic",
        ),
        ({"steps": (Step(2.0, analytic=1.0),), "solver": "heun"}, "and not with heun"),
        ({"steps": (Step(2.0, analytic=float("nan")),)}, "step 0: analytic must be finite"),
        (
            {"steps": (Step(2.0), Step(1.0, churn=1.5))},
            r"step 1: churn must be in \[0, 1\], got 1.5",
        ),
        (
            {"steps": (Step(2.0, churn=0.5),)},
            "step 0: only a later step of a variance-preserving model may have churn",
        ),
        (
            {"steps": (Step(2.0, guidance_rescale=1.5),)},
            r"step 0: guidance_rescale must be in \[0, 1\], got 1.5",
        ),
        ({"steps": (Step(2.0, free_u=FreeU(1, 1, 0, 1)),)}, "step 0: s1 of free_u must be > 0"),
        ({"steps": (Step(2.0, 1.0, 2),)}, "order of unipc-bh1 must be 1 to 1 here, got 2"),
        ({"steps": (Step(2.0, 1.0, True),)}, "order of unipc-bh1 must be 1 to 1 here, got True"),
        (
            {"steps": (Step(2.0, 1.0, 3),), "solver": "heun"},
            "step 0: order of heun must be 1 to 2 here, got 3",
        ),
        (
            {"steps": (Step(1.5),), "model": FLOW, "golden_noise": None},
            "step 0: sigma of a flow model is at most 1, got 1.5",
        ),
        (
            {"steps": (Step(0.9),), "model": FLOW, "golden_noise": None},
            "decode of a flow model must be x, got 'alpha-x'",
        ),
        (
            {"steps": (Step(0.9),), "model": FLOW, "decode": "x"},
            "golden_noise is for variance-preserving models",
        ),
    ],
)
def test_each_new_rule_has_its_sentence(change, message):
    with pytest.raises(ScheduleError, match=message):
        replace(FULL, **change)


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        ("step", "corrector", 1, "step 0: corrector must be true or false"),
        ("step", "prediction", 3, "step 0: prediction must be one of data, noise, got 3"),
        ("step", "analytic", "1", "step 0: analytic must be a number, got '1'"),
        ("step", "guidance_rescale", None, "step 0: guidance_rescale must be a number, got None"),
        ("step", "sigma", None, "step 0: sigma must be a number, got None"),
        ("step", "free_u", [1], r"step 0: free_u must be an object, got \[1\]"),
        ("step", "free_u", {"b1": 1}, "step 0: free_u: b2 is missing"),
        ("step", "free_u", {"b3": 1}, "step 0: free_u: unknown key 'b3'"),
        ("step", "shake", 0.1, "step 0: unknown key 'shake'; known are sigma, guidance_scale"),
        ("file", "golden_noise", {"sigma": 1}, "golden_noise: guidance_scale is missing"),
        ("file", "golden_noise", 3, "golden_noise must be an object, got 3"),
        ("file", "decode", None, "decode must be one of x, alpha-x, got None"),
        ("file", "guidance", ["x"], r"guidance must be one of classifier-free, .*, got \['x'\]"),
        ("file", "solver", "x" * 99, "solver must be one of ddim, .*, got 'x{59}…"),
        ("file", "provenance", [], r"provenance must be an object, got \[\]"),
    ],
)
def test_each_wrong_type_of_a_new_key_has_its_sentence(place, key, value, message):
    data = json.loads(FULL.to_json())
    (data["steps"][0] if place == "step" else data)[key] = value
    with pytest.raises(ScheduleError, match=message):
        Schedule.from_json(json.dumps(data))
