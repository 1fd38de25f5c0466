"""The study of rankings on features that are made up: what its taus and regrets are."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from stepsearch.metrics.distance import Moments

BENCH = Path(__file__).parents[2] / "scripts" / "bench"
SCRIPTS = BENCH / "evaluation"


@pytest.fixture
def analysis(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from ranking import analysis

    return analysis


@pytest.fixture
def study(monkeypatch):
    """The script, with files of eight images."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("study_ranking", SCRIPTS / "study_ranking.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "study_ranking", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PART", 8)
    return module


def made_up(analysis, schedules=12, n=256, axes=4, shared=1.0):
    """Schedules that differ in their mean; images of one seed share most of their noise."""
    draw = np.random.default_rng(0)
    real = draw.normal(size=(3000, axes))
    shift = np.linspace(0.2, 0.5, schedules)[draw.permutation(schedules)]

    def images(n):
        seed = draw.normal(size=(n, axes))
        own = draw.normal(size=(schedules, n, axes))
        return [
            s + shared * seed + np.sqrt(1 - shared**2) * x for s, x in zip(shift, own, strict=True)
        ]

    known = list(range(0, schedules, 2))
    pool, truth = images(n), images(2000)
    gaps = {
        analysis.PIXELS: np.array([((pool[k] - pool[known[0]]) ** 2).mean(1) for k in known]),
        analysis.FEATURES: draw.random((len(known), n // 2)),
    }
    of_real = analysis.Real(Moments.of(real[:1000]), real[1000:1500], Moments.of(real[1500:]))
    return analysis.Images(pool, truth, known, gaps), of_real


def test_common_seeds_rank_better_than_own_seeds_from_the_same_images(analysis):
    """With all noise shared, a block ranks as the truth does; on other blocks the noise differs."""
    images, real = made_up(analysis)
    rows = [r for r in analysis.analyse(images, real, [16, 64]) if r["among"] == "all"]
    assert rows.pop(0)["statistic"] == analysis.HALVES
    assert {r["statistic"] for r in rows} == {"FD", "FD-infinity", "KID"}
    found = {(r["statistic"], r["n"], r["seeds"]): r for r in rows}
    for n in (16, 64):
        common, own = (found["FD", n, seeds] for seeds in ("common", "own"))
        assert common["tau"] > own["tau"] + 0.1
        assert common["tau_sd"] != own["tau_sd"]
        assert common["draws"] == own["draws"] == 256 // n
    assert found["FD", 64, "own"]["tau"] > found["FD", 16, "own"]["tau"]


def test_without_shared_noise_both_are_equally_good(analysis):
    images, real = made_up(analysis, schedules=24, n=512, shared=0.0)
    rows = [r for r in analysis.analyse(images, real, [16]) if r["among"] == "all"]
    common, own = (r["tau"] for r in rows if r["statistic"] == "FD")
    assert common == pytest.approx(own, abs=0.05)


def test_all_statistics_are_compared_on_the_schedules_of_the_teachers(analysis):
    images, real = made_up(analysis)
    rows = list(analysis.analyse(images, real, [64, 256]))
    fair = [r for r in rows if r["among"] == analysis.KNOWN]
    assert {r["statistic"] for r in fair} == set(analysis.STATISTICS)
    assert {r["schedules"] for r in fair} == {6}
    halves, *others = rows
    assert (halves["statistic"], halves["truth_images"]) == (analysis.HALVES, 1000)
    assert {r["truth_images"] for r in others} == {2000}
    # Each n has as many draws as disjoint blocks, and no own seeds where there is one block.
    assert {(r["n"], r["draws"]) for r in fair if r["statistic"] == "KID"} == {(64, 4), (256, 1)}
    assert {r["seeds"] for r in fair if r["n"] == 256} == {"common"}
    assert all(r["tau_sd"] is None for r in fair if r["draws"] == 1)
    features = [r for r in fair if r["statistic"] == analysis.FEATURES]
    assert {(r["n"], r["draws"]) for r in features} == {(64, 2)}  # of 128 images of the teacher


def test_the_truth_is_one_ranking_of_all_draws(analysis, monkeypatch):
    images, real = made_up(analysis, schedules=5)
    counted = []
    whole = analysis.frechet_distance

    def note(x, moments):
        counted.extend([len(x)] if moments is real.truth else [])
        return whole(x, moments)

    monkeypatch.setattr(analysis, "frechet_distance", note)
    rows = list(analysis.analyse(images, real, [32]))
    n = len(images.truth[0])
    assert sorted(counted) == sorted([n, n // 2, n // 2] * 5)
    halves = [row for row in rows if row["statistic"] == analysis.HALVES]
    assert [(row["n"], row["draws"]) for row in halves] == [(n // 2, 1)]


def test_tau_is_kendalls_and_counts_pairs_apart_alone(analysis):
    draw = np.random.default_rng(1)
    a, b = draw.random(20), draw.random(20)
    assert analysis.tau(a, b) == pytest.approx(kendalltau(a, b).statistic)
    place = np.array([0, 0, 1])
    assert analysis.tau(np.array([1, 2, 3]), np.array([2, 1, 3]), place) == 1
    assert np.isnan(analysis.tau(a, b, np.zeros(20)))


def test_regrets_are_of_the_favourite_and_of_the_best_five(analysis):
    true = np.array([5.0, 1, 2, 3, 4, 6, 7])
    values = np.array([[1.0, 9, 8, 2, 3, 4, 5]])  # favourite 0, then 3, 4, 5, 6
    found = analysis.rank(values, true, False, 0)
    assert (found["regret"], found["top5_regret"], found["draws"]) == (4, 2, 1)


def test_own_seeds_take_each_schedule_once_through_all_blocks(analysis, monkeypatch):
    """So that common and own differ in the images alone, not in how often each counts."""
    values, seen = np.arange(12.0).reshape(3, 4), []
    monkeypatch.setattr(analysis, "tau", lambda drawn, *others: seen.append(drawn) or 0.0)
    analysis.rank(values, np.arange(4.0), True, 0)
    of_all = np.array(seen[::2])  # each draw is also looked at among the best ten
    assert len({tuple(column - column.min()) for column in of_all.T}) > 1  # not the same blocks
    np.testing.assert_array_equal(np.sort(of_all, axis=0), values)


def test_moments_without_a_part_are_those_of_the_rest(analysis):
    x = np.random.default_rng(0).normal(3, 2, (50, 4))
    found, rest = Moments.of(x).minus(Moments.of(x[:20])), Moments.of(x[20:])
    assert found.n == 30
    np.testing.assert_allclose(found.mean, rest.mean)
    np.testing.assert_allclose(found.cov, rest.cov)


def test_real_images_of_the_truth_are_in_no_statistic(analysis):
    from stepsearch.metrics.reference import Reference
    from stepsearch.paths import bundled

    reference = Reference.load(bundled("fashion-mnist-texture.safetensors"))
    real = analysis.Real.of(reference)
    assert real.truth.n == reference.test.n - len(real.sample)
    assert np.linalg.eigvalsh(real.truth.cov).min() > 0


def run(study, folder, *options):
    words = ["--schedules", "5", "0", "--sizes", "8", "16", "--truth", "16", "--teacher", "16"]
    words += ["--workers", "1", "--batch", "8"]
    words += ["--run", str(folder / "run"), "--docs", str(folder / "docs"), *options]
    study.main(words)


def files(folder):
    return {p: p.stat().st_mtime_ns for p in (folder / "run").rglob("*.safetensors")}


def test_the_study_resumes_and_mixes_nothing(study, tmp_path, capsys):
    run(study, tmp_path, "--hours", "0")
    said = capsys.readouterr().out
    assert "stopped at 0 hours" in said
    assert "nothing to report yet" in said
    assert not (tmp_path / "docs").exists()
    run(study, tmp_path)
    assert "ranking.md" in capsys.readouterr().out
    table = (tmp_path / "docs/ranking.md").read_text()
    assert "| texture | 5 | FD | all | 5 | own | 8 | 2 | 16 |" in table
    assert "| teacher, pixels | the teacher's guidance | 3 | common | 16 | 1 | 16 |" in table
    assert (tmp_path / "docs/ranking.png").stat().st_size > 1000
    before = files(tmp_path)
    run(study, tmp_path)
    assert "0 of 22 parts left: 0 passes" in capsys.readouterr().out
    assert files(tmp_path) == before
    # With one more schedule, a fourth known grid, the random points are the same.
    run(study, tmp_path, "--schedules", "6", "0", "--dry-run")
    assert " 4 of " in capsys.readouterr().out


def test_other_weights_dtypes_or_batches_recall_nothing(study, tmp_path, monkeypatch):
    options = {"run": tmp_path, "batch": 8, "device": "cpu", "dtype": "float32", "compile": False}
    bench = study.Bench(SimpleNamespace(**options, schedules=(5, 0)))
    places = {bench.place(entry.schedule) for entry in bench.entries}
    assert len(places) == 5
    plan = bench.entries[0].schedule
    for holder, name, value in (
        (bench, "batch", 4),
        (bench, "digest", "other weights"),
        (bench.model, "dtype", torch.bfloat16),
        (study, "SEEDS", {"pool": 1, "truth": 2}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(holder, name, value)
            places.add(bench.place(plan))
    assert len(places) == 5 + 4
    assert bench.place(plan) in places


def test_seeds_of_the_scripts_are_disjoint(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.syspath_prepend(str(BENCH))
    import bench_gains
    import bench_peers
    import check_coverage
    import study_ranking

    from stepsearch.config.parts import SEEDS
    from stepsearch.metrics.evaluator import FRONT, SEARCH, SELECTION, TEST

    firsts = [SEARCH, SELECTION, TEST, FRONT, bench_peers.FRESH, check_coverage.FIRST]
    firsts.append(bench_gains.FRESH)
    firsts = sorted([*firsts, *study_ranking.SEEDS.values()])
    assert min(np.diff(firsts)) >= SEEDS


def test_sizes_that_no_statistic_takes_are_refused(study, capsys):
    with pytest.raises(SystemExit, match="2"):
        study.main(["--sizes", "4", "128"])
    assert "--sizes must be at least 8, got 4" in capsys.readouterr().err


def test_errors_of_paired_differences_cover(analysis):
    """On rows that are drawn anew for every block, so that the jackknife is right."""
    images, real = made_up(analysis, schedules=6, n=512)
    found = analysis.paired(images, real, 100)
    assert (found["n"], found["pairs"], found["draws"]) == (100, 5, len(images.truth[0]) // 100)
    assert found["covered"] > 0.85
    assert 0.7 < found["error_over_spread"] < 1.5
    assert analysis.paired(images, real, len(images.truth[0])) is None
