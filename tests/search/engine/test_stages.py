"""Each stage of a run alone: what it needs goes in, what it found comes out."""

from types import SimpleNamespace

import numpy as np
import pytest
from running import SD, ToyWorkers, settings

from stepsampler import UserError
from stepsampler.grids import GRIDS, make_schedule
from stepsearch.config import StudyConfig
from stepsearch.engine.stages.baselines import known_schedules, place_rivals, screen
from stepsearch.engine.stages.costs import costs
from stepsearch.engine.stages.held_out import test_chosen as chosen_on_test_seeds
from stepsearch.engine.stages.search import make_box
from stepsearch.engine.stages.selection import finalists, found, select
from stepsearch.engine.stages.teacher import measure_teacher
from stepsearch.engine.stages.tools import Tools, is_guided
from stepsearch.engine.tracking import NoTracking
from stepsearch.metrics.evaluator import SELECTION
from stepsearch.rivals.baselines import Candidate


def tools(tmp_path, config=None, news=None, **toy):
    config = config or settings()
    workers = ToyWorkers(config, tmp_path, **toy)
    report = (lambda *line: news.append(line)) if news is not None else (lambda *line: None)
    return Tools(config, workers.describe(), workers, NoTracking(), report)


def plan(grid, n=3, w=2.0):
    return make_schedule(grid, n, SD, guidance_scale=w)


def trial(number, alignment, schedule=None):
    attrs = {"alignment": alignment, "schedule": (schedule or plan("karras")).to_json()}
    return SimpleNamespace(number=number, user_attrs=attrs, values=[float(number)])


def test_rivals_are_placed_and_paid_for(tmp_path):
    placed = place_rivals(tools(tmp_path))
    assert set(placed.placements) == {("dmn", 3), ("dmn", 6)}
    assert placed.passes == 2 * 70


def test_screening_halves_guided_and_unguided_ones_apart(tmp_path):
    stage = tools(tmp_path)
    known = known_schedules(stage, place_rivals(stage))
    found = screen(stage, known)
    assert {c.name for c, _, _ in found.all} == {c.name for c in known}
    reached = [c for c, n, _ in found.all if n == 60]
    assert {c.name for c in found.best} == {c.name for c in reached}
    assert {is_guided(c) for c in found.best} == {True, False}
    values = {c.name: fd for c, _, fd in found.all}
    assert [values[c.name] for c in found.best] == sorted(values[c.name] for c in found.best)
    assert found.passes == 6 * (20 * len(known) + 40 * len(found.best))


def test_other_gains_join_at_the_last_rung_of_what_has_come_so_far(tmp_path):
    config = settings()
    sections = config.model_dump() | {
        "baselines": {**config.baselines.model_dump(), "gains": [1.0, 1.05, 1.1]}
    }
    stage = tools(tmp_path, StudyConfig.model_validate(sections))
    known = known_schedules(stage, place_rivals(stage))
    found = screen(stage, known)
    reached = {c.name for c, n, _ in found.all if n == 60}
    plain = {name for name in reached if ", gain " not in name}
    assert reached == {
        f"{name}{end}" for name in plain for end in ("", ", gain 1.05", ", gain 1.1")
    }
    assert {c.name for c in found.best} == reached
    early = [c for c, n, _ in found.all if n == 20]
    assert not [c for c in early if ", gain " in c.name]
    assert 3 * (len(early) + len(plain)) == len(known)
    assert found.passes == 6 * (20 * (len(early) + len(plain)) + (40 + 2 * 60) * len(plain))
    most = costs(stage.config).rungs
    assert found.passes <= sum(most.values())


def test_of_one_rung_all_gains_are_in_it(tmp_path):
    config = settings()
    own = {**config.baselines.model_dump(), "gains": [1.05, 1.0], "rungs": [20]}
    config = StudyConfig.model_validate(config.model_dump() | {"baselines": own})
    stage = tools(tmp_path, config)
    known = known_schedules(stage, place_rivals(stage))
    found = screen(stage, known)
    assert {c.name for c in found.best} == {c.name for c in known}
    assert found.passes == 6 * 20 * len(known) <= sum(costs(config).rungs.values())


def test_the_teacher_is_the_standard_of_as_many_seeds_as_the_stage_has(tmp_path):
    row, passes = measure_teacher(tools(tmp_path, aligned=lambda s: 0.5), SELECTION, 40)
    assert len(row.measurement.features) == 40
    assert 0.2 < row.measurement.alignment < 0.8
    assert passes == 40 * 2 * settings().teacher.steps
    with pytest.raises(UserError, match="the teacher's images are not finite in float32"):
        measure_teacher(tools(tmp_path, broken=lambda s: True), SELECTION, 40)


def test_the_box_is_around_the_best_baseline_that_has_a_formula(tmp_path):
    preset = Candidate("published", plan("karras"), "baseline")
    formula = Candidate("beta, order 2", plan("beta"), "baseline", "beta")
    sigmas = GRIDS["linspace"](3, SD)
    box = make_box(tools(tmp_path), [preset, formula], {("dmn", 3): sigmas})
    assert (box.grid, box.placements) == ("beta", {})
    assert make_box(tools(tmp_path), [preset], {}).grid == "power"


