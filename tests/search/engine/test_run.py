"""The stages of the main job, on the toy of `running`."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from optuna.trial import TrialState
from rich.console import Console
from running import SD, SPEC, Reference, ToyWorkers, run, settings

from stepsampler import UserError, load
from stepsampler.noise import FlowSchedule
from stepsearch.config import ModelConfig, StudyConfig
from stepsearch.engine.run import run_study
from stepsearch.engine.stages.selection import lost
from stepsearch.engine.study import finished, open_study, pruned, schedule_of, usable, work
from stepsearch.engine.tracking import NoTracking
from stepsearch.engine.transfer import start_points
from stepsearch.engine.workers import Subject
from stepsearch.metrics.evaluator import SELECTION, TEST
from stepsearch.report.summary import as_data, table, verdict, write
from stepsearch.space.box import SearchSpace


def test_a_search_that_succeeds(tmp_path):
    result, config, _ = run(tmp_path)
    assert result.winner.kind == "found"
    assert result.trials == 40
    kinds = [row.candidate.kind for row in result.test]
    assert kinds == ["found", "baseline", "baseline", "baseline", *kinds[4:-2], "long", "teacher"]
    passes = {row.candidate.schedule.passes for row in result.of_kind("baseline")}
    guided = {row.candidate.schedule.steps[0].guidance_scale for row in result.of_kind("baseline")}
    assert passes == {6}
    assert guided == {1.0, 2.0}  # either kind is in the test, whatever the screening thinks
    assert len(result.beaten) == len(result.of_kind("baseline"))
    assert 0.5 < result.gap_closed <= 1.1
    sentence = verdict(result, config)
    assert sentence.startswith("Within the same budget, 6 passes, the found schedule beats")
    assert "of 57 baselines" in sentence  # 13 placements, 4 times each, and 5 presets

    write(result, config, tmp_path)
    schedule = load(tmp_path / "best.json")
    assert schedule.steps == result.winner.schedule.steps
    assert schedule.provenance["metric"] == "fd_toy4_400"
    data = json.loads((tmp_path / "result.json").read_text())
    assert data["test"][1]["minus_found"] > 2 * data["test"][1]["minus_found_se"] > 0
    assert len(table(result, config).rows) == len(result.test)


def test_the_search_starts_from_baselines_and_from_the_passes_spread_over_more_steps(tmp_path):
    run(tmp_path)
    trials = finished(open_study(tmp_path, settings()))
    origins = [t.user_attrs["origin"] for t in trials if "origin" in t.user_attrs]
    assert len(origins) <= 13
    for n, guided in ((4, 2), (5, 1)):
        for place in ("first", "middle"):
            assert any(f"{n} steps, the {place} {guided} guided" in name for name in origins)
    assert any("3 steps, the first 2 guided" in name for name in origins), "with a pass to spare"


def test_every_stage_is_paid_for_failed_trials_too(tmp_path):
    config = settings(trials=12)
    result, _, _ = run(tmp_path, config, broken=lambda s: s.num_steps == 4)
    images = config.evaluation.images
    trials = open_study(tmp_path, config).get_trials()
    assert any(t.state == TrialState.FAIL for t in trials)
    assert result.passes == {
        "statistics": 0,
        "rivals": 2 * 70,
        "baselines": sum(6 * n for _, n, _ in result.screened),
        "teacher": (images + config.evaluation.selection_images) * 2 * config.teacher.steps,
        "patterns": 0,
        "trials": sum(schedule_of(t).passes * images for t in trials),
        "polish": 0,
        "selection": sum(row.candidate.schedule.passes for row in result.selection) * 100,
    }
    assert as_data(result, config)["search_passes"] == sum(result.passes.values())
    again, _, _ = run(tmp_path, config)
    assert again.passes == result.passes


def test_a_worker_with_other_weights_takes_no_part(tmp_path):
    _, config, workers = run(tmp_path, settings(trials=2))
    workers.identity = "other"
    with pytest.raises(UserError, match="the search is of another model.*: 'toy', not 'other'"):
        work(tmp_path, config, workers, 1)


def test_a_second_run_searches_no_more(tmp_path):
    first, _, _ = run(tmp_path)
    second, _, _ = run(tmp_path)
    assert second.trials == first.trials == 40
    assert second.winner.schedule == first.winner.schedule


def test_schedules_that_lose_alignment_are_not_chosen(tmp_path):
    """Only those that end far from the target are aligned: the search must not take the others."""
    result, config, _ = run(
        tmp_path,
        aligned=lambda s: 1.0 if s.num_steps > 15 or s.steps[-1].sigma > 0.3 else 0.2,
    )
    assert result.teacher.measurement.alignment == 1.0
    for row in result.selection:
        if row.candidate.kind == "found":
            assert row.candidate.schedule.steps[-1].sigma > 0.3
    if result.found:
        assert result.found.measurement.alignment > 0.98
    assert "lignment" in verdict(result, config)


def test_alignment_that_is_lost_within_the_noise_of_the_seeds_is_not_held_against_a_finalist():
    """Two images of a hundred are 0.02 with a standard error of 0.014; of a thousand twenty."""
    ones, few, many = np.ones(100), np.ones(100), np.ones(1000)
    few[:2], many[:20] = 0, 0
    assert lost(ones, few, 0) == pytest.approx(0.02)
    assert lost(ones, few, 1) == pytest.approx(0.02 - (0.02 * 0.98 / 99) ** 0.5)
    assert lost(ones, few, 1) < 0.01 < lost(np.ones(1000), many, 1)
    assert lost(np.ones(300), few, 1) == lost(ones, few, 1)  # on the seeds that both have
    assert np.isnan(lost(ones, ones * np.nan, 1))


@pytest.mark.parametrize("safe", [True, False])
def test_the_allowance_for_the_noise_of_alignment_is_for_want_of_anything_else(tmp_path, safe):
    """Those below `luck` lose one of the selection's 100 images, and none of the trials' 60."""
    luck = 0.994

    def aligned(schedule):
        many = schedule.num_steps > 15
        return 1.0 if many or (safe and schedule.steps[-1].sigma > 0.05) else luck

    result, _, _ = run(tmp_path, settings(alignment_drop=0.004), aligned=aligned)
    found = [row for row in result.selection if row.candidate.kind == "found"]
    shares = {round(float(row.measurement.alignment), 3) for row in found}
    assert shares == ({1.0} if safe else {0.99})


def test_half_of_the_finalists_keep_the_teachers_whole_alignment(tmp_path):
    """What is near the floor on the trials' seeds can be below it on those of the selection."""

    def aligned(schedule):  # the better, the less
        if schedule.num_steps > 15:
            return 0.9
        return 0.85 if schedule.steps[-1].sigma < 0.06 else 0.95

    config = settings(alignment_drop=0.2)
    result, _, _ = run(tmp_path, config, aligned=aligned)
    found = [row.candidate for row in result.selection if row.candidate.kind == "found"]
    safe = [c for c in found if c.schedule.steps[-1].sigma > 0.06]
    assert len(found) == config.search.finalists
    assert len(safe) == config.search.finalists // 2


