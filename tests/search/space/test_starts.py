from dataclasses import replace

import numpy as np

from stepsampler.grids import from_sigmas, make_schedule
from stepsampler.noise import NoiseSchedule
from stepsearch.config.space import SpaceConfig
from stepsearch.rivals.baselines import Candidate, gained
from stepsearch.space.box import SearchSpace
from stepsearch.space.starts import first_points

SD = NoiseSchedule.scaled_linear()
SPEC = SD.spec("stable-diffusion", "epsilon")


def space(guidance="classifier-free", **options):
    config = SpaceConfig(num_steps=3, passes=6, guidance="per-step", **options)
    return SearchSpace(config, SD, SPEC, "beta", guidance)


def baseline(grid, n, w):
    plan = make_schedule(grid, n, SD, guidance_scale=w, model=SPEC)
    return Candidate(f"{grid}, w {w:g}", plan, "baseline", grid)


def starts(box, best):
    return {name: box.schedule(point) for point, name in first_points(box, best)}


def test_baselines_come_first_and_then_the_other_solvers_of_the_box_and_more_steps():
    box = space(solvers=("dpmpp-midpoint", "unipc-bh2"), max_steps=4, max_order=3)
    found = starts(box, [baseline("karras", 3, 3.0), baseline("beta", 3, 2.0)])
    names = [name.removeprefix("near ") for name in found]
    assert names == [
        "karras, w 3",
        "beta, w 2",
        "beta, unipc-bh2, order 3, w 2",  # the scale is that of the centre's own baseline
        "beta, 4 steps, the first 2 guided, w 3",  # 2 in the mean: 2 * (3 - 1) = 4 * (2 - 1)
        "beta, 4 steps, the middle 2 guided, w 3",
        "karras, 4 steps, the first 2 guided, w 4",  # 3 in the mean would be 5: the box ends at 4
        "karras, 4 steps, the middle 2 guided, w 4",
        "beta, 3 steps, the first 2 guided, w 2.5",  # with a pass to spare
    ]
    assert [plan.passes for plan in found.values()] == [6] * 7 + [5]
    other = found["beta, unipc-bh2, order 3, w 2"]
    assert (other.solver, [s.order for s in other.steps]) == ("unipc-bh2", [1, 2, 1])  # onto 0
    assert [s.guidance_scale for s in other.steps] == [2.0] * 3


def test_an_interval_in_the_middle_is_what_the_box_makes_of_its_point():
    """The best rivals of 4 and 6 steps in docs/benchmarks.md are such intervals."""
    config = SpaceConfig(num_steps=6, passes=12, guidance="per-step", max_steps=8)
    box = SearchSpace(config, SD, SPEC, "beta")
    found = starts(box, [baseline("beta", 6, 2.0), baseline("karras", 6, 2.0)])
    plan = next(
        p for name, p in found.items() if name.endswith("beta, 8 steps, the middle 4 guided, w 3")
    )
    guided = [s.guidance_scale for s in plan.steps]
    assert plan.passes == 12
    assert [w > 1 for w in guided] == [w > 1 for w in (1, 1, 3, 3, 3, 3, 1, 1)]
    assert np.allclose(guided, [1, 1, 3, 3, 3, 3, 1, 1], atol=0.65)  # six knots for eight steps


def test_where_there_are_gains_steps_of_an_interval_are_guided_as_all_of_a_baseline():
    """At ten passes of the bundled model with a gain, w 2 was far ahead of stronger guidance."""
    box = space(max_steps=4, gain=(0.95, 1.15))
    found = starts(box, gained([baseline("beta", 3, 2.0)], [1.06]))
    names = [name for name in found if "guided" in name]
    assert [name.rpartition(", ")[2] for name in names] == ["w 2"] * 3
    assert all(step.gain == 1.06 for name in names for step in found[name].steps)


def test_more_steps_have_the_solver_of_the_best_baseline():
    box = space(solvers=("dpmpp-midpoint", "unipc-bh2"), max_steps=4)
    best = baseline("beta", 3, 2.0)
    plan = from_sigmas(
        best.schedule.sigmas[:-1], 0.0, [2.0] * 3, 3, "unipc-bh2", best.schedule.model
    )
    found = starts(box, [replace(best, schedule=plan)])
    shapes = {name: plan.solver for name, plan in found.items() if "guided" in name}
    assert len(shapes) == 3
    assert set(shapes.values()) == {"unipc-bh2"}
    assert sum(plan.solver == "dpmpp-midpoint" for plan in found.values()) == 1


def test_without_a_guided_baseline_nothing_is_guided_in_parts():
    assert list(starts(space(max_steps=4), [baseline("beta", 6, 1.0)])) == ["near beta, w 1"]


def test_where_guidance_is_free_only_solvers_differ():
    box = space("distilled", solvers=("dpmpp-midpoint", "unipc-bh2"), max_steps=4, max_order=2)
    names = [n.removeprefix("near ") for n in starts(box, [baseline("beta", 3, 2.0)])]
    assert names == ["beta, w 2", "beta, unipc-bh2, order 2, w 2"]


def test_where_the_box_guides_all_steps_or_none_half_of_them_are_no_start():
    """They would be all of them guided once more, under the name of half."""
    best = [baseline("beta", 3, 2.0)]
    assert len(starts(space(), best)) == 2
    for box in (
        SearchSpace(SpaceConfig(num_steps=3, passes=6, guidance="constant"), SD, SPEC, "beta"),
        space(guidance_scale=(1.5, 4.0)),
    ):
        assert [name.removeprefix("near ") for name in starts(box, best)] == ["beta, w 2"]
