"""The polish of finalists as a stage of a run."""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from running import SD, ToyWorkers, run, settings

from stepsampler.grids import make_schedule
from stepsampler.models import load
from stepsearch.config import StudyConfig
from stepsearch.config.space import SpaceConfig
from stepsearch.engine.claim import BEST, RESULT
from stepsearch.engine.jobs.kinds import Looking
from stepsearch.engine.stages.costs import costs
from stepsearch.engine.stages.polishing import may_begin, polish_best, room_of, with_gains
from stepsearch.engine.stages.tools import Tools
from stepsearch.engine.tracking import NoTracking
from stepsearch.engine.workers import Workers
from stepsearch.metrics.evaluator import Evaluator, Measurement
from stepsearch.metrics.protocol import Row
from stepsearch.polish.descent import Settings, polish
from stepsearch.polish.knobs import Knobs, numbers_of
from stepsearch.polish.looking import Here
from stepsearch.report.cards.health import checks
from stepsearch.report.sources import of_run
from stepsearch.report.summary import write
from stepsearch.rivals.baselines import Candidate, gained


def plan(grid, n=3, w=2.0):
    return make_schedule(grid, n, SD, guidance_scale=w)


def found(number, schedule):
    return Candidate(f"found, trial {number}", schedule, "found", trial=number)


def ending(sigma, grid="karras", n=3, w=2.0):
    """Its toy's distance is that of its last level from 0.05."""
    *steps, last = plan(grid, n, w).steps
    return replace(plan(grid, n, w), steps=(*steps, replace(last, sigma=sigma)))


KEPT = np.ones(100, np.float32)  # the teacher's alignment


def stage_of(tmp_path, news, config, **toy):
    workers = ToyWorkers(config, tmp_path, **toy)
    said = lambda *line: news.append(line)  # noqa: E731
    return Tools(config, workers.describe(), workers, NoTracking(), said), workers


def test_the_better_ones_stand_beside_what_they_were(tmp_path):
    """The toy is best where the last level is 0.05."""
    lossy, stuck = ending(0.1, n=4), ending(0.12, n=6)
    known = {4: ending(0.4), 5: stuck, 7: lossy, 8: ending(0.3, "beta"), 9: ending(1.2)}
    news, config = [], settings(polish=4)
    stage, _ = stage_of(
        tmp_path,
        news,
        config,
        aligned=lambda s: float(s.num_steps != 4 or s == lossy),
        refused=lambda s: s == stuck,
    )
    better, passes = polish_best(stage, [found(*pair) for pair in known.items()], [], KEPT)
    names = ["found, trial 8, polished", "found, trial 4, polished"]
    assert [(c.name, c.kind) for c in better] == [(name, "found") for name in names]
    assert [c.trial for c in better] == [8, 4]
    for polished in better:
        was, now = (s.steps[-1].sigma for s in (known[polished.trial], polished.schedule))
        assert 0.05 < now < 0.9 * was
        assert polished.schedule.steps[-1].gain == 1  # which the box has not
    each = Settings.of_study(config).most_images
    assert each(9) == 2 * (10 * 60 + 3 * 100) + 100
    # four have the first iteration and two the second; of at most six guided steps: levels, scales
    most = 12 * (4 * (13 * 60 + 3 * 100 + 100) + 2 * (13 * 60 + 3 * 100))
    assert 0 < passes < most
    ranking = [line for line in news if line[0] == "polish (finalists are ranked)"]
    assert ranking[-1][1:3] == (5, 5)
    stages = [line for line in news if line[0] == "polish"]
    assert stages[0][2:] == (600, f"4 schedules, at most {most:,} network passes")
    done = [line[1] for line in stages]
    assert done == sorted(done)
    assert done[-1] == 600
    ends = [line[3] for line in stages[1:] if line[3]]
    assert ends[0] == "found, trial 7: no check was better and kept the alignment"
    assert ends[1] == "found, trial 5: the toy does not take it"
    assert re.fullmatch(r"found, trial 8: [\d.]+ -> [\d.]+ on selection seeds", ends[2])
    assert len(ends) == 6
    again = {end.partition(":")[0] for end in ends[4:]}
    assert again == {"found, trial 7", "found, trial 8"}, "the better half goes on"


