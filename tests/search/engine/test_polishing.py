"""The polish of finalists as a stage of a run."""

from dataclasses import replace
from types import SimpleNamespace

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


def plan(grid, n=3, w=2.0):
    return make_schedule(grid, n, SD, guidance_scale=w)


def trial(number, schedule):
    attrs = {"alignment": 1.0, "schedule": schedule.to_json()}
    return SimpleNamespace(number=number, user_attrs=attrs)


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
    known = {4: plan("karras"), 5: plan("karras", 6), 7: plan("beta", w=1.2), 8: plan("beta")}
    better, passes = polish_best(stage, [trial(*pair) for pair in known.items()])
    assert [(c.name, c.kind, c.trial) for c in better] == [("found, trial 4, polished", "found", 4)]
    assert better[0].schedule == GOOD
    each = Settings.of_study(stage.config).most_images
    assert each(9) == 2 * (10 * 60 + 3 * 100) + 100
    assert passes == 2 * each(9)  # of the refused one none are known
    # of three and of six guided steps: levels and scales; the box has no gain
    most = (6 + 6) * each(3 + 3) + 12 * each(6 + 6)
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
    polish_best(stage, [trial(4, schedule)])
    most = 2 * 4 * Settings.of_study(config).most_images(3 + 3)
    assert news[0][3] == f"1 schedule, at most {most:,} network passes"


def test_nothing_is_polished_where_the_study_does_not_say_so(tmp_path):
    workers = ToyWorkers(settings(), tmp_path)
    stage = Tools(settings(), workers.describe(), workers, NoTracking(), print)
    assert polish_best(stage, [trial(4, GOOD)]) == ([], 0)


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
    names = [row.candidate.name for row in result.selection]
    assert result.winner.name.removesuffix(", polished") in names


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
