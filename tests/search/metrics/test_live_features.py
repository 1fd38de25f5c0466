"""Extractors and the judge with gradients say what they say of the same images without."""

import pytest
import torch

from stepsearch.metrics.features import Judge, Live, load_extractor

IMAGES = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("name", ["texture", "lite0", "lite0-whole", "squeezenet"])
def test_live_features_are_the_features_and_have_a_gradient(name):
    extractor = load_extractor(name)
    assert isinstance(extractor, Live)
    live = IMAGES.float().requires_grad_()
    found = extractor.live(live)
    torch.testing.assert_close(found.detach(), extractor(IMAGES), rtol=1e-6, atol=1e-6)
    found.square().sum().backward()
    assert live.grad.isfinite().all()
    assert (live.grad != 0).any(dim=(1, 2, 3)).all()


def test_the_judge_finds_the_class_of_its_highest_logit():
    judge = Judge()
    live = IMAGES.float().requires_grad_()
    logits = judge.live(live)
    assert torch.equal(logits.argmax(1), judge(IMAGES))
    logits.sum().backward()
    assert (live.grad != 0).any()
