"""The polish of finalists as a stage of a run."""

from dataclasses import replace

import numpy as np
import pytest
from running import SD, ToyWorkers, settings

from stepsampler.grids import make_schedule
from stepsampler.models import load
from stepsampler.schedule import Schedule
from stepsearch.config import StudyConfig
from stepsearch.engine.run import run_study
from stepsearch.engine.stages.polishing import polish_best
from stepsearch.engine.stages.tools import Tools
from stepsearch.engine.tracking import NoTracking
from stepsearch.engine.workers import InThisProcess
from stepsearch.polish.descent import Check, Polished, Settings
from stepsearch.rivals.baselines import Candidate


def plan(grid, n=3, w=2.0):
    return make_schedule(grid, n, SD, guidance_scale=w)


def found(number, schedule):
    return Candidate(f"found, trial {number}", schedule, "found", trial=number)


def ending(sigma, grid="karras", n=3, w=2.0):
    """Its toy's distance is that of its last level from 0.05."""
    *steps, last = plan(grid, n, w).steps
    return replace(plan(grid, n, w), steps=(*steps, replace(last, sigma=sigma)))


KEPT = np.ones(100, np.float32)  # the teacher's alignment

GOOD = plan("karras", w=3.0)


def made(schedule: Schedule, better: bool, settings: Settings) -> Polished:
    checks = [Check(0, [], 9.0, 1.0, 10), Check(3, [], 6.0 if better else 9.5, 1.0, 50)]
    return Polished(schedule, checks[better], checks, settings.most_images(9))


class Polishing(ToyWorkers):
    """Says what became of each schedule without measuring any."""

    def polish(self, schedules, settings):
        for place, schedule in reversed(list(enumerate(schedules))):
            if schedule.num_steps == 6:
                yield place, "two levels coincide"
            else:
                yield place, made(GOOD, schedule.steps[0].guidance_scale > 1.5, settings)


def test_the_better_ones_stand_beside_what_they_were(tmp_path):
    news, config = [], settings(polish=3)
    workers = Polishing(config, tmp_path)
    said = lambda *line: news.append(line)  # noqa: E731
    stage = Tools(config, workers.describe(), workers, NoTracking(), said)
    known = {
        4: ending(0.05),
        5: ending(0.04, n=6),
        7: ending(0.07, "beta", w=1.2),
        8: ending(0.2, "beta"),
    }
    better, passes = polish_best(stage, [found(*pair) for pair in known.items()], KEPT)
    assert [(c.name, c.kind, c.trial) for c in better] == [("found, trial 4, polished", "found", 4)]
    assert better[0].schedule == GOOD
    each = Settings.of_study(stage.config).most_images
    assert each(9) == 2 * (10 * 60 + 3 * 100) + 100
    assert passes == 2 * each(9)  # of the refused one none are known
    # of three and of six guided steps: levels and scales; the box has no gain
    most = (6 + 6) * each(3 + 3) + 12 * each(6 + 6)
    ranking, news = news[:-4], news[-4:]
    assert {line[0] for line in ranking} == {"polish (finalists are ranked)"}
    assert news[0] == (
        "polish",
        0,
        3,
        f"3 schedules, at most {most:,} network passes",
    )
    assert [line[3] for line in news[1:]] == [
        "found, trial 7: no check was better and kept the alignment",
        "found, trial 5: two levels coincide",
        "found, trial 4: 9.000 -> 6.000 on selection seeds",
    ]


def test_the_best_on_selection_seeds_that_keep_the_alignment_are_polished(tmp_path):
    """The best trial of many was lucky on the seeds that chose it."""
    config, news = settings(polish=1), []
    lossy, better, lucky = ending(0.05, w=4.0), ending(0.06), ending(0.08)
    aligned = lambda schedule: 0.5 if schedule == lossy else 1.0  # noqa: E731
    workers = Polishing(config, tmp_path, aligned=aligned)
    said = lambda *line: news.append(line)  # noqa: E731
    stage = Tools(config, workers.describe(), workers, NoTracking(), said)
    known = [found(1, lucky), found(2, lossy), found(3, better)]
    ((polished,), _) = polish_best(stage, known, KEPT)
    assert polished.trial == 3
    broken = Polishing(config, tmp_path, broken=lambda s: True)
    stage = Tools(config, broken.describe(), broken, NoTracking(), said)
    assert polish_best(stage, known, KEPT) == ([], 0)


def test_what_it_may_cost_counts_all_guidance_scales_and_scales_that_cost_no_pass(tmp_path):
    known = settings(polish=1).model_dump()
    known["evaluation"]["guidance_scales"] = [2.0, 4.0]
    known["space"] |= {"guidance": "per-step", "reuse": 3}
    config, news = StudyConfig.model_validate(known), []
    workers = Polishing(config, tmp_path)
    stage = Tools(
        config, workers.describe(), workers, NoTracking(), lambda *line: news.append(line)
    )
    first, *others = plan("karras").steps
    reusing = [replace(step, guidance_reuse=True) for step in others]
    schedule = replace(plan("karras"), steps=(first, *reusing))
    assert schedule.passes == 4
    polish_best(stage, [found(4, schedule)], KEPT)
    most = 2 * 4 * Settings.of_study(config).most_images(3 + 3)
    assert news[-2][3] == f"1 schedule, at most {most:,} network passes"


def test_nothing_is_polished_where_the_study_does_not_say_so(tmp_path):
    workers = ToyWorkers(settings(), tmp_path)
    stage = Tools(settings(), workers.describe(), workers, NoTracking(), print)
    assert polish_best(stage, [found(4, GOOD)], KEPT) == ([], 0)


class Reaching(Polishing):
    def polish(self, schedules, settings):
        for place, schedule in enumerate(schedules):
            *steps, last = schedule.steps
            steps.append(replace(last, sigma=self.target))
            yield place, made(replace(schedule, steps=tuple(steps)), True, settings)


def test_a_run_exports_the_polished_one_where_the_selection_ranks_it_first(tmp_path):
    config = settings(polish=1, trials=12)
    workers = Reaching(config, tmp_path, target=0.31)
    result = run_study(config, tmp_path, workers, NoTracking(), lambda *line: None)
    assert result.winner.name.endswith(", polished")
    assert result.passes["polish"] == Settings.of_study(config).most_images(9)
    found = [row for row in result.selection if row.candidate.kind == "found"]
    assert found[0].candidate == result.winner
    assert found[0].score.value < found[1].score.value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": {"polish": 9}}, "polish must be at most finalists = 8, got 9"),
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


def test_a_worker_polishes_on_the_bundled_model(tmp_path):
    config = of_tiny(polish=1, polish_iterations=1)
    model = load("tiny")
    start = make_schedule("kl-optimal", 2, model.noise, guidance_scale=2.0, model=model.spec)
    workers = InThisProcess(config, tmp_path)
    ((place, found),) = workers.polish([start], Settings.of_study(config))
    assert place == 0
    assert found.schedule.passes == start.passes
    assert found.best.distance <= found.checks[0].distance
    ((_, again),) = workers.polish([start], Settings.of_study(config))  # from the cache
    assert again.schedule == found.schedule
