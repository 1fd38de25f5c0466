"""Which steps are guided: the masks, and the schedules that have them."""

from math import comb

import pytest

from stepsampler.grids import GRIDS, is_guided, make_schedule
from stepsampler.noise import NoiseSchedule
from stepsearch.config import StudyConfig
from stepsearch.config.space import SpaceConfig
from stepsearch.space.box import SearchSpace
from stepsearch.space.patterns import lengths, masks, patterned

SD = NoiseSchedule.scaled_linear()
SPEC = SD.spec("stable-diffusion", "epsilon")


def box(**options):
    known = {"num_steps": 4, "passes": 8, "max_steps": 6, "guidance": "per-step", **options}
    return SearchSpace(SpaceConfig(**known), SD, SPEC, "beta")


@pytest.mark.parametrize(
    ("n", "guided"), [(4, 1), (5, 3), (6, 2), (7, 3), (9, 7), (10, 6), (40, 20)]
)
def test_masks_are_those_of_one_stretch_and_of_two(n, guided):
    """k guided ones as one stretch have n - k + 1 places; as two, they are cut at one of k - 1
    places, and the n - k others leave n - k + 1 places for two stretches."""
    off = n - guided
    assert len(masks(n, guided)) == off + 1 + (guided - 1) * comb(off + 1, 2)
    assert len(set(masks(n, guided))) == len(masks(n, guided))
    assert {sum(mask) for mask in masks(n, guided)} == {guided}
    assert (True,) * guided + (False,) * off in masks(n, guided)


def test_three_stretches_are_too_many():
    assert (True, False, True, False, True) not in masks(5, 3)
    assert (True, False, True, True, False) in masks(5, 3)


def test_budgets_say_how_many_steps_have_guided_ones_and_others():
    assert list(lengths(box().config)) == [5, 6]
    assert list(lengths(box(num_steps=2, passes=7).config)) == [4, 5, 6]


@pytest.mark.parametrize("grid", GRIDS)
def test_a_pattern_has_the_grids_levels_and_is_as_strong_in_the_mean(grid):
    model = make_schedule("karras", 4, SD, solver="unipc-bh2", order=3, guidance_scale=2.0)
    space = box(solvers=("dpmpp-midpoint", "unipc-bh2"), max_order=3, guidance_scale=(0.2, 5.0))
    mask = (True, False, False, False, True, False)
    found = patterned(space, model, grid, mask).schedule
    alike = make_schedule(grid, 6, SD, solver="unipc-bh2", order=3, model=SPEC)
    assert found.sigmas == pytest.approx(alike.sigmas)
    assert [step.order for step in found.steps] == [step.order for step in alike.steps]
    assert (found.solver, found.passes) == ("unipc-bh2", 8)
    assert tuple(map(is_guided, found.steps)) == mask
    scales = [step.guidance_scale for step in found.steps]
    assert scales == pytest.approx([4, 1, 1, 1, 4, 1])  # 6 * (2 - 1) = 2 * (4 - 1)


def test_no_step_is_stronger_than_the_box_has_it_and_no_solver_is_anothers():
    model = make_schedule("karras", 4, SD, solver="unipc-bh2", order=3, guidance_scale=2.0)
    space = box(guidance_scale=(0.2, 3.0))
    found = patterned(space, model, "beta", (False, True, False, True, False, False))
    assert [step.guidance_scale for step in found.schedule.steps] == [1, 3, 1, 3, 1, 1]
    assert found.schedule.solver == "dpmpp-midpoint"
    assert max(step.order for step in found.schedule.steps) == 2
    assert found.name == "beta, 6 steps, 2, 4 guided, w 3"


@pytest.mark.parametrize(
    ("space", "search", "words"),
    [
        ({"guidance": "constant"}, {}, 'patterns need space.guidance = "per-step", got "constant"'),
        ({"placement": "karras"}, {}, 'patterns need space.placement = "curve", got "karras"'),
        ({"whole_timesteps": True}, {}, "levels between space.whole_timesteps"),
        ({"max_steps": 4}, {}, "max_steps must be above 4 and below passes = 8, got 4"),
        ({"max_steps": None}, {}, "max_steps must be above 4 and below passes = 8, got null"),
        ({"max_steps": 8}, {}, "max_steps must be above 4 and below passes = 8, got 8"),
        ({}, {"objectives": ["fd", "alignment"]}, "patterns are for one objective"),
        ({}, {"polish": 13}, "polish must be at most finalists + patterns = 10, got 13"),
    ],
)
def test_what_a_study_cannot_have_is_refused(space, search, words):
    known = {"num_steps": 4, "passes": 8, "max_steps": 6, "guidance": "per-step", **space}
    study = {"name": "x", "space": known, "search": {"patterns": 2, **search}}
    with pytest.raises(ValueError, match=words.replace("+", r"\+")):
        StudyConfig.model_validate(study)
