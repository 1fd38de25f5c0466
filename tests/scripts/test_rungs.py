"""What could be a first rung, on features that are made up and on a few images of the model."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from stepsearch.metrics.distance import Moments, frechet_distance

SCRIPTS = Path(__file__).parents[2] / "scripts" / "bench" / "evaluation"
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def rungs(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from ranking import rungs

    return rungs


@pytest.fixture
def real(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from ranking.analysis import Real

    x = np.random.default_rng(9).normal(size=(3000, 4))
    return Real(Moments.of(x[:1500]), x[:10], Moments.of(x[1500:]))


def made_up(shared, schedules=6, n=256):
    """Features that differ in their mean; the rest of an image is `shared` in part by its seed."""
    draw = np.random.default_rng(0)
    seed = draw.normal(size=(n, 4))
    own = draw.normal(size=(schedules, n, 4))
    shift = np.linspace(0.2, 0.6, schedules)
    return [s + shared * seed + np.sqrt(1 - shared**2) * x for s, x in zip(shift, own, strict=True)]


def test_on_common_seeds_beta_one_changes_neither_ranking_nor_spread(rungs, real):
    made = made_up(0.95, n=1256)
    features = [x[:256] for x in made]
    surprise = [x[:, 0] for x in features]
    assert rungs.best_grid(features, [2, 3], real) == 2  # the nearer to the real mean
    rows = rungs.analyse(features, surprise, [2, 3], made[2][256:], real, [16, 64])
    found = {(r["statistic"], r["n"]): r for r in rows}
    for n in (16, 64):
        plain, one = found[rungs.FD, n], found[rungs.ONE, n]
        assert one["tau"] == plain["tau"]
        assert one["sd_common"] == pytest.approx(plain["sd_common"])
        assert one["sd_own"] < plain["sd_own"]
        assert (plain["draws"], plain["schedules"]) == (256 // n, 5)


def test_a_schedule_that_is_the_baseline_moved_is_known_from_any_block(rungs, real):
    """Then the moments are those of all other images, and the seeds of the block add nothing."""
    features = made_up(1.0, schedules=3)
    known, surprise = Moments.of(features[0][16:]), [x[:, 0] for x in features]
    values = rungs.statistics(features, surprise, 0, known, slice(0, 16), real.moments)
    rest = [frechet_distance(x[16:], real.moments) for x in features]
    np.testing.assert_allclose(values[rungs.STATISTICS.index(rungs.MOMENTS)], rest, rtol=1e-8)


def test_distance_of_moments_is_that_of_their_images(rungs, real):
    x = made_up(0.5)[3]
    own = Moments.of(x)
    assert rungs.distance(own.mean, own.cov, real.moments) == pytest.approx(
        frechet_distance(x, real.moments)
    )


def test_slope_is_that_of_least_squares(rungs):
    draw = np.random.default_rng(3)
    x, y = draw.normal(size=(2, 20))
    assert rungs.slope(y, x) == pytest.approx(np.polyfit(x, y, 1)[0])


def test_the_bias_of_few_images_is_taken_off_along_a_ladder(rungs, real):
    features = made_up(0.8, n=512)
    found = {r["how"]: r for r in rungs.predictions(features, 0, real.moments, 16, 128)}
    assert found["as it is"]["bias"] > 0.1
    assert abs(found["mean shift"]["bias"]) < found["as it is"]["bias"] / 2
    assert found["mean shift"]["rms"] < found["as it is"]["rms"]
    assert found["as it is"]["pairs"] == 5 * 4


@pytest.fixture
def study(monkeypatch):
    """The script, with files of eight images."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import study_ranking
    import study_rungs

    monkeypatch.setattr(study_ranking, "PART", 8)
    monkeypatch.setattr(study_rungs, "PART", 8)
    yield study_rungs
    sys.modules.pop("study_rungs")


def test_the_script_stops_in_time_and_writes_its_part_of_the_page(study, rungs, tmp_path, capsys):
    docs = tmp_path / "docs"
    docs.mkdir()
    words = ["--count", "4", "--sizes", "8", "--images", "16", "--further", "8", "--batch", "8"]
    words += ["--run", str(tmp_path / "run"), "--docs", str(docs)]
    study.main([*words, "--hours", "0"])
    assert "nothing to report yet" in capsys.readouterr().out
    study.main(words)
    assert "8 parts left" in capsys.readouterr().out
    data = json.loads((docs / "ranking-rungs.json").read_text())
    assert data["images"] == 16
    judge = [r for r in data["rows"] if r["statistic"] == rungs.JUDGE]
    assert all(0 < r["sd_own"] < 20 for r in judge)  # nats
    assert "## A better first rung?" in (docs / "ranking.md").read_text()


def test_the_page_is_what_its_numbers_say(monkeypatch, tmp_path):
    """Nobody has written into it by hand."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from ranking.output import rewrite

    for name in ("ranking.json", "ranking-rungs.json"):
        (tmp_path / name).write_text((DOCS / name).read_text())
    rewrite(tmp_path)
    assert (tmp_path / "ranking.md").read_text() == (DOCS / "ranking.md").read_text()