def test_the_best_on_selection_seeds_that_keep_the_alignment_are_polished(tmp_path):
    """The best trial of many was lucky on the seeds that chose it."""
    lossy, better, lucky = ending(0.1, n=4), ending(0.2), ending(0.3)
    stage, _ = stage_of(
        tmp_path, [], settings(polish=1), aligned=lambda s: 0.5 if s == lossy else 1.0
    )
    known = [found(1, lucky), found(2, lossy), found(3, better)]
    ((polished,), _) = polish_best(stage, known, [], KEPT)
    assert polished.trial == 3
    for toy in ({"broken": lambda s: True}, {"aligned": lambda s: 0.5}):
        news = []
        stage, _ = stage_of(tmp_path, news, settings(polish=1), **toy)
        assert polish_best(stage, known, [], KEPT) == ([], 0)
        said = "none is polished: no finalist or baseline has finite images and keeps the alignment"
        assert news[-1] == ("polish", 1, 1, said)


def test_baselines_that_keep_the_alignment_begin_a_polish_too(tmp_path):
    """They can have what the box has not; what a finalist is already, is polished once."""

    def gained(schedule):
        return replace(schedule, steps=tuple(replace(s, gain=1.07) for s in schedule.steps))

    ours, theirs, lossy = ending(0.3), gained(ending(0.2)), gained(ending(0.1, n=4))
    known = [
        Candidate(name, schedule, "baseline")
        for name, schedule in (("lossy", lossy), ("theirs", theirs), ("ours again", ours))
    ]
    config = settings(polish=3, polish_iterations=1)
    stage, _ = stage_of(tmp_path, [], config, aligned=lambda s: 0.5 if s == lossy else 1.0)
    better, _ = polish_best(stage, [found(4, ours)], known, KEPT)
    assert [c.name for c in better] == ["theirs, polished", "found, trial 4, polished"]
    assert {c.kind for c in better} == {"found"}
    assert better[0].trial is None
    assert [step.gain for step in better[0].schedule.steps] == [1.07] * 3
    assert better[0].schedule.steps[-1].sigma < 0.19


def test_a_run_exports_a_baseline_that_was_polished(tmp_path):
    """The toy's baselines end where `target` has the best of them, its box never comes near."""
    known = settings(polish=2, trials=2).model_dump()
    known["space"] |= {"final_sigma": (0.4, 0.6)}
    config = StudyConfig.model_validate(known)
    result, *_ = run(tmp_path, config, target=0.035)
    assert result.winner.kind == "found"
    assert result.winner.trial is None
    write(result, config, tmp_path)
    said = [check["sentence"] for check in checks(of_run(tmp_path))]
    (box,) = (text for text in said if "the box" in text)
    assert box.startswith("The best trial, "), "which is not what is exported"
    start = result.winner.name.removesuffix(", polished")
    assert start != result.winner.name
    rows = {row.candidate.name: row for row in result.selection}
    assert rows[start].candidate.kind == "baseline"
    assert rows[result.winner.name].score.value < rows[start].score.value


def test_of_one_schedule_with_several_gains_the_best_is_polished(tmp_path):
    """So that finalists without a gain do not stand behind baselines with theirs."""
    known = settings(polish=2, polish_gain=True, trials=8, finalists=3).model_dump()
    known["baselines"]["gains"] = (1.0, 1.1)
    result, *_ = run(tmp_path, StudyConfig.model_validate(known), target=0.31)
    rows = [row.candidate.name for row in result.selection]
    own = [name for name in rows if name.startswith("found, ")]
    plain = [name for name in own if "gain" not in name and "polished" not in name]
    assert plain
    assert all(f"{name}, gain 1.1" in own for name in plain)
    starts = [name.removesuffix(", polished") for name in own if name.endswith(", polished")]
    assert len({name.removesuffix(", gain 1.1") for name in starts}) == len(starts) > 0


