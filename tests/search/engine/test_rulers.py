"""Rulers that the search does not see: the test alone looks through them, and says it."""

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from running import AXES, SD, SPEC, ToyWorkers, settings
from safetensors.numpy import load_file, save_file

from stepsampler.grids import make_schedule
from stepsearch.config import StudyConfig
from stepsearch.config.measuring import EvaluationConfig
from stepsearch.engine.claim import claim_folder
from stepsearch.engine.run import run_study
from stepsearch.engine.tracking import NoTracking
from stepsearch.engine.workers import Subject
from stepsearch.metrics.distance import Moments
from stepsearch.metrics.evaluator import (
    TEST,
    Evaluator,
    Measurement,
    load_rulers,
    seeds_of,
)
from stepsearch.report import summary
from stepsearch.report.cards import fill
from stepsearch.report.sources import of_run


class WithRulers(ToyWorkers):
    """Both rulers are of the toy's features; `contrary` has the found one behind all others."""

    def describe(self):
        moments = Moments(np.zeros(AXES), np.eye(AXES), 1000)
        ruler = SimpleNamespace(metric="fd_like", test=moments)
        contrary = SimpleNamespace(metric="fd_contrary", test=moments)
        rulers = {"fd_like": ruler, "fd_contrary": contrary}
        return Subject(SD, SPEC, self.reference, "toy", "classifier-free", rulers=rulers)

    def _measure(self, schedule, seeds):
        found = super()._measure(schedule, seeds)
        if seeds.start < TEST:
            return found
        far = np.float32(max(0.0, 3 - 2 * found.features.mean()))  # the better, the farther
        seen = {"fd_like": found.features, "fd_contrary": found.features + far}
        return Measurement(found.features, found.aligned, rulers=seen)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder, config = tmp_path_factory.mktemp("run"), settings()
    workers = WithRulers(config, folder)
    return run_study(config, folder, workers, NoTracking(), lambda *line: None), config


def test_the_verdict_names_the_rulers_and_whom_they_prefer(ended):
    result, config = ended
    said = summary.verdict(result, config)
    assert (
        "Under fd_like, which the search did not see, no baseline is ahead beyond the noise."
        in said
    )
    assert result.overtaken["fd_like"] is None
    row, ahead, se = result.overtaken["fd_contrary"]
    assert ahead > 2 * se > 0, "or it is within the noise"
    assert (
        "fd_contrary, which the search did not see, disagrees: under it "
        f"{row.candidate.name} is first, by {ahead:.2f} ± {se:.2f}." in said
    )


def test_a_rival_that_shows_less_than_the_study_allows_is_said_to(ended):
    result, config = ended
    (rival, *_), teacher = result.of_kind("baseline"), result.teacher
    asked = np.zeros_like(rival.measurement.aligned)
    shown = replace(teacher.measurement, aligned=np.ones_like(teacher.measurement.aligned))
    worse = replace(rival, measurement=replace(rival.measurement, aligned=asked))
    test = [worse if row is rival else row for row in result.test]
    test = [replace(row, score=worse.score) for row in test]  # none beats another
    unbeaten = replace(result, test=test, teacher=replace(teacher, measurement=shown))
    said = summary.verdict(unbeaten, config)
    assert f"{rival.candidate.name} (alignment 0.0 %, less than the study allows)" in said
    assert said.startswith("The found schedule is exported, but ")
    asked = np.zeros_like(result.found.measurement.aligned)
    both = replace(unbeaten.found, measurement=replace(rival.measurement, aligned=asked))
    at = next(i for i, row in enumerate(test) if row.candidate.kind == "found")
    alike = replace(unbeaten, test=[*test[:at], both, *test[at + 1 :]])
    assert summary.verdict(alike, config).startswith(
        "The found schedule (alignment 0.0 %, less than the study allows) is exported, but "
    ), "or only the baselines would seem to lose"
    search = config.search.model_copy(update={"alignment_drop": 1.0})
    allowed = config.model_copy(update={"search": search})
    assert "less than the study allows" not in summary.verdict(unbeaten, allowed)


