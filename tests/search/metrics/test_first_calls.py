"""Schedules that begin alike ask the network the same once; their images stay what they were."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stepsampler.denoiser import FirstCalls
from stepsampler.grids import GRIDS, from_sigmas
from stepsampler.schedule import FreeU
from stepsearch.config import StudyConfig
from stepsearch.metrics.evaluator import Evaluator

N = 12  # images, in batches of 8 and 4


def evaluator(folder):
    sections = {
        "space": {"num_steps": 3, "passes": 6},
        "evaluation": {"rulers": [], "batch_size": 8},
    }
    return Evaluator(StudyConfig.model_validate({"name": "t", **sections}), folder)


@pytest.fixture
def plans():
    def make(model, grid, *scales, **step):
        *sigmas, final = GRIDS[grid](len(scales), model.noise)
        plan = from_sigmas(sigmas, final, scales, 2, "dpmpp-midpoint", model.spec)
        first = replace(plan.steps[0], **step)
        return replace(plan, steps=(first, *plan.steps[1:]))

    return make


def rows_of(model):
    """How many rows each call of the network has, from now on."""
    seen = []
    model.net.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    return seen


def test_the_first_call_is_made_once_and_the_images_stay_bit_for_bit(tmp_path, plans):
    known, fresh = evaluator(tmp_path / "known"), evaluator(tmp_path / "fresh")
    seen = rows_of(known.model)
    one, other = (plans(known.model, *p) for p in (("karras", 2, 2), ("kl-optimal", 5, 1, 3)))
    known.measure(one, range(N))
    assert (seen, known.saved) == ([16, 16, 8, 8], 0)
    seen.clear()
    found = known.measure(other, range(N))
    assert seen == [8, 16, 4, 8]  # without the first step's 16 and 8
    assert known.saved == 2 * N
    expected = fresh.measure(other, range(N))
    np.testing.assert_array_equal(found.features, expected.features)
    np.testing.assert_array_equal(found.aligned, expected.aligned)


def test_what_is_not_the_same_is_asked_anew(tmp_path, plans):
    known = evaluator(tmp_path)
    seen = rows_of(known.model)
    known.measure(plans(known.model, "karras", 2, 2), range(8))
    for other in (
        plans(known.model, "karras", 1, 2),  # unguided: rows lie elsewhere in the batch
        plans(known.model, "karras", 2, 2, sigma=9.0),
        plans(known.model, "karras", 2, 2, time_scale=0.9),
        plans(known.model, "karras", 2, 2, free_u=FreeU(1.2, 1.4, 0.9, 0.2)),
    ):
        seen.clear()
        known.measure(other, range(8))
        assert len(seen) == 2
    seen.clear()
    known.measure(plans(known.model, "karras", 3, 2), range(8, 16))  # other noise and prompts
    assert len(seen) == 2
    assert known.saved == 0


def test_the_speed_of_a_batch_is_that_of_calls_that_are_made(tmp_path):
    known = evaluator(tmp_path)
    seen = rows_of(known.model)
    known._probe(4)
    first = len(seen)
    known._probe(4)
    assert seen == [4] * 2 * first


def test_one_question_differs_in_its_condition_or_its_time():
    calls = FirstCalls(500.0)
    asked = []

    def network(x, time, condition):
        asked.append(time)
        return x * time + condition["text"]

    x, text = torch.ones(2, 3), torch.zeros(2, 3)
    with torch.no_grad():
        for time, shift in ((900.0, 0), (900.0, 0), (900.0, 1), (800.0, 0), (499.0, 0), (499.0, 0)):
            found = calls(network, x, time, {"text": text + shift})
            torch.testing.assert_close(found, x * time + shift)
    assert asked == [900.0, 900.0, 800.0, 499.0, 499.0]
    assert calls.saved == 2


def test_the_longest_unasked_is_forgotten():
    calls, asked = FirstCalls(0.0, limit=2 * 12), []

    def network(x, time, condition):
        asked.append(time)
        return x.clone()

    with torch.no_grad():
        for time in (1.0, 2.0, 1.0, 3.0, 1.0, 2.0):
            calls(network, torch.zeros(1, 3), time, {})
    assert asked == [1.0, 2.0, 3.0, 2.0]


def test_gradients_flow_as_ever():
    calls = FirstCalls(0.0)
    with torch.no_grad():
        calls(lambda x, *_: 2 * x, torch.ones(3), 1.0, {})
    x = torch.ones(3, requires_grad=True)
    calls(lambda x, *_: 2 * x, x, 1.0, {}).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((3,), 2.0))


def test_schedules_that_begin_alike_are_asked_from_where_they_part():
    calls, asked = FirstCalls(900.0), []

    def network(x, time, condition):
        asked.append(time)
        return x + time

    def sampled(*times):
        x = torch.ones(2, 3)
        for time in times:
            x = calls(network, x, time, {})
        return x

    with torch.no_grad():
        with calls.beginning_alike(first=True):
            sampled(950.0, 500.0, -0.5, 100.0)  # EDM's times of small levels are below 0
        asked.clear()
        with calls.beginning_alike(first=False):
            assert sampled(950.0, 500.0, -0.5, 90.0).eq(1 + 950 + 500 - 0.5 + 90).all()
            assert asked == [90.0]
            sampled(950.0, 400.0, 100.0)  # the same last time, from another state
            sampled(950.0, 400.0, 100.0)  # and what is not the first schedule's is not kept
            assert asked == [90.0, 400.0, 100.0, 400.0, 100.0]
        asked.clear()
        sampled(950.0, 500.0)
    assert asked == [500.0]
