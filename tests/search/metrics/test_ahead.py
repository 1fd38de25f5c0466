"""Batches that are made ahead are the same ones, and nothing is left behind."""

import gc
import threading
import weakref
from contextlib import nullcontext, suppress

import numpy as np
import pytest
import torch

from stepsampler.errors import DoesNotFitError, NotFiniteError
from stepsampler.grids import GRIDS, from_sigmas
from stepsearch.config import StudyConfig
from stepsearch.metrics import ahead, evaluator
from stepsearch.metrics.ahead import made_ahead
from stepsearch.metrics.evaluator import Evaluator

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_card(monkeypatch):
    monkeypatch.setattr(ahead, "aside", lambda device: nullcontext())


def makers():
    return [thread for thread in threading.enumerate() if thread.name == "batches"]


def test_the_next_batch_is_made_while_one_is_looked_at():
    begun = [threading.Event() for _ in range(4)]

    def batches():
        for k in range(4):
            begun[k].set()
            yield k

    found = []
    with made_ahead(batches(), CUDA) as made:
        for k in made:
            assert begun[min(k + 1, 3)].wait(30), "it stood still"
            found.append(k)
    assert found == [0, 1, 2, 3]
    assert not makers()


def test_on_a_cpu_each_batch_waits_for_the_one_before_it():
    log = []

    def batches():
        for k in range(3):
            log.append(("made", k))
            yield k

    with made_ahead(batches(), CPU) as made:
        for k in made:
            log.append(("seen", k))
            assert not makers()
    assert log == [(what, k) for k in range(3) for what in ("made", "seen")]


@pytest.mark.parametrize("error", [DoesNotFitError("a batch of 4"), torch.OutOfMemoryError("CUDA")])
def test_what_making_raises_is_raised_after_the_batches_before_it(error):
    def batches():
        yield 0
        raise error

    found = []
    with pytest.raises(type(error)) as caught, made_ahead(batches(), CUDA) as made:
        found += iter(made.__next__, None)
    assert caught.value is error
    assert not makers()


def test_an_error_keeps_nothing_of_the_batch_that_failed():
    """Else its memory would be missing for the smaller one that is tried next."""
    held = []

    def batches():
        tensor = torch.zeros(3)
        held.append(weakref.ref(tensor))
        yield 0
        raise DoesNotFitError("a batch of 4")

    gc.collect()
    gc.disable()
    try:
        with suppress(DoesNotFitError), made_ahead(batches(), CUDA) as made:
            sum(made)
        assert held[0]() is None
    finally:
        gc.enable()


def test_who_leaves_early_leaves_nobody_behind():
    made_so_far = []

    def batches():
        for k in range(1000):
            made_so_far.append(k)
            yield k

    with pytest.raises(ZeroDivisionError), made_ahead(batches(), CUDA) as made:
        max(1 / (k - 1) for k in made)
    assert not makers()
    assert len(made_so_far) <= 4


def test_a_measurement_is_the_same_and_a_batch_that_does_not_fit_is_halved(tmp_path, monkeypatch):
    study = {"name": "t", "space": {"num_steps": 3, "passes": 6}}
    study["evaluation"] = {"rulers": [], "batch_size": 4}
    config = StudyConfig.model_validate(study)
    plain = Evaluator(config, tmp_path / "a")
    *sigmas, final = GRIDS["karras"](2, plain.model.noise)
    plan = from_sigmas(sigmas, final, [2.0] * 2, 2, "dpmpp-midpoint", plain.model.spec)
    told = []
    plain.heard = lambda *images: told.append(images)
    expected = plain.measure(plan, range(10))
    assert told == [(4, 10), (8, 10), (10, 10)]

    def as_on_a_card(batches, device):
        return made_ahead(batches, CUDA)

    monkeypatch.setattr(evaluator, "made_ahead", as_on_a_card)
    other = Evaluator(config, tmp_path / "b")
    found = other.measure(plan, range(10))
    np.testing.assert_array_equal(found.features, expected.features)
    np.testing.assert_array_equal(found.aligned, expected.aligned)

    def fail(_, given):
        if len(given[0]) > 2 * 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    hook = other.model.net.register_forward_pre_hook(fail)
    halved = other.measure(plan, range(10, 20))
    assert other.batch_size == 2
    np.testing.assert_allclose(
        halved.features, plain.measure(plan, range(10, 20)).features, atol=0.05
    )
    hook.remove()

    def broken(*_):
        raise NotFiniteError("the latents are not finite")

    monkeypatch.setattr(other.model, "decode", broken)
    assert not other.measure(plan, range(20, 24)).finite
    assert not makers()