def test_every_name_and_number_is_there_in_80_columns(ended):
    result, config = ended
    for view in (summary.table(result, config), summary.unseen_table(result)):
        shown = {}
        for width in (80, 200):
            console = Console(width=width, file=io.StringIO())
            console.print(view)
            text = console.file.getvalue()
            assert max(map(len, text.splitlines())) <= width
            shown[width] = sorted("".join(c for c in text if c.isalnum()))
        assert shown[80] == shown[200]
    for name in result.unseen:
        assert name in text


def test_the_result_has_every_ruler_of_every_row_of_the_test(ended):
    result, config = ended
    data = summary.as_data(result, config)
    for row, found in zip(data["test"], result.test, strict=True):
        assert row["unseen"]["fd_like"]["value"] == pytest.approx(row["fd"])
        assert row["unseen"]["fd_like"]["se"] == pytest.approx(found.score.se)
    assert all("unseen" not in row for row in data["selection"])


TINY = {
    "name": "rulers",
    "space": {"num_steps": 2, "passes": 4},
    "evaluation": {"images": 8, "batch_size": 4},
}


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    return Evaluator(StudyConfig.model_validate(TINY), tmp_path_factory.mktemp("cache"))


def test_only_test_seeds_are_seen_through_the_rulers(evaluator):
    plan = make_schedule("linspace", 2, evaluator.model.noise, order=1, guidance_scale=2.0)
    assert not evaluator.measure(plan, seeds_of(0, 4)).rulers
    tested = evaluator.measure(plan, seeds_of(TEST, 4))
    assert {k: v.shape for k, v in tested.rulers.items()} == {
        "fd_squeezenet128": (4, 128),
        "swd_patches": (4, 2 * 32 * 48),
    }
    whole = Measurement.join([tested, evaluator.measure(plan, seeds_of(TEST + 4, 4))])
    assert whole.rulers["swd_patches"].shape[0] == 8


def test_images_of_before_there_were_rulers_are_made_again(evaluator):
    plan = make_schedule("linspace", 2, evaluator.model.noise, order=1, guidance_scale=3.0)
    before = evaluator.measure(plan, seeds_of(TEST, 4))
    (path,) = (
        p
        for p in evaluator.cache.glob("*.safetensors")
        if p.stem == evaluator._key(plan, seeds_of(TEST, 4))
    )
    tensors = load_file(path)
    save_file({k: v for k, v in tensors.items() if not k.startswith(("squeeze", "patch"))}, path)
    after = evaluator.measure(plan, seeds_of(TEST, 4))
    for name, rows in before.rulers.items():
        np.testing.assert_array_equal(after.rulers[name], rows)


def test_what_the_search_sees_is_no_ruler_and_a_missing_one_is_said(tmp_path):
    options = EvaluationConfig(extractor="texture+patches", reference="fashion-mnist")
    rulers, why = load_rulers(options, 32, tmp_path, "cpu")
    assert [r.reference.metric for r in rulers] == ["fd_squeezenet128"]
    assert not why
    nowhere = EvaluationConfig(extractor="inception", reference="statistics.npz")
    rulers, why = load_rulers(nowhere, 32, tmp_path, "cpu")
    assert not rulers
    assert len(why) == 2
    assert "no ruler 'squeezenet' beside what the search sees" in why[0]


def test_the_page_has_every_ruler_with_its_paired_difference(ended, tmp_path):
    result, config = ended
    claim_folder(tmp_path, config)
    summary.write(result, config, tmp_path)
    source = of_run(tmp_path)
    cards = {card.name: card.data for card in fill(source)}
    data, scores = cards["held_out"], result.unseen["fd_contrary"]
    assert data["unseen"] == ["fd_like", "fd_contrary"]
    assert data["metrics"] == ["fd_toy4_400", "fd_like", "fd_contrary"]
    found = result.test.index(result.found)
    for row, score in zip(data["rows"], scores, strict=True):
        shown = row["scores"]["fd_contrary"]
        assert (shown["value"], shown["se"]) == (score.value, score.se)
        if row["base"]:
            continue
        assert shown["minus"] == score.minus(scores[found])[0]
    checks = {check["name"]: check for check in cards["health"]["checks"]}
    assert checks["other extractors"]["state"] == "LOOK"
    assert "under fd_contrary" in checks["other extractors"]["sentence"]
