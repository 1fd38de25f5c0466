import json
from types import SimpleNamespace

import pytest
import torch
from polishing import PLAIN, ToyEvaluator, directly, features_of

from stepsampler.errors import NotFiniteError
from stepsearch.metrics.evaluator import SELECTION
from stepsearch.polish import descent
from stepsearch.polish.descent import BACK, Settings, polish
from stepsearch.polish.knobs import Knobs
from stepsearch.polish.objective import Objective

SETTINGS = Settings(iterations=8, images=16, check_every=4, check_images=24)


class Measuring(ToyEvaluator):
    """Measures as well; `aligned` is of a schedule. Schedules can be `broken`."""

    def __init__(self, cache, aligned=lambda schedule: 1.0):
        super().__init__(cache, 8)
        self.aligned, self.measured = aligned, []

    def measure(self, schedule, seeds):
        assert seeds.start == SELECTION
        self.measured.append(schedule)
        found = features_of(self, schedule, seeds)
        return SimpleNamespace(features=found, finite=True, alignment=self.aligned(schedule))


def test_a_polish_lowers_the_objective_on_seeds_that_it_does_not_learn_from(tmp_path):
    evaluator = Measuring(tmp_path)
    found = polish(evaluator, Knobs(PLAIN), SETTINGS)
    assert [check.iteration for check in found.checks] == [0, 4, 8]
    start, best = found.checks[0].distance, found.best.distance
    assert best < 0.97 * start
    unseen = range(5_000, 5_040)
    before, after = (directly(evaluator, plan, unseen) for plan in (PLAIN, found.schedule))
    assert after < before - 0.02
    assert found.passes <= PLAIN.passes * SETTINGS.most_images <= 1.1 * found.passes
    assert found.passes == found.checks[-1].passes


def test_the_start_comes_back_where_nothing_is_better(tmp_path):
    """Each check after the first loses alignment, whatever its distance."""
    evaluator = Measuring(tmp_path, lambda schedule: 1.0 if schedule == PLAIN else 0.98)
    found = polish(evaluator, Knobs(PLAIN), SETTINGS)
    assert found.schedule == PLAIN
    assert found.best.iteration == 0
    assert min(check.distance for check in found.checks) < found.best.distance


def test_after_a_check_that_is_no_better_it_goes_on_from_the_best_in_smaller_steps(tmp_path):
    """Judged by a second check that is always the worst, whatever is tried."""
    worse = {1: 1.0, 2: 0.9}  # alignment by the number of schedules measured
    evaluator = Measuring(tmp_path, lambda _: worse.get(len(evaluator.measured), 1.0))
    found = polish(evaluator, Knobs(PLAIN), Settings(3, 16, 1, 24))
    first, bad, after, last = (
        torch.tensor(check.parameters, dtype=torch.float64) for check in found.checks
    )
    rates = Knobs(PLAIN).rates
    assert first.eq(0).all()
    assert bad.abs().max() <= 1.001 * rates.max()
    # Of Adam the first step after a restart is a whole one: 0.55 is what falls evenly left of it.
    torch.testing.assert_close(after.abs(), 0.55 * BACK * rates.expand_as(after), rtol=1e-6, atol=0)
    assert last.sub(after).abs().max() <= BACK * rates.max()
    assert found.best in found.checks[2:]


def test_a_killed_polish_goes_on_where_it_was_and_ends_the_same(tmp_path, monkeypatch):
    whole = polish(Measuring(tmp_path / "whole"), Knobs(PLAIN), SETTINGS)
    calls = []

    class Killed(Objective):
        def __call__(self, knobs, parameters, seeds, pulled):
            calls.append(seeds)
            if len(calls) == 6:
                raise KeyboardInterrupt
            return super().__call__(knobs, parameters, seeds, pulled)

    monkeypatch.setattr(descent, "Objective", Killed)
    for _ in range(2):
        evaluator = Measuring(tmp_path / "cut")
        try:
            found = polish(evaluator, Knobs(PLAIN), SETTINGS)
        except KeyboardInterrupt:
            continue
    assert len(calls) == 8 + 1
    assert calls[5] == calls[6]
    assert len(evaluator.measured) == 1  # the first two checks are known
    assert found.schedule == whole.schedule
    assert found.passes == whole.passes
    others = Settings(8, 16, 4, 32)
    assert polish(Measuring(tmp_path / "cut"), Knobs(PLAIN), others).checks[0].iteration == 0


def test_a_state_that_is_cut_off_is_made_again_and_said(tmp_path, capsys):
    """As by a full disk or a power cut; it had been a traceback until somebody removed it."""
    few = Settings(1, 8, 1, 8)
    whole = polish(Measuring(tmp_path), Knobs(PLAIN), few)
    (path,) = tmp_path.glob("polish-*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    again = polish(Measuring(tmp_path), Knobs(PLAIN), few)
    assert (again.schedule, again.passes) == (whole.schedule, whole.passes)
    assert f"{path} is damaged, what it held is made again" in capsys.readouterr().err


def test_each_iteration_has_seeds_of_its_own_and_none_of_the_selection(tmp_path, monkeypatch):
    seen = []

    class Noting(Objective):
        def __call__(self, knobs, parameters, seeds, pulled):
            seen.extend(seeds)
            return super().__call__(knobs, parameters, seeds, pulled)

    monkeypatch.setattr(descent, "Objective", Noting)
    polish(Measuring(tmp_path), Knobs(PLAIN), SETTINGS)
    assert len(set(seen)) == len(seen) == 8 * 16
    assert max(seen) < SELECTION


def test_images_that_are_not_finite_end_it_with_the_best_so_far(tmp_path, monkeypatch):
    class Broken(Objective):
        def __call__(self, knobs, parameters, seeds, pulled):
            if seeds.start >= 6 * 16:
                raise NotFiniteError("the images are not finite")
            return super().__call__(knobs, parameters, seeds, pulled)

    monkeypatch.setattr(descent, "Objective", Broken)
    news = []
    found = polish(Measuring(tmp_path), Knobs(PLAIN), SETTINGS, lambda k, text: news.append(text))
    assert found.best.iteration == 4
    assert "ends here: the images are not finite" in news


def test_a_schedule_that_cannot_be_sampled_is_refused(tmp_path, monkeypatch):
    evaluator = Measuring(tmp_path)
    broken = SimpleNamespace(features=None, finite=False, alignment=float("nan"))
    monkeypatch.setattr(evaluator, "measure", lambda schedule, seeds: broken)
    with pytest.raises(NotFiniteError, match="the images of the schedule itself are not finite"):
        polish(evaluator, Knobs(PLAIN), SETTINGS)


def test_the_state_is_data_that_anybody_can_read(tmp_path):
    from safetensors import safe_open

    polish(Measuring(tmp_path), Knobs(PLAIN), SETTINGS)
    (path,) = tmp_path.glob("polish-*.safetensors")
    with safe_open(path, framework="np") as file:
        assert json.loads(file.metadata()["state"])["done"] == 8
        assert set(file.keys()) == {"parameters", "mean", "square"}


@pytest.mark.parametrize(("iterations", "every", "checks"), [(0, 3, [0]), (7, 3, [0, 3, 6, 7])])
def test_the_start_and_the_end_are_checked(iterations, every, checks):
    assert sorted(set(Settings(iterations, 8, every, 8).checks)) == checks
