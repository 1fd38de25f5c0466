import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepsampler import Schedule, ScheduleError
from stepsampler.grids import karras, make_schedule
from stepsampler.noise import NoiseSchedule
from stepsampler.presets import DIT_NOISE, MODELS, SD_NOISE, names, open_schedule, preset
from stepsampler.schedule import StatisticsSpec
from stepsampler.solvers import tableau

SD = NoiseSchedule.scaled_linear()
LOG_ALPHA_BAR = np.log(SD.alphas_cumprod)


def schedule(name):
    return preset(name).schedule


def power_timesteps(n, points, exponent, entry):
    """The seed's grid: exponent 1.2 in t, from 999 to an entry of an auxiliary Karras grid."""
    stop = SD.timestep(karras(points, SD, exponent)[entry])
    return np.linspace(999 ** (1 / 1.2), stop ** (1 / 1.2), n + 1) ** 1.2


def sigma_by_log_alpha(index):
    """Sigma with log alpha linear in the index, as continuous-time solvers take discrete betas."""
    alpha_bar = np.exp(np.interp(index, np.arange(1000), LOG_ALPHA_BAR))
    return np.sqrt(1 / alpha_bar - 1)


def with_midpoint(t):
    return np.array([t[0], (t[0] + t[1]) / 2, *t[1:]])


@pytest.mark.parametrize("name", names())
def test_every_preset_opens_as_a_schedule_that_names_its_source(name):
    found = preset(name)
    assert Schedule.from_json(found.schedule.to_json()) == found.schedule
    assert found.model is None or found.schedule.model == MODELS[found.model]
    assert found.source
    assert {"preset", "source", "licence", "note"} <= set(found.schedule.provenance)
    rows = tableau(found.schedule)
    assert all(np.isfinite([*row.advance.x0, *row.advance.points]).all() for row in rows)


def test_model_fingerprints_are_those_of_the_betas():
    assert SD.spec("x", "epsilon").noise == SD_NOISE
    assert NoiseSchedule.linear().spec("x", "epsilon").noise == DIT_NOISE


# name -> auxiliary grid (points, exponent, entry), published sigmas
DPMPP = {
    "seed-sd-4": (8, 5, 5, "14.6146, 4.2926, 1.8173, 0.9024, 0.4202"),
    "seed-sd-4-retrain-free": (8, 2, 6, "14.6146, 4.4578, 1.9222, 0.9741, 0.4796"),
    "seed-sd-4-retrain": (8, 7, 6, "14.6146, 3.5349, 1.3626, 0.5872, 0.1072"),
    "seed-xl-4-retrain": (8, 7, 6, "14.6146, 3.5349, 1.3626, 0.5872, 0.1072"),
    "seed-xl-4-plain": (8, 5, 6, "14.6146, 3.5785, 1.3877, 0.6050, 0.1320"),
    "seed-xl-4": (8, 3.25, 6, "14.6146, 3.7338, 1.4781, 0.6685, 0.2059"),
    "seed-sd-5": (8, 5, 6, "14.6146, 4.5189, 1.9615, 1.0010, 0.5015, 0.1320"),
    "seed-sd-5-free": (8, 5, 6, "14.6146, 4.5189, 1.9615, 1.0010, 0.5015, 0.1320"),
    "seed-xl-5": (8, 5, 6, "14.6146, 4.5189, 1.9615, 1.0010, 0.5015, 0.1320"),
    "seed-xl-6-golden": (8, 5, 6, "14.6146, 4.5189, 1.9615, 1.0010, 0.5015, 0.1320"),
    "seed-sd-6": (8, 5, 6, "14.6146, 5.3409, 2.5230, 1.3877, 0.8052, 0.4374, 0.1320"),
    "seed-xl-6": (8, 5, 6, "14.6146, 5.3409, 2.5230, 1.3877, 0.8052, 0.4374, 0.1320"),
    "seed-sd-7": (
        *(12, 10, 7),
        "14.6146, 6.9296, 3.7982, 2.3172, 1.5160, 1.0270, 0.6949, 0.4458",
    ),
    "seed-xl-7": (
        *(12, 12, 7),
        "14.6146, 6.8286, 3.7089, 2.2491, 1.4635, 0.9845, 0.6583, 0.4117",
    ),
    "seed-sd-8-plain": (
        *(12, 7, 8),
        "14.6146, 7.0961, 3.9478, 2.4326, 1.6053, 1.0993, 0.7568, 0.5025, 0.2926",
    ),
    "seed-sd-8": (
        *(12, 7, 9),
        "14.6146, 6.7121, 3.6076, 2.1723, 1.4045, 0.9366, 0.6169, 0.3725, 0.1472",
    ),
    "seed-xl-8-plain": (
        *(12, 12, 9),
        "14.6146, 6.6489, 3.5531, 2.1314, 1.3730, 0.9111, 0.5947, 0.3512, 0.1179",
    ),
    "seed-xl-8": (
        *(12, 12, 10),
        "14.6146, 6.5481, 3.4672, 2.0671, 1.3238, 0.8711, 0.5597, 0.3171, 0.0600",
    ),
}


