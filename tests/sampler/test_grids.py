import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepsampler import UserError
from stepsampler.grids import (
    AYS,
    GRIDS,
    PLACEMENTS,
    from_sigmas,
    is_whole,
    karras,
    log_linear,
    make_schedule,
    power,
    whole_timesteps,
)
from stepsampler.noise import FlowSchedule, NoiseSchedule
from stepsampler.presets import MODELS, preset

SD = NoiseSchedule.scaled_linear()

# Sigmas of arXiv 2510.02390's code for Stable Diffusion and SDXL:
# (steps, (points, exponent, entry) of the auxiliary grid, sigmas)
SEED_GRIDS = [
    (4, (8, 5, 5), [14.6146, 4.2926, 1.8173, 0.9024, 0.4202]),
    (4, (8, 2, 6), [14.6146, 4.4578, 1.9222, 0.9741, 0.4796]),
    (4, (8, 7, 6), [14.6146, 3.5349, 1.3626, 0.5872, 0.1072]),
    (4, (8, 5, 6), [14.6146, 3.5785, 1.3877, 0.6050, 0.1320]),
    (4, (8, 3.25, 6), [14.6146, 3.7338, 1.4781, 0.6685, 0.2059]),
    (5, (8, 5, 6), [14.6146, 4.5189, 1.9615, 1.0010, 0.5015, 0.1320]),
    (6, (8, 5, 6), [14.6146, 5.3409, 2.5230, 1.3877, 0.8052, 0.4374, 0.1320]),
    (7, (12, 10, 7), [14.6146, 6.9296, 3.7982, 2.3172, 1.5160, 1.0270, 0.6949, 0.4458]),
    (7, (12, 12, 7), [14.6146, 6.8286, 3.7089, 2.2491, 1.4635, 0.9845, 0.6583, 0.4117]),
    (8, (12, 7, 8), [14.6146, 7.0961, 3.9478, 2.4326, 1.6053, 1.0993, 0.7568, 0.5025, 0.2926]),
    (8, (12, 7, 9), [14.6146, 6.7121, 3.6076, 2.1723, 1.4045, 0.9366, 0.6169, 0.3725, 0.1472]),
    (8, (12, 12, 9), [14.6146, 6.6489, 3.5531, 2.1314, 1.3730, 0.9111, 0.5947, 0.3512, 0.1179]),
    (8, (12, 12, 10), [14.6146, 6.5481, 3.4672, 2.0671, 1.3238, 0.8711, 0.5597, 0.3171, 0.0600]),
]


@pytest.mark.parametrize(("n", "auxiliary", "published"), SEED_GRIDS)
def test_the_grids_of_the_power_law_are_the_published_ones(n, auxiliary, published):
    size, rho, entry = auxiliary
    stop = SD.timestep(karras(size, SD, rho)[entry])
    np.testing.assert_allclose(power(n, SD, stop), published, atol=0.6e-4)


@pytest.mark.parametrize(
    ("n", "row"), [(4, 0), (5, 5), (6, 6), (7, 7), (8, 10)], ids=["4", "5", "6", "7", "8"]
)
def test_the_power_law_takes_the_hand_tuned_stop_by_default(n, row):
    np.testing.assert_allclose(power(n, SD), SEED_GRIDS[row][2], atol=0.6e-4)


def test_the_ends_of_the_noise_schedule():
    assert SD.sigma_min == pytest.approx(0.02917, abs=1e-5)
    assert SD.sigma_max == pytest.approx(14.6146, abs=1e-4)


@given(st.floats(0, 999))
def test_timestep_inverts_sigma(t):
    assert SD.timestep(SD.sigma(t)) == pytest.approx(t, abs=1e-6)


@given(st.sampled_from(sorted(GRIDS)), st.integers(1, 40), st.integers(1, 3))
def test_every_grid_is_a_valid_schedule_at_any_number_of_steps(grid, n, order):
    schedule = make_schedule(grid, n, SD, order=order)
    assert schedule.num_steps == n
    assert schedule.steps[0].sigma <= SD.sigma_max * (1 + 1e-9)


def test_grids_of_diffusers_are_those_of_diffusers():
    from diffusers import DPMSolverMultistepScheduler

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    for ours, options in {
        "linspace": {},
        "trailing": {"timestep_spacing": "trailing"},
        "leading": {"timestep_spacing": "leading", "steps_offset": 1},
    }.items():
        for n in (4, 5, 8, 10):
            scheduler = DPMSolverMultistepScheduler(**betas, **options)
            scheduler.set_timesteps(n)
            # diffusers' "leading" divides by n + 1 in this scheduler and by n in all others
            if ours == "leading":
                continue
            np.testing.assert_allclose(GRIDS[ours](n, SD), scheduler.sigmas, rtol=2e-4)
    from diffusers import EulerDiscreteScheduler

    for ours, options in {
        "karras": {"use_karras_sigmas": True},
        "exponential": {"use_exponential_sigmas": True},
        "leading": {"timestep_spacing": "leading", "steps_offset": 1},
    }.items():
        scheduler = EulerDiscreteScheduler(**betas, **options)
        scheduler.set_timesteps(6)
        np.testing.assert_allclose(GRIDS[ours](6, SD), scheduler.sigmas, rtol=5e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(AYS))