def test_finalists_are_different_schedules(tmp_path):
    """Points whose guidance is off by different numbers are one schedule."""
    _, config, _ = run(tmp_path, settings(trials=4))
    study = open_study(tmp_path, config)
    before = usable(study)
    study.add_trial(before[0])
    assert [t.number for t in usable(study)] == [t.number for t in before]


def test_without_an_aligned_trial_the_best_baseline_is_exported(tmp_path):
    result, config, _ = run(
        tmp_path, settings(trials=3), aligned=lambda s: 1.0 if s.num_steps > 15 else 0.2
    )
    assert result.found is None
    assert result.winner.kind == "baseline"
    assert verdict(result, config).startswith("No trial but those of baselines kept the")
    assert as_data(result, config)["beaten"] == []


def test_prompts_without_classes_have_no_alignment(tmp_path):
    """Alignment is NaN then, which JSON does not know."""
    result, config, _ = run(tmp_path, settings(trials=5), aligned=lambda s: np.nan)
    for row in (*result.test, result.teacher):
        row.measurement.aligned[:] = np.nan
    write(result, config, tmp_path)
    assert load(tmp_path / "best.json").provenance["alignment"] is None
    assert json.loads((tmp_path / "result.json").read_text())["test"][0]["alignment"] is None


def test_a_baseline_with_broken_images_is_out_and_the_run_goes_on(tmp_path):
    news = []
    result, _, _ = run(
        tmp_path,
        settings(trials=5),
        news,
        broken=lambda s: s.steps[0].guidance_scale == 2.0 and s.num_steps < 15,
    )
    assert result.trials == 5
    assert all(np.isfinite(row.score.value) for row in result.test)


