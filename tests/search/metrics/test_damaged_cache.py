"""Files of a cache that were cut short are made again: they stop nothing, and not for ever."""

import numpy as np
import pytest
import torch

from stepsampler.grids import make_schedule
from stepsampler.support.pictures import save_png
from stepsearch.compare.contenders import OnSchedule
from stepsearch.compare.harness import Clock, Harness
from stepsearch.config import StudyConfig
from stepsearch.metrics.evaluator import Evaluator, Metric
from stepsearch.metrics.features import load_extractor
from stepsearch.metrics.reference import load_reference
from stepsearch.rivals.placement import recall_or_place

SPACE = {"num_steps": 3, "passes": 6}


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return Evaluator(StudyConfig.model_validate({"name": "x", "space": SPACE}), cache)


def cut(cache, how):
    """All files of a cache, in one of the ways in which a machine leaves them; how many."""
    files = [p for p in cache.iterdir() if p.suffix in (".safetensors", ".json")]
    for path in files:
        whole = path.read_bytes()
        path.write_bytes({"short": whole[: len(whole) // 2], "empty": b"", "zero": bytes(99)}[how])
    assert files
    return len(files)


WAYS = pytest.mark.parametrize("how", ["short", "empty", "zero"])


@WAYS
def test_measurements_and_placements(evaluator, how, capsys):
    plan = make_schedule("linspace", 2, evaluator.model.noise, model=evaluator.model.spec)
    first = evaluator.measure(plan, range(4))
    placed = recall_or_place(evaluator, "dmn", 3, 2.0)
    count = cut(evaluator.cache, how)
    capsys.readouterr()
    again = evaluator.measure(plan, range(4))
    assert np.array_equal(again.features, first.features)
    assert np.array_equal(again.aligned, first.aligned)
    assert recall_or_place(evaluator, "dmn", 3, 2.0).sigmas == placed.sigmas
    said = capsys.readouterr().err
    assert said.count("is damaged, what it held is made again") == count == 2
    evaluator.measure(plan, range(4))
    assert capsys.readouterr().err == ""


@WAYS
def test_an_evaluation(evaluator, how, tmp_path):
    model = evaluator.model
    plan = make_schedule("linspace", 2, model.noise, model=model.spec)
    metric = Metric(evaluator.extractor, evaluator.reference)
    clock = Clock(torch.device("cpu"))
    harness = Harness([metric], evaluator.prompts, 4, tmp_path, clock, evaluator.judge)
    contender = OnSchedule("x", plan, model, "d")
    ((_, first),) = harness.measure(metric, [(contender, range(4))])
    assert cut(tmp_path, how) == 2
    ((_, again),) = harness.measure(metric, [(contender, range(4))])
    assert np.array_equal(again.features, first.features)
    assert np.array_equal(again.aligned, first.aligned)


@WAYS
def test_statistics_of_real_images(how, tmp_path):
    generator = np.random.default_rng(0)
    for k in range(6):
        pixels = torch.from_numpy(generator.integers(0, 256, (3, 32, 32), np.uint8))
        save_png(pixels, tmp_path / "real" / f"{k}.png")
    images = np.stack([generator.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(6)])
    np.savez(tmp_path / "real.npz", images)
    extractor, cache = load_extractor("texture"), tmp_path / "cache"
    for source in ("real", "real.npz"):
        first = load_reference(str(tmp_path / source), extractor, 32, cache)
        cut(cache, how)
        again = load_reference(str(tmp_path / source), extractor, 32, cache)
        assert again.fingerprint == first.fingerprint