def test_finalists_stand_as_they_are_beside_gains_that_have_no_1(tmp_path):
    """They were found so; gains of the baselines only come beside."""
    known = settings(polish=1, polish_gain=True, trials=8, finalists=3).model_dump()
    known["baselines"]["gains"] = (1.05, 1.1)
    config = StudyConfig.model_validate(known)
    result, *_ = run(tmp_path, config, target=0.31)
    own = {row.candidate.name for row in result.selection if row.candidate.kind == "found"}
    trials = {row.candidate.trial for row in result.selection} - {None}
    assert {f"found, trial {trial}" for trial in trials} <= own
    assert any(name.endswith(", gain 1.05") for name in own)
    assert result.passes["selection"] <= costs(config).passes["selection"]


def test_a_finalist_that_another_is_with_a_gain_stands_once():
    plain = found(1, ending(0.3))
    again = replace(gained([plain], [1.1])[0], name="found, trial 2", trial=2, plain="")
    names = [c.name for c in with_gains([plain, again], [1.1])]
    assert names == ["found, trial 1", "found, trial 2", "found, trial 2, gain 1.1"]


def test_baselines_that_are_not_as_the_box_has_all_begin_no_polish(tmp_path):
    """What is found there must be for the tools that take nothing else."""
    leading, karras = (Candidate(g, plan(g), "baseline", g) for g in ("leading", "karras"))
    first, *others = leading.schedule.steps
    stronger = replace(leading.schedule, steps=(replace(first, guidance_scale=3.0), *others))
    rising = Candidate("rising", stronger, "baseline")
    unguided = Candidate("unguided", plan("karras", 6, 1.0), "baseline", "karras")
    for box, fitting in (
        ({}, "leading karras rising unguided"),
        ({"guidance": "off"}, "unguided"),
        ({"guidance": "constant"}, "leading karras unguided"),
        ({"placement": "karras"}, "karras unguided"),
        ({"whole_timesteps": True}, "leading rising"),
    ):
        space = SpaceConfig(num_steps=3, passes=6, **box)
        known = [c for c in (leading, karras, rising, unguided) if may_begin(c, space, SD)]
        assert " ".join(c.name for c in known) == fitting, box
    known, news = settings(polish=2, trials=2, finalists=2).model_dump(), []
    known["space"]["placement"] = "karras"
    run(tmp_path, StudyConfig.model_validate(known), news)
    ends = [line[3] for line in news if line[0] == "polish" and line[1] and line[3]]
    assert ends
    assert all(end.startswith(("found, trial", "karras, ")) for end in ends), "leading is the best"


def test_as_much_alignment_may_be_lost_as_the_selection_allows(tmp_path):
    """Else what is polished would not be kept there."""
    teacher = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0], np.float32)  # of fewer images
    at = lambda share: np.array([share] * 10 + [0.9] * 10, np.float32)  # noqa: E731
    stage, _ = stage_of(tmp_path, [], settings(polish=1, alignment_drop=0.05))
    whole, short, unknown = (
        room_of(stage, Row(found(1, ending(0.1)), Measurement(None, at(share)), None), teacher)
        for share in (0.6, 0.4, np.nan)
    )
    assert whole(at(0.44)) < 0 < whole(at(0.46))  # 0.45 is the floor
    assert short(at(0.39)) < 0 < short(at(0.41))  # the start has lost more
    assert np.isnan(unknown(at(np.nan)))


def test_what_it_may_cost_counts_all_guidance_scales_and_scales_that_cost_no_pass(tmp_path):
    known = settings(polish=1).model_dump()
    known["evaluation"]["guidance_scales"] = [2.0, 4.0]
    known["space"] |= {"guidance": "per-step", "reuse": 3}
    config, news = StudyConfig.model_validate(known), []
    stage, _ = stage_of(tmp_path, news, config)
    first, *others = plan("karras").steps
    reusing = [replace(step, guidance_reuse=True) for step in others]
    schedule = replace(plan("karras"), steps=(first, *reusing))
    assert schedule.passes == 4
    _, passes = polish_best(stage, [found(4, schedule)], [], KEPT)
    most = 2 * 4 * Settings.of_study(config).most_images(3 + 3)
    (said,) = (line[3] for line in news if "at most" in line[3])
    assert said == f"1 schedule, at most {most:,} network passes"
    assert passes <= most


def test_nothing_is_polished_where_the_study_does_not_say_so(tmp_path):
    stage, _ = stage_of(tmp_path, [], settings())
    assert polish_best(stage, [found(4, ending(0.1))], [], KEPT) == ([], 0)


