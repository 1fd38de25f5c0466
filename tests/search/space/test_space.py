from dataclasses import replace
from itertools import pairwise
from math import inf

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from running import EVERYTHING, SD, SPEC, space

from stepsampler import UserError
from stepsampler.grids import GRIDS, from_sigmas, make_schedule, power
from stepsampler.noise import FlowSchedule
from stepsearch.config.space import SpaceConfig
from stepsearch.engine.study import make_algorithm
from stepsearch.space.box import SearchSpace
from stepsearch.space.guidance import within_budget


def centre(box):
    return dict.fromkeys(box.distributions, 0.0) | {
        "final_sigma": GRIDS[box.grid](box.config.num_steps, SD)[-1],
        "order": 2.0,
        **{f"guidance_scale_{i}": 2.0 for i in range(box.config.num_steps)},
    }


def draw(data, box):
    """Any point of the box, as an algorithm may propose it."""
    return {
        name: data.draw(st.floats(d.low, d.high), label=name)
        for name, d in box.distributions.items()
    }


@given(st.data(), st.sampled_from(sorted(GRIDS)), st.integers(2, 9), st.integers(0, 4))
def test_every_point_of_the_box_is_a_schedule_within_the_budget(data, grid, steps, more):
    passes = data.draw(st.integers(steps + more, 2 * (steps + more)))
    guidance = data.draw(st.sampled_from(["per-step", "linear", "constant"]))
    box = space(steps, passes, grid, max_steps=steps + more, guidance=guidance)
    point = draw(data, box)
    schedule = box.schedule(point)
    assert steps <= schedule.num_steps <= steps + more
    assert schedule.passes <= passes
    assert schedule.model == SPEC


def test_the_centre_of_the_box_is_the_grid():
    box = space()
    assert box.schedule(centre(box)).sigmas == pytest.approx(GRIDS["power"](5, SD), rel=1e-3)


def test_the_centre_is_the_grid_at_other_numbers_of_steps_too():
    box = space(max_steps=8)
    point = centre(box) | {"num_steps": 7.0, "final_sigma": GRIDS["power"](7, SD)[-1]}
    assert box.schedule(point).sigmas == pytest.approx(GRIDS["power"](7, SD), rel=1e-3)
    assert box.schedule(point).passes == 8  # one of seven guided steps is all that eight passes pay


def test_linear_guidance_falls_and_goes_off():
    box = space(passes=10, guidance="linear")
    point = centre(box) | {"guidance_scale": 1.5, "guidance_slope": -1.25}
    scales = [step.guidance_scale for step in box.schedule(point).steps]
    assert scales == pytest.approx([2.5, 2.0, 1.5, 1.0, 1.0])
    assert box.schedule(point).passes == 8


@pytest.mark.parametrize("grid", ["power", "uniform-logsnr", "linspace", "ays-sdxl"])
@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_known_schedules_of_this_many_steps_are_points_of_the_box(grid, scale):
    box = space(passes=10, grid="power", log_gap=(-6.0, 6.0))
    schedule = make_schedule(grid, 5, SD, guidance_scale=scale)
    point, same = box.params(schedule)
    assert same
    again = box.schedule(point)
    assert again.sigmas == pytest.approx(schedule.sigmas, rel=1e-3)
    assert [s.guidance_scale for s in again.steps] == [scale] * 5


def test_ten_unguided_steps_are_a_point_of_a_box_that_reaches_them():
    box = space(passes=10, max_steps=10, guidance="linear")
    schedule = make_schedule("power", 10, SD)
    point, same = box.params(schedule)
    assert same
    assert box.schedule(point).passes == 10


def test_a_schedule_outside_of_the_box_gives_the_nearest_point_and_says_so():
    box = space(passes=10, log_gap=(-0.1, 0.1))
    point, same = box.params(make_schedule("karras", 5, SD, guidance_scale=5.0))
    assert not same
    for name, d in box.distributions.items():
        assert d.low <= point[name] <= d.high


