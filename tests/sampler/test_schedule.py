import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepsampler import FORMAT, ModelSpec, Schedule, ScheduleError, Step, load

SD = ModelSpec("stable-diffusion", "epsilon", (0.029, 0.6, 1.6, 4.6, 14.6))


@st.composite
def schedules(draw):
    n = draw(st.integers(1, 12))
    levels = sorted(
        draw(st.lists(st.floats(1e-4, 100), min_size=n + 1, max_size=n + 1, unique=True)),
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
        ((Step(1),), 1.5, "ddim", "step 0: sigma must fall, got 1 -> 1.5"),
        ((Step(1),), -0.5, "ddim", "final_sigma must be finite and >= 0, got -0.5"),
        ((Step(1),), float("nan"), "ddim", "final_sigma must be finite"),
        ((Step(float("inf")),), 0.0, "ddim", "step 0: numbers must be finite"),
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