@pytest.mark.parametrize("name", DPMPP)
def test_seed_grids_are_their_formula_and_the_published_numbers(name):
    points, exponent, entry, published = DPMPP[name]
    found = schedule(name)
    n = found.num_steps
    formula = [SD.sigma_by_alpha_bar(t) for t in power_timesteps(n, points, float(exponent), entry)]
    assert found.sigmas == pytest.approx(formula, rel=1e-9)
    assert found.sigmas == pytest.approx([float(x) for x in published.split(",")], abs=6e-5)
    assert [s.order for s in found.steps] == ([1] * n if n <= 6 else [1, *[2] * (n - 1)])
    assert {s.guidance_scale for s in found.steps} == {7.5}


@pytest.mark.parametrize(
    ("name", "end"),
    [
        *(("seed-sd-9", 16.5), ("seed-sd-10", 3.5), ("seed-sd-11", 0.0)),
        *(("seed-xl-9", 14.6), ("seed-xl-10", 3.18), ("seed-xl-11", 0.0)),
        *(("seed-sd-4-no-ct", 603.5), ("seed-sd-5-no-ct", 451.0), ("seed-sd-6-no-ct", 287.0)),
        *(("seed-xl-4-no-ct", 585.3), ("seed-xl-5-no-ct", 428.4), ("seed-xl-6-no-ct", 264.9)),
    ],
)
def test_the_fallback_branch_stops_where_it_was_seen_to(name, end):
    assert SD.timestep(schedule(name).final_sigma) == pytest.approx(end, abs=0.06)


def test_the_switched_off_stop_of_the_seed_is_a_grid():
    published = [999, 830.8, 668.1, 511.9, 363.2, 224.3, 98.9, 1, 0]
    found = make_schedule("seed-original", 8, SD)
    assert [SD.timestep(s) for s in found.sigmas] == pytest.approx(published, abs=0.06)


FREE_U = {  # name -> steps with Free-U
    "seed-sd-8": [],
    "seed-sd-4-retrain-free": [0, 1, 2, 3],
    "seed-sd-8-free": list(range(8)),
    "seed-xl-4": [1, 2, 3],
    "seed-xl-5": [1, 2, 3],
    "seed-xl-6": [1, 2, 3, 5],
    "seed-xl-8": [],
    "seed-unipc-sd-5": [4],
    "seed-unipc-sd-6": [4, 5],
    "seed-unipc-sd-8": [4, 5, 6, 7],
    "seed-unipc-xl-5": [4, 5],
    "seed-unipc-xl-6": [4, 5, 6],
    "seed-unipc-xl-8": [6, 7, 8],
    "seed-v3-sd-6": [3, 4, 5],
    "seed-v3-sd-6-coco": [1, 2, 3, 4, 5],
}


@pytest.mark.parametrize("name", FREE_U)
def test_free_u_is_on_where_the_seed_has_it(name):
    assert [i for i, s in enumerate(schedule(name).steps) if s.free_u] == FREE_U[name]