def test_a_centre_without_a_formula_takes_in_schedules_of_other_numbers_of_steps():
    """An earlier run's, or unguided ones with all the passes; its own steps it has as placed."""
    placed = {n: GRIDS["power"](n, SD) for n in (5, 6)}
    box = replace(space(5, 10, "gits", max_steps=6), placements=placed)
    assert [box.centre(n) for n in (5, 6)] == [placed[n] for n in (5, 6)]
    for n in (2, 4, 10):
        sigmas = box.centre(n)
        assert len(sigmas) == n + 1
        assert all(a > b for a, b in pairwise(sigmas))
        point, same = box.params(make_schedule("power", n, SD, guidance_scale=1.5))
        assert not same
        assert box.schedule(point).num_steps in (5, 6)
    assert box.params(make_schedule("power", 6, SD))[1]


@given(
    st.data(),
    st.sampled_from(["curve", "power", "karras"]),
    st.sampled_from(["per-step", "linear", "interval", "constant"]),
    st.integers(2, 6),
    st.integers(0, 3),
)
def test_every_axis_at_once_is_a_schedule_within_the_budget(data, placement, guidance, n, more):
    passes = data.draw(st.integers(n + more, 2 * (n + more)))
    first = None if placement == "power" else (8.0, 14.0)
    options = {**EVERYTHING, "placement": placement, "guidance": guidance, "first_sigma": first}
    box = space(n, passes, max_steps=n + more, **options)
    point = draw(data, box)
    schedule = box.schedule(point)
    assert schedule.passes <= passes
    if more == 0 and guidance == "per-step":  # at the knots nothing is lost on the way back
        back, same = box.params(schedule)
        assert same or placement != "curve", (back, point)


def test_fresh_noise_comes_at_every_step_that_may_have_it():
    box = space(4, 8, churn=(0.0, 0.3), solvers=["unipc-bh2", "dpmpp-midpoint"], corrector=True)
    point = centre(box) | {"churn": 0.2, "solver": 1.0, "corrector": 1.0}
    assert [s.churn for s in box.schedule(point).steps] == [0.0, 0.2, 0.2, 0.2]
    corrected = box.schedule(point | {"solver": 0.0})
    assert [s.churn for s in corrected.steps] == [0.0] * 4
    assert [s.corrector for s in corrected.steps] == [True, True, True, False]


def test_fresh_noise_of_each_step_is_a_curve():
    """Much early, none late, as in AdaSDE; more steps than knots interpolate."""
    box = space(4, 8, max_steps=8, churn=(-0.2, 0.9), fresh_noise="per-step")
    assert "churn" not in box.distributions
    knots = {"churn_0": 0.9, "churn_1": 0.6, "churn_2": 0.3, "churn_3": -0.2}
    plan = box.schedule(centre(box) | knots | {"num_steps": 4.0})
    assert [s.churn for s in plan.steps] == pytest.approx([0.0, 0.6, 0.3, 0.0])
    more = box.schedule(centre(box) | knots | {"num_steps": 8.0})
    # eight steps lie a quarter of a knot's distance to either side of each knot
    at = [0.825, 0.675, 0.525, 0.375, 0.175, 0.0, 0.0]
    assert [s.churn for s in more.steps] == pytest.approx([0.0, *at])
    for known in (plan, replace(plan, steps=tuple(replace(s, churn=0.0) for s in plan.steps))):
        point, same = box.params(known)
        assert same
        assert box.schedule(point) == known


def test_after_an_analytic_step_fresh_noise_begins_with_the_first_knot():
    options = {"churn": (0.0, 0.9), "fresh_noise": "per-step", "analytic": (0.8, 1.0)}
    box = space(3, 6, **options)
    point = centre(box) | {"analytic": 1.0, "churn_0": 0.8, "churn_1": 0.5, "churn_2": 0.1}
    plan = box.schedule(point | {"analytic_at": 0.5})
    assert [s.churn for s in plan.steps] == [0.0, 0.8, 0.5, 0.1]
    back, same = box.params(plan)
    assert same
    assert [back[f"churn_{i}"] for i in range(3)] == pytest.approx([0.8, 0.5, 0.1])


def test_one_churn_of_all_steps_is_what_it_was():
    """Points of studies that were searched before there was a curve."""
    box = space(4, 8, churn=(0.0, 0.3))
    assert [name for name in box.distributions if "churn" in name] == ["churn"]
    plan = box.schedule(centre(box) | {"churn": 0.2})
    assert [s.churn for s in plan.steps] == [0.0, 0.2, 0.2, 0.2]