def test_align_your_steps_at_ten_steps_is_the_published_list(name):
    np.testing.assert_allclose(GRIDS[name](10, SD)[:-1], AYS[name][:-1], rtol=1e-4)


def test_log_linear_keeps_the_ends_and_halves_in_the_logarithm():
    assert log_linear([4.0, 1.0], 3) == pytest.approx([4.0, 2.0, 1.0])


def test_what_does_not_exist_is_refused():
    with pytest.raises(UserError, match="grid must be one of linspace, .* got 'karas'"):
        make_schedule("karas", 5, SD)
    with pytest.raises(UserError, match="num_steps must be at least 1, got 0"):
        make_schedule("karras", 0, SD)
    with pytest.raises(UserError, match="must fall strictly inside"):
        NoiseSchedule((0.5, 0.5))


@pytest.mark.parametrize("n", [1, 3, 4, 6, 7])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("grid", ["linspace", "trailing"])
def test_the_even_grids_of_a_flow_are_those_of_its_stock_scheduler(grid, n, shift):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / n, n))  # as FLUX and SD3.5 call it
    ours = GRIDS[grid](n, FlowSchedule(shift))
    assert ours == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


def test_every_grid_makes_a_schedule_for_a_flow_or_says_that_it_cannot():
    flow = FlowSchedule(3.0)
    spec = flow.spec("sd3")
    for grid in PLACEMENTS:
        if grid.startswith("ays"):
            with pytest.raises(
                UserError, match="has the sigmas of Stable Diffusion, not of a flow"
            ):
                make_schedule(grid, 4, flow, model=spec)
        else:
            assert make_schedule(grid, 4, flow, model=spec).steps[0].sigma <= 1


def test_an_analytic_first_step_moves_the_first_call_and_costs_nothing():
    plain = make_schedule("power", 6, SD, solver="unipc-bh1", guidance_scale=5.0)
    plan = make_schedule(
        "power", 6, SD, solver="unipc-bh1", guidance_scale=5.0, analytic=(1.0, 0.5)
    )
    assert plan.passes == plain.passes == 12
    assert plan.num_steps == 7
    assert plan.steps[0].analytic == 1.0
    at = [SD.timestep(step.sigma) for step in plan.steps]
    assert at[1] == pytest.approx((at[0] + at[2]) / 2)
    assert [s.sigma for s in plan.steps[2:]] == [s.sigma for s in plain.steps[1:]]


def test_lower_order_final_counts_the_steps_that_are_left():
    orders = [
        [s.order for s in make_schedule("linspace", 6, SD, order=3, lower_order_final=low).steps]
        for low in (False, True)
    ]
    assert orders == [[1, 2, 3, 3, 3, 1], [1, 2, 3, 3, 2, 1]]


def test_whole_timesteps_are_the_nearest_in_the_models_table():
    """As ComfyUI finds them: the index of the nearest log sigma."""
    table = np.log(np.sqrt(1 / np.array(SD.alphas_cumprod) - 1))
    for name in ("seed-sd-8", "seed-sd-5", "gits-sd15-dpmpp-5"):
        schedule = preset(name).schedule
        moved = whole_timesteps(schedule, SD)
        nearest = [int(np.abs(np.log(s.sigma) - table).argmin()) for s in schedule.steps]
        assert [s.sigma for s in moved.steps] == pytest.approx(np.exp(table[nearest]), rel=1e-12)
        assert moved.final_sigma == schedule.final_sigma
        assert is_whole(moved, SD)
        assert whole_timesteps(moved, SD) == moved
    assert not is_whole(preset("seed-sd-8").schedule, SD)
    assert is_whole(preset("ays-sd15").schedule, SD)  # published with three digits


def test_levels_that_would_fall_on_one_timestep_are_refused_or_spread():
    close = from_sigmas([SD.sigma(t) for t in (500.3, 500.1, 0.2, 0.1)], 0.01, [1.0] * 4, 1, "ddim")
    with pytest.raises(UserError, match="steps 0 and 1 would both be at the whole timestep 500"):
        whole_timesteps(close, SD)
    spread = whole_timesteps(close, SD, spread=True)
    assert [SD.timestep(s.sigma) for s in spread.steps] == pytest.approx([500, 499, 1, 0])
    near = from_sigmas([SD.sigma(100.4)], SD.sigma(100.2), [1.0], 1, "ddim")
    with pytest.raises(UserError, match="the final sigma .* would not be below the last step's"):
        whole_timesteps(near, SD)
    assert 0 < whole_timesteps(near, SD, spread=True).final_sigma < SD.sigma(100)
    with pytest.raises(UserError, match="a flow model has no whole timesteps"):
        whole_timesteps(from_sigmas([1.0], 0.0, [1.0], 1, "ddim", MODELS["flux"]), FlowSchedule())


def test_the_second_call_of_heun_is_at_a_whole_timestep_too():
    heun = from_sigmas([SD.sigma(500.2)], SD.sigma(20.3), [1.0], 2, "heun")
    assert SD.timestep(whole_timesteps(heun, SD).final_sigma) == pytest.approx(20)