def test_free_u_gains_are_the_seeds():
    weak, strong = (vars(schedule("seed-xl-6").steps[i].free_u) for i in (1, 5))
    assert weak == {"b1": 1.1, "b2": 1.1, "s1": 0.9, "s2": 0.2}
    assert strong == {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}
    assert schedule("seed-unipc-sd-5").steps[4].free_u.b1 == 1.2


def test_golden_noise_costs_two_more_calls():
    plain, golden = schedule("seed-sd-8"), schedule("seed-sd-8-golden")
    assert golden.golden_noise.sigma == plain.sigmas[1]
    assert golden.passes == plain.passes + 4
    assert schedule("seed-xl-6-golden").golden_noise.sigma == pytest.approx(
        14.6146 - 0.28, abs=1e-4
    )


UNIPC = {  # auxiliary grid, analytic first step, published sigmas, orders
    "seed-unipc-sd-5": (8, 5, 6, False, "14.61, 4.514, 1.959, 0.999, 0.500, 0.128", "11111"),
    "seed-unipc-sd-6": (8, 5, 6, False, "14.61, 5.336, 2.520, 1.385, 0.803, 0.436, 0.128", "1" * 6),
    "seed-unipc-sd-8": (
        *(12, 7, 9, False),
        *("14.61, 6.707, 3.603, 2.169, 1.402, 0.935, 0.615, 0.371, 0.144", "12222221"),
    ),
    "seed-unipc-xl-5": (
        *(12, 12, 9, True),
        *("14.61, 7.717, 4.486, 1.941, 0.987, 0.490, 0.114", "1" * 6),
    ),
    "seed-unipc-xl-6": (
        *(12, 12, 10, True),
        *("14.61, 8.415, 5.208, 2.428, 1.321, 0.754, 0.392, 0.052", "1" * 7),
    ),
    "seed-unipc-xl-7": (
        *(8, 5, 6, True),
        *("14.61, 9.164, 6.051, 3.060, 1.768, 1.096, 0.684, 0.392, 0.128", "12222221"),
    ),
    "seed-unipc-xl-8": (
        *(12, 12, 10, True),
        *("14.61, 9.574, 6.543, 3.463, 2.064, 1.321, 0.869, 0.558, 0.315, 0.052", "122222221"),
    ),
}


@pytest.mark.parametrize("name", UNIPC)
def test_unipc_presets_are_their_formula_and_the_published_numbers(name):
    points, exponent, entry, analytic, published, orders = UNIPC[name]
    found = schedule(name)
    t = power_timesteps(found.num_steps - analytic, points, float(exponent), entry)
    t = with_midpoint(t) if analytic else t
    indices = 1000 * t / 999 - 1  # stored as t / 999, read back as 1000 tau - 1
    assert found.sigmas == pytest.approx(sigma_by_log_alpha(indices).tolist(), rel=1e-9)
    close = [float(x) for x in published.split(",")]
    assert found.sigmas[1:] == pytest.approx(close[1:], abs=1.2e-3)
    assert "".join(str(s.order) for s in found.steps) == orders
    assert [s.corrector for s in found.steps] == [True] * (found.num_steps - 1) + [False]
    assert {s.prediction for s in found.steps} == {"noise"}
    assert found.decode == "alpha-x"
    assert found.steps[0].analytic == (1.0 if analytic else None)
    assert found.passes == 2 * int(name[-1])


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("seed-dunipc-xl-5", "999, 717.5, 453.5, 213.9, 18.3, 0"),
        ("seed-dunipc-xl-6", "999, 772.5, 556.7, 354.2, 170.0, 18.3, 0"),
        ("seed-dunipc-xl-7", "999, 809.6, 627.3, 453.5, 290.4, 141.7, 18.3, 0"),
        ("seed-dunipc-xl-8", "999, 836.2, 678.6, 526.9, 382.2, 246.2, 122.1, 18.3, 0"),
        ("seed-dunipc-xl-9", "999, 857.3, 719.4, 585.9, 457.2, 334.4, 218.7, 112.7, 22.7, 0"),
        ("seed-dunipc-xl-5-afs", "999, 772.5, 556.7, 354.2, 170.0, 18.3, 0"),
        ("seed-dunipc-xl-6-afs", "999, 809.6, 627.3, 453.5, 290.4, 141.7, 18.3, 0"),
        ("seed-dunipc-xl-7-afs", "999, 904.3, 809.6, 627.3, 453.5, 290.4, 141.7, 18.3, 0"),
        (
            "seed-dunipc-anime-8",
            "999, 917.6, 836.2, 678.6, 526.9, 382.2, 246.2, 122.1, 18.3, 0",
        ),
        ("seed-dunipc-xl-5-vae", "999, 766.2, 544.8, 337.7, 150.6, 3.18"),
        ("seed-dunipc-xl-6-vae", "999, 804.3, 617.2, 439.2, 272.7, 122.2, 3.18"),
        ("seed-dunipc-xl-6-vae-afs", "999, 831.7, 669.8, 514.2, 366.2, 227.7, 102.5, 3.18"),
        ("seed-v3-sd-5", "999, 773.7, 555.0, 352.8, 167.9, 17.7"),
        ("seed-v3-sd-6", "999, 806.8, 624.9, 451.1, 287.3, 142.2, 17.7"),
        ("seed-v3-sd-8", "999, 858.8, 721.0, 583.5, 458.7, 330.6, 220.5, 110.9, 21.5"),
        ("seed-unipc-xl-6-fp16", "999, 925.0, 851.0, 707.2, 568.2, 434.6, 307.6, 188.9"),
    ],
)
def test_other_seed_grids_have_the_published_timesteps(name, published):
    timesteps = [SD.timestep(s) for s in schedule(name).sigmas]
    assert timesteps == pytest.approx([float(t) for t in published.split(",")], abs=0.11)


