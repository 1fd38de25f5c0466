"""Patterns of guidance in a run: which are kept, and that they stand in the selection."""

import numpy as np
from running import Reference, ToyWorkers, run, settings

from stepsampler.grids import GRIDS, is_guided, make_schedule
from stepsearch.config import StudyConfig
from stepsearch.engine.stages.costs import costs
from stepsearch.engine.stages.patterns import try_patterns
from stepsearch.engine.stages.search import make_box
from stepsearch.engine.stages.tools import Tools
from stepsearch.engine.tracking import NoTracking
from stepsearch.metrics.distance import Average
from stepsearch.metrics.evaluator import Measurement
from stepsearch.rivals.baselines import Candidate

WANTED = {(True, False, False, True), (False, False, True, False, False)}


def pattern_of(schedule):
    return tuple(map(is_guided, schedule.steps))


def with_patterns(**search):
    known = settings(**search).model_dump()
    known["space"] |= {"max_steps": 5, "guidance": "per-step"}
    known["search"]["patterns"] = 2
    return StudyConfig.model_validate(known)


def tried(tmp_path, best, news=None, config=None, workers=ToyWorkers, **toy):
    config = config or with_patterns()
    workers = workers(config, tmp_path, **toy)
    said = lambda *line: news is not None and news.append(line)  # noqa: E731
    tools = Tools(config, workers.describe(), workers, NoTracking(), said)
    found = try_patterns(tools, make_box(tools, best, {}), best, 1.0)
    return *found, workers


def baseline(w):
    plan = make_schedule("karras", 3, ToyWorkers(settings(), None).model.noise, guidance_scale=w)
    return Candidate("karras", plan, "baseline", "karras")


def test_the_masks_that_are_best_are_kept_once_each(tmp_path):
    """All of a grid have its distance in the toy, so that alignment tells them apart."""
    aligned = lambda s: 1.0 if pattern_of(s) in WANTED else 0.5  # noqa: E731
    news = []
    found, passes, workers = tried(tmp_path, [baseline(2.0)], news, aligned=aligned)
    assert {pattern_of(c.schedule) for c in found} == WANTED
    assert {c.schedule.passes for c in found} == {6}
    assert {c.kind for c in found} == {"found"}
    assert passes == 6 * workers.images
    config = with_patterns()
    assert 0 < passes <= costs(config).passes["patterns"]
    first, rest = len(GRIDS) * 20, 2 * (6 + 5)
    assert costs(config).passes["patterns"] == 6 * (2 * first + rest * 20 + 6 * 60)
    assert costs(settings()).passes["patterns"] == 0
    assert {line[0] for line in news} == {"patterns"}
    assert news[-1][3].startswith("60 images, the best of ")


def test_without_a_guided_baseline_none_are_tried(tmp_path):
    news = []
    assert tried(tmp_path, [baseline(1.0)], news)[:2] == ([], 0)
    assert news[-1][3] == "none are tried: no baseline is guided"
    assert tried(tmp_path, [baseline(2.0)], config=settings())[:2] == ([], 0)


def test_a_run_selects_and_polishes_them_too(tmp_path):
    """Only they keep the alignment here; what was measured is recalled by a second run."""
    aligned = lambda s: 1.0 if s.num_steps > 15 or pattern_of(s) in WANTED else 0.2  # noqa: E731
    config = with_patterns(polish=1, trials=6)
    result, *_ = run(tmp_path, config, target=0.31, aligned=aligned)
    assert pattern_of(result.winner.schedule) in WANTED
    assert 0 < result.passes["patterns"] <= costs(config).passes["patterns"]
    again, *_ = run(tmp_path, config, target=0.31, aligned=aligned)
    assert again.passes == result.passes
    assert again.winner.schedule == result.winner.schedule
    assert np.isfinite([row.score.value for row in result.selection]).all()


def test_what_is_tried_goes_on_and_never_back(tmp_path):
    """Of all rungs together, as `status` counts the stage; one that is left out is no step."""
    news, broken = [], lambda s: pattern_of(s) == (False, True, True, False)
    tried(tmp_path, [baseline(2.0)], news, broken=broken)
    most = costs(with_patterns()).passes["patterns"] // 6
    done = [line[1] for line in news]
    assert {line[2] for line in news} == {most}
    assert any("left out" in line[3] for line in news)
    assert done == sorted(done)
    assert most / 2 < done[-1] <= most


def test_a_metric_of_the_users_may_be_below_zero(tmp_path, monkeypatch):
    """As scores that are better the higher they are: no logarithm of them tells any apart."""
    known = Reference.search
    average = Average(known.mean, known.cov, known.n)
    monkeypatch.setattr(Reference, "search", average)

    class Below(ToyWorkers):
        def _measure(self, schedule, seeds):
            found = super()._measure(schedule, seeds)
            value = -2.0 if pattern_of(schedule) in WANTED else -1.0
            aligned = found.aligned * (value == -1.0)  # which is not what it goes by
            return Measurement(np.full((len(seeds), 1), value, np.float32), aligned)

    found, *_ = tried(tmp_path, [baseline(2.0)], workers=Below)
    assert {pattern_of(c.schedule) for c in found} == WANTED
