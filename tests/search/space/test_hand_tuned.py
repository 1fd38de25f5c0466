"""The hand-tuned method of Hyperparameters-are-all-you-need: its presets are points of a box."""

from dataclasses import replace

import pytest
from running import EVERYTHING, SD, space

from stepsampler.grids import make_schedule
from stepsampler.presets import names, open_schedule

SEED = [name for name in names() if name.startswith("seed-")]
# Golden noise, of which this box has none, and x0 taken once more at no cost, of which no box has
GOLDEN = [name for name in SEED if open_schedule(name).golden_noise]
FREE = [name for name in SEED if any(step.x0_reuse for step in open_schedule(name).steps)]


def test_the_hand_tuned_method_is_a_point_of_a_box_of_two_numbers():
    """t_stop and rho_t = 1.2; UniPC with an analytic first step half-way in timesteps."""
    options = {"placement": "power", "guidance": "constant", "guidance_scale": (1.0, 12.0)}
    box = space(6, 12, **options, solvers=["ddim", "unipc-bh1"], analytic=(0.8, 1.0))
    hand_tuned = make_schedule("power", 6, SD, solver="ddim", order=1, guidance_scale=5.5)
    point, same = box.params(hand_tuned)
    assert same
    assert point["rho"] == pytest.approx(1.2, abs=1e-3)
    with_unipc = box.schedule(point | {"solver": 1.0, "analytic": 1.0})
    assert with_unipc.passes == 12
    timesteps = [SD.timestep(step.sigma) for step in with_unipc.steps]
    assert timesteps[1] == pytest.approx((timesteps[0] + timesteps[2]) / 2)
    assert [step.analytic for step in with_unipc.steps] == [1.0] + [None] * 6
    assert box.params(with_unipc)[1]


def whole_table(calls, **options):
    """Every hyperparameter of the hand-tuned method as an axis."""
    return space(
        calls,
        2 * calls,
        **{
            **EVERYTHING,
            "guidance": "constant",
            "guidance_scale": (0.5, 12.0),
            "guidance_rescale": (0.0, 1.0),
            "log_gap": (-4.0, 4.0),
            "first_sigma": (8.0, 14.7),
            "final_sigma": (0.02, 3.0),
            "solvers": ["ddim", "dpmpp-midpoint", "unipc-bh1", "unipc-bh2", "exact"],
            **options,
        },
    )


def calls_of(plan):
    return sum(step.analytic is None for step in plan.steps)


@pytest.mark.parametrize("name", sorted(set(SEED) - set(GOLDEN) - set(FREE)))
def test_every_preset_of_the_hand_tuned_method_is_a_point_of_a_box(name):
    plan = open_schedule(name)
    point, same = whole_table(calls_of(plan)).params(plan)
    assert same, point


def test_golden_noise_and_the_free_predictor_are_all_that_this_box_lacks():
    assert [f"seed-dunipc-anime-{n}-free-predictor" for n in range(5, 10)] == FREE
    for plan in map(open_schedule, FREE):
        assert not whole_table(calls_of(plan)).params(plan)[1]
    assert GOLDEN == ["seed-sd-7-golden", "seed-sd-8-golden", "seed-xl-6-golden"]
    for name in GOLDEN:
        plan = open_schedule(name)
        box = whole_table(calls_of(plan))
        assert not box.params(plan)[1]
        assert box.params(replace(plan, golden_noise=None))[1]


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("seed-unipc-sd-6-plain", {"prediction": False}),
        ("seed-unipc-sd-6-plain", {"decode": False}),
        ("seed-dunipc-xl-5-afs", {"analytic_at": None}),
        ("seed-dunipc-anime-8", {"analytic": (0.98, 1.0)}),
        ("seed-xl-6", {"free_u_sets": 1}),
        ("seed-sd-8-free", {"free_u": False}),
        ("seed-unipc-sd-6-plain", {"solvers": ["ddim", "unipc-bh2"], "max_order": 3}),
    ],
)
def test_each_of_these_axes_is_needed_for_some_preset(name, axes):
    plan = open_schedule(name)
    assert not whole_table(calls_of(plan), **axes).params(plan)[1]


def test_the_analytic_step_lands_where_it_is_told_to():
    box = whole_table(4)
    point, _ = box.params(open_schedule("seed-unipc-xl-5"))
    point |= {"analytic": 1.0, "analytic_at": 0.3}
    start, there, end = (SD.timestep(s) for s in box.schedule(point).sigmas[:3])
    assert (start - there) / (start - end) == pytest.approx(0.3, abs=1e-6)
    assert box.schedule(point | {"analytic": 0.85}).steps[0].analytic is None