def test_v3_points_lie_on_the_levels_of_its_statistics():
    levels = np.linspace(-np.log(SD.sigma_max), -np.log(SD.sigma_min), 251)
    for sigma in schedule("seed-v3-sd-8").sigmas:
        assert np.abs(levels + np.log(sigma)).min() < 1e-9


@pytest.mark.parametrize(
    ("name", "orders", "corrector"),
    [
        ("seed-v3-sd-5", "11111", False),
        ("seed-v3-sd-6", "111111", False),
        ("seed-v3-sd-8", "12222221", False),
        ("seed-v3-sd-6-coco", "111111", True),
    ],
)
def test_v3_is_as_published_with_its_statistics_and_says_what_it_lacks_without(
    name, orders, corrector
):
    found = preset(name, [StatisticsSpec(2.0, 250), StatisticsSpec(7.5, 250, "0" * 16)])
    plan = found.schedule
    assert not found.approximate
    assert "lacks" not in plan.provenance
    assert plan.solver == "dpm-v3"
    assert plan.statistics == StatisticsSpec(7.5, 250, "0" * 16, p_pseudo=False, c_pseudo=True)
    assert "".join(str(s.order) for s in plan.steps) == orders
    assert [s.corrector for s in plan.steps] == [corrector] * (len(orders) - 1) + [False]
    for others in ([], [StatisticsSpec(7.5, 120)], [StatisticsSpec(5.5, 250)]):
        stand_in = preset(name, others)
        assert stand_in.approximate
        assert stand_in.schedule.provenance["lacks"] == (
            "statistics of guidance scale 7.5 in 250 intervals: exact stands in for dpm-v3"
        )
        assert stand_in.schedule.sigmas == plan.sigmas
        assert [s.free_u for s in stand_in.schedule.steps] == [s.free_u for s in plan.steps]


def test_align_your_steps_are_the_papers_lists():
    papers = {
        "ays-sd15": "14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152",
        "ays-sdxl": "14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113",
        "ays-svd": "700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034",
    }
    from diffusers.schedulers import AysSchedules

    shipped = {
        "ays-sd15": "StableDiffusionSigmas",
        "ays-sdxl": "StableDiffusionXLSigmas",
        "ays-svd": "StableDiffusionVideoSigmas",
    }
    for name, paper in papers.items():
        sigmas = schedule(name).sigmas
        assert sigmas[:-1] == pytest.approx([float(s) for s in paper.split(",")], rel=1.5e-2)
        assert sigmas == pytest.approx(AysSchedules[shipped[name]], rel=1.5e-2)


