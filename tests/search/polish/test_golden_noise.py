"""A schedule with learned golden noise is polished from that noise."""

from dataclasses import replace
from types import SimpleNamespace

import torch

from stepsampler import LearnedNoise, Schedule, Step
from stepsampler.generate import seeded_noise
from stepsampler.models import load
from stepsampler.npnet.files import BUNDLED, digest_of
from stepsearch.metrics.alignment import Prompt
from stepsearch.polish.knobs import Knobs
from stepsearch.polish.objective import _Batch


def test_polish_begins_with_the_noise_that_sampling_begins_with():
    model, text = load("tiny"), "a photo of a bag"
    plan = Schedule((Step(14.0, 2.0), Step(3.0, 2.0)), 0.5, "ddim")
    plan = replace(plan, golden_noise=LearnedNoise(digest_of(BUNDLED / "tiny.safetensors")))
    evaluator = SimpleNamespace(prompt=lambda seed: Prompt(text), negative_prompt="")
    objective = SimpleNamespace(evaluator=evaluator, model=model)
    batch = _Batch(objective, Knobs(plan, "gain", True), range(2))
    latents = batch._counting().latents
    expected = model.first_noise(
        seeded_noise(range(2), model.shape), model.encode([text] * 2), plan
    )
    assert torch.equal(latents, expected)
    assert not torch.equal(latents, seeded_noise(range(2), model.shape))