def test_a_long_row_with_broken_images_is_out_too(tmp_path):
    result, _, _ = run(tmp_path, settings(trials=2), broken=lambda s: s.num_steps == 20)
    assert not result.of_kind("long")
    assert len(result.of_kind("teacher")) == 1


def test_a_teacher_with_broken_images_is_no_standard(tmp_path):
    message = "the teacher's images are not finite in float32: try another model.dtype"
    with pytest.raises(UserError, match=message):
        run(tmp_path, settings(trials=2), broken=lambda s: s.num_steps == 50)


def test_a_found_schedule_that_breaks_on_the_test_seeds_gives_way_to_the_best_baseline(tmp_path):
    found, config, _ = run(tmp_path)
    assert found.winner.kind == "found"
    plan = found.winner.schedule
    result, _, _ = run(tmp_path, config, broken=lambda s: s.steps == plan.steps, broken_from=TEST)
    assert result.found is None
    assert result.winner.kind == "baseline"
    assert result.winner in [row.candidate for row in result.test]
    assert verdict(result, config).startswith("On the test seeds the found schedule's images are")
    write(result, config, tmp_path)
    assert load(tmp_path / "best.json").steps == result.winner.schedule.steps


@pytest.mark.parametrize("first", [SELECTION, TEST])
def test_without_any_schedule_that_keeps_finite_nothing_is_exported(tmp_path, first):
    message = "the images of all schedules are not finite in float32: try another model.dtype"
    with pytest.raises(UserError, match=message):
        run(tmp_path, settings(trials=2), broken=lambda s: s.num_steps < 50, broken_from=first)


def test_what_only_the_check_looks_at_may_change(tmp_path):
    config = settings(trials=2)
    run(tmp_path, config)
    run(tmp_path, config.model_copy(update={"model": ModelConfig(kind="stable-diffusion")}))


def test_another_model_refuses_the_folder(tmp_path):
    config = settings(trials=2)
    run(tmp_path, config)
    workers = ToyWorkers(config, tmp_path)
    workers.describe = lambda: Subject(SD, SPEC, Reference, "other weights", "classifier-free")
    with pytest.raises(UserError, match="started with model, reference and prompts = 'toy'"):
        run_study(config, tmp_path, workers, NoTracking(), lambda *line: None)
    assert workers.images == 0  # nothing was measured for it


def test_a_larger_budget_goes_on_where_the_smaller_ended(tmp_path):
    run(tmp_path, settings(trials=4))
    result, _, _ = run(tmp_path, settings(trials=6))
    assert result.trials == 6
    with pytest.raises(UserError, match=r"search\.algorithm = 'tpe', now it is 'random'"):
        run(tmp_path, settings(trials=6, algorithm="random"))


def climbing(**search):
    data = settings(**search).model_dump()
    return StudyConfig.model_validate(
        data | {"evaluation": data["evaluation"] | {"rungs": [20, 60]}}
    )


def test_the_progress_line_says_how_many_trials_were_pruned(tmp_path):
    news = []
    config = climbing(finalists=3)
    result, _, _ = run(tmp_path, config, news)
    study = open_study(tmp_path, config)
    assert result.trials == 40
    assert result.pruned == len(pruned(study)) > 10
    stage, done, total, _ = [line for line in news if line[0].startswith("search")][-1]
    assert (stage, done, total) == (f"search ({result.pruned} pruned)", 40, 40)
    whole = {t.number for t in finished(study)}
    assert {r.candidate.trial for r in result.selection if r.candidate.kind == "found"} <= whole
    assert as_data(result, config)["pruned"] == result.pruned