@pytest.mark.parametrize("n", [4, 5, 6, 7, 8])
def test_lists_published_in_continuous_time_end_where_time_is_one_thousandth(n):
    found = schedule(f"gits-sd15-ipndm-{n}-t")
    assert found.num_steps == n
    assert found.sigmas[0] == pytest.approx(14.6146, abs=6e-5)
    assert found.final_sigma == pytest.approx(0.0292, abs=6e-5)  # t = 0.001 is index 0


def test_gits_dmn_and_oss_lists_are_the_published_ones():
    assert schedule("gits-sd15-dpmpp-5").sigmas == (14.6146, 4.39, 1.4467, 0.6114, 0.2255, 0.0292)
    assert schedule("gits-sd15-ipndm-3").sigmas == (14.6146, 1.7083, 0.532, 0.0292)
    assert schedule("gits-comfyui-1.20-2").sigmas == (14.61464119, 0.803307, 0.0)
    assert schedule("dmn-sd-4").sigmas == (14.6146, 2.1013, 0.8721, 0.3403, 0.0292)
    assert schedule("oss-flux-10").sigmas[:3] == (0.9968, 0.9886, 0.9819)
    assert schedule("oss-flux-10").passes == 10  # its guidance is an input of the network
    assert schedule("oss-flux-10").flow


def test_dmn_sigmas_belong_to_their_timesteps():
    published = {
        5: [999, 600.5, 375.2, 207.2, 78.7, 0],
        6: [999, 657.8, 432.2, 306.5, 176, 61.1, 0],
    }
    for n, timesteps in published.items():
        sigmas = [SD.sigma(t) for t in timesteps]
        assert schedule(f"dmn-sd-{n}").sigmas == pytest.approx(sigmas, rel=1e-3, abs=1e-4)


def test_usf_orders_and_predictions_are_mapped_and_what_is_lost_is_said():
    found = schedule("usf-sd-5")
    assert [s.order for s in found.steps] == [1, 2, 3, 3, 1]  # order 4 is not in this sampler
    forms = [s.prediction for s in found.steps]
    assert forms == ["noise", "data", "data", "data", "data"]  # published e3x33
    times = [1, 0.735031, 0.523376, 0.316225, 0.204414, 0.00143178]
    sigmas = sigma_by_log_alpha(1000 * np.array(times) - 1).tolist()
    assert found.sigmas == pytest.approx(sigmas, rel=1e-9)
    for name in names():
        if name.startswith(("usf", "seed-v3")):
            assert preset(name).approximate
    assert re.search("12341.*e3x33.*skip coefficients", found.provenance["note"])


@pytest.mark.parametrize(
    ("name", "low", "high", "w"),
    [
        ("interval-edm2-s", 0.28, 2.90, 2.1),
        ("interval-edm2-xxl", 0.19, 1.61, 2.0),
        ("interval-dit-xl2", 0.34, 1.02, 2.5),
        ("interval-sdxl", 0.28, 5.42, 16.0),
    ],
)
def test_guidance_lies_inside_the_published_interval(name, low, high, w):
    found = schedule(name)
    for step in found.steps:
        assert step.guidance_scale == (w if low < step.sigma <= high else 1.0)
    assert found.passes < sum(s.order if found.solver == "heun" else 1 for s in found.steps) * 2


def test_a_file_wins_over_a_preset_and_a_wrong_name_gets_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_schedule("seed-sd-5") == schedule("seed-sd-5")
    schedule("seed-sd-6").save("seed-sd-5")
    assert open_schedule("seed-sd-5") == schedule("seed-sd-6")
    with pytest.raises(ScheduleError, match="sed-sd-8: no such file, and no preset 'sed-sd-8'; the "
                       "nearest are seed-sd-8"):  # fmt: skip
        open_schedule("sed-sd-8")
    with pytest.raises(ScheduleError, match=r"seed-sd-8\.json: No such file"):
        open_schedule("seed-sd-8.json")


@given(st.text(min_size=1, max_size=12).filter(lambda t: "\0" not in t))
def test_no_other_name_opens(name):
    with pytest.raises((ScheduleError, OSError)):
        open_schedule("~" + name)
