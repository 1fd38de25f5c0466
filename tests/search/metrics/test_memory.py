"""A batch that does not fit is halved, what is measured stays the same; the fastest is found."""

import numpy as np
import pytest
import torch

from stepsampler import UserError, generate
from stepsampler.errors import DoesNotFitError
from stepsampler.generate import BatchSize, fastest
from stepsampler.grids import GRIDS, from_sigmas
from stepsearch.config import StudyConfig
from stepsearch.metrics.evaluator import Evaluator

SHAPE = {"space": {"num_steps": 3, "passes": 6}}


def settings(**evaluation):
    evaluation = {"rulers": [], **evaluation}
    return StudyConfig.model_validate({"name": "t", **SHAPE, "evaluation": evaluation})


def of_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def of_a_cpu():
    torch.empty(2**55)  # a real one


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    evaluator = Evaluator(settings(batch_size=8), tmp_path_factory.mktemp("cache"))
    *sigmas, final = GRIDS["karras"](2, evaluator.model.noise)
    plan = from_sigmas(sigmas, final, [2.0] * 2, 2, "dpmpp-midpoint", evaluator.model.spec)
    return evaluator, plan, evaluator.measure(plan, range(8)), evaluator.images(plan, range(8))


@pytest.mark.parametrize(("fail", "part"), [(of_a_gpu, "network"), (of_a_cpu, "extractor")])
def test_a_batch_that_does_not_fit_is_halved_for_good(whole, tmp_path, capsys, fail, part):
    before, plan, expected, pictures = whole
    evaluator = Evaluator(settings(batch_size=8), tmp_path)
    assert evaluator.identity == before.identity
    sizes = []

    def watch(images):
        sizes.append(len(images))
        if len(images) > 3:
            fail()

    if part == "network":  # a guided step has each image twice
        evaluator.model.net.register_forward_pre_hook(lambda _, given: watch(given[0][::2]))
    else:
        extractor = evaluator.extractor
        evaluator.extractor = lambda images: watch(images) or extractor(images)
    found = evaluator.measure(plan, range(8))
    assert list(dict.fromkeys(sizes)) == [8, 4, 2]
    np.testing.assert_allclose(found.features, expected.features, atol=0.05)
    sizes.clear()
    made = evaluator.images(plan, range(8)).int()
    assert (made - pictures).abs().max() <= 1
    evaluator.measure(plan, range(8, 16))
    assert set(sizes) == {2}
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "note: a batch of 8 does not fit into memory: 4 at once from now on",
        "note: a batch of 4 does not fit into memory: 2 at once from now on",
    ]


def test_a_single_image_that_does_not_fit_is_said():
    def never(_):
        raise DoesNotFitError("a batch of 1 does not fit")

    with pytest.raises(UserError, match="a batch of 1 does not fit"):
        BatchSize(4, never).fit(never)
    with pytest.raises(UserError, match="a batch of 1 does not fit"):
        BatchSize("auto", never).fit(never)


def clock(monkeypatch, seconds):
    """What a batch of a size takes; the first of each size ten times as long."""
    now, seen = [0.0], []

    def probe(size):
        now[0] += seconds(size) * (1 if size in seen else 10)
        seen.append(size)

    monkeypatch.setattr(generate.time, "perf_counter", lambda: now[0])
    return probe, seen


@pytest.mark.parametrize(
    ("seconds", "best", "tried"),
    [
        (lambda n: 1 + 0.01 * n, 128, 128),  # the call costs most
        (lambda n: 0.1 * n, 1, 4),  # a core has no use for a batch
        (lambda n: max(1.0, n / 8), 8, 32),  # full at 8
        (lambda n: 1.0 if n < 16 else 0.2 * n, 8, 32),  # slower beyond
    ],
)
def test_the_fastest_batch_is_found_by_doubling(monkeypatch, seconds, best, tried):
    probe, seen = clock(monkeypatch, seconds)
    size, speed = fastest(probe)
    assert (size, seen[-1]) == (best, tried)
    assert speed == pytest.approx(best / seconds(best))


def test_what_does_not_fit_is_not_the_fastest(monkeypatch):
    def seconds(size):
        if size > 8:
            raise DoesNotFitError
        return 1.0

    assert fastest(clock(monkeypatch, seconds)[0]) == (8, 8.0)


def test_auto_measures_as_a_given_size_does(whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("stepsampler.generate.LARGEST", 4)
    before, plan, expected, _ = whole
    evaluator = Evaluator(settings(batch_size="auto"), tmp_path)
    assert capsys.readouterr().err == ""  # nothing is tried before there is something to measure
    found = evaluator.measure(plan, range(8))
    np.testing.assert_allclose(found.features, expected.features, atol=0.05)
    assert evaluator.batch_size in (1, 2, 4)
    said = capsys.readouterr().err
    assert said.count("the fastest here") == 1
    assert f"batches of {evaluator.batch_size}: " in said
    assert evaluator.identity != before.identity


@pytest.mark.parametrize("size", [0, -1, True, 2.5, "fast", None, [8]])
def test_a_batch_size_is_a_number_or_auto(size):
    with pytest.raises(ValueError, match='must be at least 1, or "auto"'):
        settings(batch_size=size)
    assert settings(batch_size="auto").evaluation.batch == 50
    assert settings(batch_size=7).evaluation.batch == 7
