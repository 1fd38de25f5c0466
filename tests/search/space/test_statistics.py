"""DPM-Solver-v3 in a study: the guidance scale of its statistics, and which steps go by them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepsampler import UserError
from stepsampler.grids import GRIDS, make_schedule
from stepsampler.models import load
from stepsampler.noise import NoiseSchedule
from stepsampler.schedule import StatisticsSpec
from stepsampler.statistics.file import Statistics, ends_of, read_spec
from stepsearch.config import StudyConfig
from stepsearch.config.space import SpaceConfig
from stepsearch.engine.run import run_study
from stepsearch.engine.stages.costs import costs
from stepsearch.engine.tracking import NoTracking
from stepsearch.engine.workers import InThisProcess
from stepsearch.rehearsal.check import missing
from stepsearch.rivals.baselines import Candidate, baselines, check_statistics
from stepsearch.space.box import SearchSpace
from stepsearch.space.starts import first_points

SD = NoiseSchedule.scaled_linear()
SPEC = SD.spec("stable-diffusion", "epsilon")
TWO = StatisticsSpec(2.0, 120, "0123456789abcdef")
HIGH = StatisticsSpec(7.5, 250)
NONE = StatisticsSpec(1.0, 120)


def space(known=(TWO,), solvers=("unipc-bh2", "dpm-v3"), steps=5, passes=8, **options):
    config = SpaceConfig(num_steps=steps, passes=passes, solvers=solvers, **options)
    return SearchSpace(config, SD, SPEC, "power", known=known)


@given(st.data(), st.sampled_from(["per-step", "linear", "interval", "constant"]))
def test_its_guided_steps_have_the_scale_of_the_statistics_and_others_the_data_form(data, kind):
    box = space(guidance=kind, max_steps=8, prediction=True, analytic=(0.8, 1.0), corrector=True)
    point = {k: data.draw(st.floats(d.low, d.high), label=k) for k, d in box.distributions.items()}
    plan = box.schedule(point | {"solver": 1.0})
    assert plan.solver == "dpm-v3"
    assert plan.statistics == TWO
    assert plan.passes <= 8
    for step in plan.steps:
        assert step.guidance_scale in (1.0, 2.0)
        assert step.guidance_scale == 2.0 or step.prediction == "data"
    other = box.schedule(point | {"solver": 0.0})
    assert other.statistics is None
    # the axes of guidance say which steps are guided, whatever the solver
    assert [s.guidance_scale != 1 for s in other.steps] == [
        s.guidance_scale != 1 for s in plan.steps
    ]


def test_the_first_statistics_of_a_scale_of_the_box_are_taken():
    for known, guidance, taken in (
        ((HIGH, TWO), "linear", TWO),
        ((TWO, HIGH), "linear", TWO),
        ((TWO, NONE), "off", NONE),
    ):
        box = space(known, ("dpm-v3",), guidance=guidance)
        assert box.schedule({n: d.low for n, d in box.distributions.items()}).statistics == taken


@pytest.mark.parametrize(
    ("known", "guidance", "message"),
    [
        ((), "linear", r"scale of the box, 1 to 4, above 1; \[model\] statistics names none"),
        ((HIGH, NONE), "linear", "1 to 4, above 1; the model's are of guidance scale 7.5 in 250"),
        ((TWO,), "off", "scale of the box, 1, as guidance is off; the model's are of guidance"),
    ],
)
def test_a_box_without_fitting_statistics_is_refused(known, guidance, message):
    with pytest.raises(UserError, match=f"space.solvers: dpm-v3 goes by statistics .*{message}"):
        space(known, guidance=guidance)


def test_a_baseline_under_it_is_a_point_and_a_search_starts_from_it():
    box = space(passes=10, max_order=3, corrector=True)
    kept = {"guidance_scale": 2.0, "model": SPEC, "order": 3}
    plan = make_schedule("power", 5, SD, solver="dpm-v3", statistics=TWO, **kept)
    point, same = box.params(plan)
    assert same
    assert box.schedule(point).statistics == TWO
    unipc = make_schedule("power", 5, SD, solver="unipc-bh2", **kept)
    points = first_points(box, [Candidate("best", unipc, "baseline", "power")])
    names = [name for _, name in points]
    assert "power, dpm-v3, order 3, w 2" in names
    other = StatisticsSpec(2.0, 120, "f" * 16)
    assert not box.params(make_schedule("power", 5, SD, solver="dpm-v3", statistics=other, **kept))[
        1
    ]


def study(**sections):
    space = {"num_steps": 5, "passes": 10}
    return StudyConfig.model_validate({"name": "x", "space": space, **sections})


def test_among_the_baselines_it_has_the_guidance_scales_of_its_statistics():
    config = study(baselines={"solvers": ["exact", "dpm-v3"], "orders": [2]})
    for known, expected in (((TWO,), {(5, 2.0)}), ((TWO, NONE), {(5, 2.0), (10, 1.0)})):
        found = [c.schedule for c in baselines(config, SD, SPEC, {}, statistics=known)]
        ours = [plan for plan in found if plan.solver == "dpm-v3"]
        assert {(plan.num_steps, plan.steps[0].guidance_scale) for plan in ours} == expected
        assert len(ours) == len(expected) * len(GRIDS)
        assert {s.prediction for plan in ours for s in plan.steps} == {None}
        for plan in ours:
            assert plan.statistics in known
            assert plan.statistics.guidance_scale == plan.steps[0].guidance_scale


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ((), r"scale of the baselines, 2, 1; \[model\] statistics names none: `stepsample stat"),
        ((HIGH,), "scale of the baselines, 2, 1; the model's are of guidance scale 7.5 in 250"),
    ],
)
def test_baselines_without_fitting_statistics_are_refused(known, message):
    config = study(baselines={"solvers": ["dpm-v3"], "guidance_scales": [2.0]})
    with pytest.raises(UserError, match=f"baselines.solvers: dpm-v3 goes by .*{message}"):
        check_statistics(config, "classifier-free", known)
    check_statistics(study(), "classifier-free", known)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Made-up statistics of the bundled model."""
    model = load("tiny")
    place = tmp_path_factory.mktemp("statistics") / "s.safetensors"
    draw = np.random.default_rng(0).normal(0, 0.1, (3, 9, *model.shape))
    ends = ends_of(model.noise)
    found = Statistics(*draw, ends, 3.0, 2, "new", model.spec.noise)
    found.save(place, {"family": model.family})
    return str(place)