def test_half_of_the_finalists_have_the_whole_alignment():
    trials = [trial(k, 0.91 if k < 6 else 0.99) for k in range(10)] + [trial(10, 0.5)]
    options = settings(finalists=4).search
    chosen = finalists(trials, options, floor=0.9, whole=0.95)
    assert [t.number for t in chosen] == [0, 1, 6, 7]
    assert [t.number for t in finalists(trials, options, 0.9, 0.999)] == [0, 1, 2, 3]
    assert finalists(trials, options, 0.999, 0.999) == []


def test_the_selection_ranks_and_the_test_exports_the_first(tmp_path):
    stage = tools(tmp_path)
    best = [
        Candidate("far", plan("karras"), "baseline"),
        Candidate("unguided", plan("karras", 6, 1.0), "baseline"),
    ]
    teacher, _ = measure_teacher(stage, SELECTION, 100)
    near = make_schedule("linspace", 3, SD, guidance_scale=2.0)
    rows, passes = select(stage, [found(trial(7, 1.0, near))], best, teacher.measurement.aligned)
    assert [row.score.value for row in rows] == sorted(row.score.value for row in rows)
    assert {"found, trial 7", "far", "unguided"} <= {row.candidate.name for row in rows}
    assert passes == 100 * sum(row.candidate.schedule.passes for row in rows)
    tested, winner = chosen_on_test_seeds(stage, rows, teacher.measurement.aligned)
    first = next(r.candidate for r in rows if r.candidate.kind in ("found", "baseline"))
    assert winner is first
    assert len(tested[0].measurement.features) == settings().evaluation.test_images


def test_a_trial_of_the_schedule_of_a_baseline_was_not_found(tmp_path):
    """Searches begin with such trials; as a found one it would be exported for its own baseline."""
    stage = tools(tmp_path)
    names = ("karras", "beta", "exponential", "quadratic", "trailing", "leading")
    best = [Candidate(name, plan(name), "baseline") for name in names]
    best.append(Candidate("unguided", plan("karras", 6, 1.0), "baseline"))
    aligned = measure_teacher(stage, SELECTION, 100)[0].measurement.aligned
    near = make_schedule("linspace", 3, SD, guidance_scale=2.0)
    copies = [found(trial(k, 1.0, plan(name))) for k, name in enumerate(("karras", "leading"))]
    rows, _ = select(stage, [*copies, found(trial(7, 1.0, near))], best, aligned)
    assert [r.candidate.name for r in rows if r.candidate.kind == "found"] == ["found, trial 7"]
    # a baseline further down the list enters, as its copy is among the finalists
    assert {"karras", "leading"} <= {row.candidate.name for row in rows}


def test_a_baseline_that_loses_the_alignment_is_tested_but_not_exported(tmp_path):
    """As an unguided one with a gain at six passes of the bundled model: FD does not see it."""
    near = make_schedule("linspace", 6, SD, guidance_scale=1.0)
    toy = {"target": near.steps[-1].sigma, "aligned": lambda s: 0.5 if s.num_steps == 6 else 1.0}
    stage = tools(tmp_path, **toy)
    best = [Candidate("unguided", near, "baseline"), Candidate("far", plan("karras"), "baseline")]
    aligned = measure_teacher(stage, SELECTION, 100)[0].measurement.aligned
    trials = [found(trial(7, 1.0, plan("beta")))]
    rows, _ = select(stage, trials, best, aligned)
    rows = [row for row in rows if row.candidate.kind != "long"]
    first, second, *_ = (row.candidate for row in rows)
    assert first.name == "unguided"
    tested, winner = chosen_on_test_seeds(stage, rows, aligned)
    assert winner is second
    assert "unguided" in {row.candidate.name for row in tested}
    alone = [row for row in rows if row.candidate.name == "unguided"]  # then it is all there is
    assert chosen_on_test_seeds(stage, alone, aligned)[1] is first


def test_what_is_not_finite_is_left_out_with_a_word(tmp_path):
    news = []
    stage = tools(tmp_path, news=news, broken=lambda s: s.num_steps == 6)
    entrants = [Candidate("good", plan("karras"), "baseline")]
    entrants.append(Candidate("bad", plan("karras", 6, 1.0), "baseline"))
    rows, passes = stage.score(entrants, range(8), "selection")
    assert [row.candidate.name for row in rows] == ["good"]
    assert news[-1] == ("selection", 2, 2, "bad: images are not finite, left out")
    assert passes == 8 * (6 + 6)


def test_news_leave_the_progress_of_a_stage_where_it_is(tmp_path):
    """Of one part where there are many, a bar would be full, and `status` say 1 of 1."""
    teacher = settings().teacher.model_copy(update={"images": 300})
    config, news = settings().model_copy(update={"teacher": teacher}), []
    stage = tools(tmp_path, config, news, broken=lambda s: s.num_steps == 6)
    measure_teacher(stage, SELECTION, 300)
    bad = Candidate("bad", plan("karras", 6, 1.0), "baseline")
    rows = [SimpleNamespace(candidate=c) for c in (Candidate("good", plan("karras"), "found"), bad)]
    chosen_on_test_seeds(stage, rows, np.ones(8, np.float32))
    totals = {name: {total for what, _, total, _ in news if what == name} for name, *_ in news}
    said = {name: [line[:3] for line in news if line[0] == name and line[3]] for name in totals}
    assert [len(total) for total in totals.values()] == [1, 1]
    assert said["teacher"] == [("teacher", 3, 3)]
    (most,) = totals["test"]
    assert said["test"] == [("test", most, most)]
    assert most > 1