def test_a_search_that_no_longer_gains_stops_and_says_so(tmp_path):
    news = []
    config = settings(patience=5)
    result, _, _ = run(tmp_path, config, news)
    assert result.trials < 40
    said = [line for line in news if line[3].startswith("stopped")]
    sentence = (
        f"stopped after {result.trials} of 40 trials: the last 5 of the algorithm improved FD"
    )
    assert said[0][3].startswith(sentence)
    assert as_data(result, config)["stopped"] == result.stopped
    again, _, _ = run(tmp_path, config)
    assert again.trials == result.trials
    more, _, _ = run(tmp_path, settings(trials=result.trials + 2))
    assert more.trials == result.trials + 2


def test_a_study_starts_from_the_best_trials_of_an_earlier_one(tmp_path):
    first, config, _ = run(tmp_path / "three")
    write(first, config, tmp_path / "three")
    data = settings(trials=12, finalists=4, start_from=str(tmp_path / "three")).model_dump()
    data["space"] |= {"num_steps": 4, "passes": 8, "guidance_scale": (1.5, 2.5)}
    data["baselines"]["rivals"] = []
    run(tmp_path / "four", StudyConfig.model_validate(data))
    trials = finished(open_study(tmp_path / "four", StudyConfig.model_validate(data)))
    theirs = {t.number: t for t in finished(open_study(tmp_path / "three", config))}
    warm = [t for t in trials if t.user_attrs.get("origin", "").endswith(" of three")]
    assert [t.number for t in warm] == list(range(len(warm)))  # before the baselines
    assert 1 <= len(warm) <= 4
    chosen = [r.candidate.trial for r in first.selection if r.candidate.kind == "found"]
    assert warm[0].user_attrs["origin"] == f"trial {chosen[0]} of three"
    for t in warm:
        source = theirs[int(t.user_attrs["origin"].split()[1])]
        assert schedule_of(t).num_steps == schedule_of(source).num_steps + 1 - (
            schedule_of(source).num_steps == 6  # the box ends at six steps
        )
        assert schedule_of(t).final_sigma == pytest.approx(schedule_of(source).final_sigma)
        assert 1.5 <= t.params["guidance_scale"] <= 2.5


def test_an_unfinished_run_is_nothing_to_start_from(tmp_path):
    config = settings(start_from=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"search\.start_from: .*nowhere: no finished run"):
        run(tmp_path / "new", config)
    assert not (tmp_path / "new").exists()


def test_a_flow_models_run_is_nothing_to_start_from_for_another_model(tmp_path):
    first, config, _ = run(tmp_path / "three", settings(trials=3))
    write(first, config, tmp_path / "three")
    flow = FlowSchedule()
    space = SearchSpace(config.space, flow, flow.spec("flux"), "linspace")
    with pytest.raises(
        UserError, match="three searched for a model of the other kind, flow or not"
    ):
        start_points(tmp_path / "three", space, 2)


def test_minutes_are_counted_over_all_calls(tmp_path):
    first, _, _ = run(tmp_path, settings(trials=4))
    second, _, _ = run(tmp_path, settings(trials=40, minutes=1e-6))
    assert second.trials == first.trials == 4


def test_a_teacher_that_is_no_better_leaves_no_gap_to_close(tmp_path):
    result, config, _ = run(tmp_path)
    teacher = result.of_kind("teacher")[0]
    best = min(result.of_kind("baseline"), key=lambda row: row.score.value)
    for score in (best.score, replace(best.score, value=best.score.value + 1)):
        rows = [r for r in result.test if r is not teacher] + [replace(teacher, score=score)]
        level = replace(result, test=rows)
        assert level.gap_closed is None
        assert "gap" not in verdict(level, config)


def test_a_loss_of_alignment_on_the_test_seeds_is_said(tmp_path):
    result, config, _ = run(tmp_path)
    assert "drop is larger" not in verdict(result, config)
    found = result.found.measurement
    lower = replace(result.found, measurement=replace(found, aligned=found.aligned * 0.9))
    assert "drop is larger" in verdict(replace(result, test=[lower, *result.test[1:]]), config)


@pytest.mark.parametrize("width", [80, 110])
def test_no_number_of_the_table_is_cut_off(tmp_path, width):
    result, config, _ = run(tmp_path)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table(result, config))
    text = console.export_text()
    assert "…" not in text
    for row in result.test:
        assert f"{row.score.value:.3f} ± {row.score.se:.3f}" in text