@pytest.mark.parametrize("axis", ["guidance_rescale", "churn"])
def test_below_zero_is_off_and_off_has_a_part_of_the_box(axis):
    box = space(4, 8, **{axis: (-0.2, 0.6)})
    plan = box.schedule(centre(box) | {axis: -0.1})
    assert plan == box.schedule(centre(box) | {axis: 0.0})
    assert {getattr(step, axis) for step in plan.steps} == {0.0}
    assert box.schedule(centre(box) | {axis: 0.5}) != plan


def test_an_interval_of_one_value_is_no_axis():
    box = space(5, 10, final_sigma=(0.1, 0.1), guidance="constant", guidance_scale=(3.0, 3.0))
    assert not {"final_sigma", "guidance_scale"} & set(box.distributions)
    plan = box.schedule(dict.fromkeys(box.distributions, 0.0) | {"order": 2.0})
    assert plan.final_sigma == 0.1
    assert {step.guidance_scale for step in plan.steps} == {3.0}
    point, same = box.params(plan)
    assert same
    assert set(point) == set(box.distributions)
    law = space(5, 10, placement="power", rho=(1.3, 1.3), final_sigma=(0.03, 0.2))
    assert "rho" not in law.params(plan)[0]


@given(st.data(), st.integers(2, 9))
def test_linear_guidance_stays_within_its_bounds(data, n):
    box = space(n, 2 * n, guidance="linear", guidance_scale=(1.5, 9.0))
    for step in box.schedule(draw(data, box)).steps:
        assert 1.5 <= step.guidance_scale <= 9.0


def test_a_power_law_may_start_below_the_noisiest_timestep():
    box = space(5, 10, placement="power", first_sigma=(5.0, 15.0), final_sigma=(0.03, 0.2))
    plan = from_sigmas(power(5, SD, SD.timestep(0.1), 1.4, 8.0)[:-1], 0.1, [1.0] * 5, 1)
    point, same = box.params(plan)
    assert same
    assert (point["first_sigma"], point["rho"]) == pytest.approx((8.0, 1.4), rel=1e-3)


def test_without_guidance_no_step_has_any():
    box = space(4, 6, guidance="off", max_steps=6)
    assert not [name for name in box.distributions if "guid" in name]
    plan = box.schedule(centre(box) | {"num_steps": 6.0})
    assert (plan.num_steps, plan.passes) == (6, 6)
    assert box.params(plan)[1]


@pytest.mark.parametrize(
    ("axis", "value"), [("analytic", (0.8, 1.0)), ("churn", (0.0, 0.3)), ("decode", True)]
)
def test_what_a_flow_model_cannot_have_is_refused_before_any_trial(axis, value):
    noise, config = FlowSchedule(), SpaceConfig(num_steps=3, passes=6, **{axis: value})
    with pytest.raises(UserError, match=f"^space.{axis} is not for a flow model$"):
        SearchSpace(config, noise, noise.spec("flux", "flow_prediction"), "linspace")


@pytest.mark.parametrize(
    ("solver", "value", "form"),
    [
        ("unipc-bh2", 1.0, "noise"),
        ("unipc-bh2", 0.0, None),  # its own
        ("deis", 1.0, None),
        ("deis", 0.0, "data"),
        ("ipndm", 1.0, None),  # has neither
    ],
)
def test_the_form_of_a_rule_is_a_choice_where_it_has_two(solver, value, form):
    box = space(4, 8, solvers=[solver], prediction=True)
    plan = box.schedule(centre(box) | {"prediction": value})
    assert {s.prediction for s in plan.steps} == {form}
    assert box.params(plan)[1]


@pytest.mark.parametrize("scales", [[3.0, 3.0, 1.0, 1.0], [1.0, 1.0, 3.0, 3.0]])
def test_a_few_guided_steps_at_either_end_are_kept_by_a_line(scales):
    box = space(3, 6, max_steps=5, guidance="linear", guidance_scale=(0.6, 5.0))
    *sigmas, final = GRIDS["power"](4, SD)
    point, _ = box.params(from_sigmas(sigmas, final, scales, 2))
    back = box.schedule(point)
    assert [s.guidance_scale > 1 for s in back.steps] == [w > 1 for w in scales]
    assert back.passes == 6