def test_a_run_exports_the_polished_one_where_the_selection_ranks_it_first(tmp_path):
    config = settings(polish=1, trials=12)
    result, *_ = run(tmp_path, config, target=0.31)
    assert result.winner.name.endswith(", polished")
    assert 0 < result.passes["polish"] <= Settings.of_study(config).most_images(12) * 6
    found = [row for row in result.selection if row.candidate.kind == "found"]
    assert found[0].candidate == result.winner
    assert found[0].score.value < found[1].score.value


def looked(tmp_path, sharing, batch=100):
    """The parts of each look of a run at many plans at once."""
    known = settings(polish=1, trials=12)
    changed = known.evaluation.model_copy(update={"batch_size": batch})
    config = known.model_copy(update={"evaluation": changed})
    _, _, workers = run(tmp_path, config, target=0.31, sharing=sharing)
    return {tuple(parts) for plans, parts in workers.looks if plans > 1}


def test_each_worker_has_a_part_of_a_look_though_a_batch_holds_all_its_images(tmp_path):
    for sharing in (1, 3, 4):
        for parts in looked(tmp_path / f"{sharing}", sharing):
            assert len(parts) == sharing
            assert sum(map(len, parts)) == 60
            assert max(map(len, parts)) == 60 // sharing
    assert {len(parts) for parts in looked(tmp_path / "small", 3, batch=8)} == {8}


def test_a_polish_that_goes_on_with_other_workers_asks_for_the_same_parts(tmp_path):
    """What was measured before is recalled in the same parts alone."""
    before = looked(tmp_path, 3)
    for name in (BEST, RESULT):
        (tmp_path / name).unlink(missing_ok=True)
    assert looked(tmp_path, 2) == before
    assert before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": {"polish": 9}}, "polish must be at most finalists = 8, got 9"),
        ({"search": {"polish_gain": True}}, "polish_gain is of a polish, and polish is 0"),
        (
            {"search": {"polish": 1, "objectives": ["fd", "alignment"]}},
            "polish is for one objective",
        ),
        (
            {"search": {"polish": 1, "polish_iterations": 200_000}},
            "search.polish_iterations times evaluation.images must be at most 10,000,000",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes, message):
    known = settings().model_dump()
    known = {key: {**known[key], **changes.get(key, {})} for key in known if key != "name"}
    with pytest.raises(ValueError, match=message):
        StudyConfig.model_validate({"name": "toy", **known})


def of_tiny(extractor="texture", **search):
    known = settings(**search).model_dump()
    known["evaluation"] = {
        "extractor": extractor,
        "images": 8,
        "selection_images": 8,
        "rulers": [],
    }
    return StudyConfig.model_validate(known)


def test_a_look_of_many_numbers_fits_into_a_column_of_mysql():
    knobs = Knobs(plan("karras", 20), "gain")
    at = np.random.default_rng(0).normal(size=60) / 100
    units = np.diag(knobs.rates.numpy())
    sides = [[knobs.schedule(at + u), knobs.schedule(at - u)] for u in units]
    job = Looking.of(sides, range(50))
    assert len(json.dumps(asdict(job))) < 65_535  # bytes; as plain text five times as many
    assert job.passes == 60 * 40 * 50
    assert job.said == "50 images of each of 60 schedules of a polish"


def test_workers_share_a_polish_of_the_bundled_model(tmp_path):
    """And it is the same polish, whoever measures."""
    config = of_tiny(polish=1, polish_iterations=1)
    model = load("tiny")
    start = make_schedule("kl-optimal", 2, model.noise, guidance_scale=2.0, model=model.spec)
    with Workers(config, tmp_path / "two", ["cpu", "cpu"]) as workers:
        tools = Tools(config, workers.describe(), workers, NoTracking(), lambda *line: None)
        ((shared,), passes) = polish_best(tools, [found(0, start)], [], KEPT[:8])
    alone = polish(
        Here(Evaluator(config, tmp_path / "one")),
        Knobs(start, **numbers_of(config)),
        Settings.of_study(config),
    )
    assert passes == alone.passes
    for a, b in zip(shared.schedule.steps, alone.schedule.steps, strict=True):
        assert a.sigma == pytest.approx(b.sigma, rel=1e-3)