def test_a_study_runs_with_the_file_that_it_names_and_says_what_it_lacks(file, tmp_path):
    config = study(
        model={"id": "tiny", "statistics": [file]},
        space={"num_steps": 2, "passes": 4, "solvers": ["dpm-v3"]},
        evaluation={"images": 8, "selection_images": 8, "test_images": 8, "batch_size": 8},
        baselines={"solvers": ["dpm-v3"], "guidance_scales": [3.0], "orders": [2], "rungs": [2],
                   "test": 1, "presets": []},
        teacher={"steps": 2, "images": 8},
        search={"trials": 2, "finalists": 1},
    )  # fmt: skip
    assert missing(config) == []
    grids = len(GRIDS)
    assert costs(config).passes["baselines"] >= 2 * grids * 4
    with InThisProcess(config, tmp_path / "run") as workers:
        result = run_study(config, tmp_path / "run", workers, NoTracking(), lambda *_: None)
    assert len(result.screened) == grids
    found = result.winner.schedule
    assert found.solver == "dpm-v3"
    assert found.statistics.digest == read_spec(file).digest
    other = study(model={"id": "tiny"}, baselines={"solvers": ["dpm-v3"], "guidance_scales": [4]})
    (sentence,) = missing(other)
    assert "baselines.solvers: dpm-v3 goes by statistics of a guidance scale" in sentence
    gone = study(model={"id": "tiny", "statistics": ["gone"]}, baselines={"solvers": ["dpm-v3"]})
    (sentence,) = missing(gone)
    assert "gone" in sentence