def test_karras_with_its_exponent_is_a_point_of_the_box():
    box = space(5, 10, placement="karras", rho=(1.0, 12.0), log_gap=(-1, 1))
    point, same = box.params(make_schedule("karras", 5, SD, order=1))
    assert same
    assert point["rho"] == pytest.approx(7.0, abs=1e-3)


def test_karras_may_end_above_the_model_s_lowest_sigma():
    box = space(5, 10, placement="karras", rho=(1.0, 12.0), sigma_min=(0.02, 0.5))
    ramp = np.linspace(SD.sigma_max ** (1 / 7), 0.1 ** (1 / 7), 5) ** 7
    point, same = box.params(from_sigmas(ramp.tolist(), 0.0, [1.0] * 5, 1))
    assert same
    assert point["sigma_min"] == pytest.approx(0.1)
    assert box.schedule(point | {"sigma_min": 0.02}).sigmas[-2] == pytest.approx(SD.sigma_min)


def test_an_interval_guides_the_steps_inside_of_it():
    box = space(5, 10, guidance="interval")
    point = centre(box) | {"guidance_scale": 3.0, "guided_from": 0.2, "guided_to": 0.6}
    assert [s.guidance_scale for s in box.schedule(point).steps] == [1, 3, 3, 1, 1]
    assert box.params(box.schedule(point))[1]


@given(st.data(), st.integers(2, 6), st.integers(0, 3), st.sampled_from(["per-step", "linear"]))
def test_a_proposal_over_budget_loses_its_weakest_guidance_and_nothing_else(data, n, more, kind):
    passes = data.draw(st.integers(n + more, 2 * (n + more)))
    options = {**EVERYTHING, "max_steps": n + more, "guidance": kind}
    box = space(n, passes, **options)
    rich = space(n, 2 * (n + more), **options)  # pays for guidance at every step
    point = draw(data, box)
    assert rich.distributions == box.distributions
    paid, wanted = box.schedule(point), rich.schedule(point)
    assert paid.passes <= passes
    if wanted.passes <= passes:
        assert paid == wanted
    bare = [replace(s, guidance_scale=1.0, guidance_rescale=0.0) for s in paid.steps]
    assert bare == [replace(s, guidance_scale=1.0, guidance_rescale=0.0) for s in wanted.steps]
    kept = [s.guidance_scale for s in paid.steps]
    asked = [s.guidance_scale for s in wanted.steps]
    assert all(k in (1.0, w) for k, w in zip(kept, asked, strict=True))
    off = [w for k, w in zip(kept, asked, strict=True) if k != w]
    on = [k for k in kept if k != 1]
    assert not off or (paid.passes == passes and max(off) <= min([*on, inf]))


@pytest.mark.parametrize("kind", ["per-step", "linear", "interval", "constant"])
def test_the_box_is_one_of_floats_and_cma_es_sees_all_of_it(kind):
    """Off, order, solver and form are thresholds: nothing is categorical, conditional or fixed."""
    box = space(3, 6, max_steps=4, guidance=kind, **EVERYTHING).distributions
    assert {type(d) for d in box.values()} == {FloatDistribution}
    assert all(d.low < d.high and d.step is None for d in box.values())
    study = optuna.create_study(sampler=make_algorithm("cmaes", 0))
    for _ in range(3):
        trial = study.ask()
        sampled = {k: trial.suggest_float(k, d.low, d.high, log=d.log) for k, d in box.items()}
        assert set(sampled) == set(box)
        study.tell(trial, 1.0)
    seen = study.sampler.infer_relative_search_space(study, study.ask()._get_latest_trial())
    assert seen == box


@given(st.lists(st.floats(0, 5), min_size=1, max_size=12), st.integers(0, 12))
def test_the_weakest_guided_steps_go_off_first(guidance, spare):
    passes = len(guidance) + min(spare, len(guidance))
    kept = within_budget(guidance, passes)
    on = [w for w in kept if w > 1]
    assert len(kept) + len(on) <= passes
    off = sorted((w for w, k in zip(guidance, kept, strict=True) if k == 1), reverse=True)
    assert not on or not off or max(off[0], 1) <= min(on)
    wanted = sum(w > 1 for w in guidance)
    assert len(on) == min(wanted, passes - len(guidance))
