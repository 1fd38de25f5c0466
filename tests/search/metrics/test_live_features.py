"""The judge with gradients says what it says of the same images without."""

import torch

from stepsearch.metrics.features import Judge

IMAGES = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.manual_seed(0), dtype=torch.uint8)


def test_the_judge_finds_the_class_of_its_highest_logit():
    judge = Judge()
    live = IMAGES.float().requires_grad_()
    logits = judge.live(live)
    assert torch.equal(logits.argmax(1), judge(IMAGES))
    logits.sum().backward()
    assert (live.grad != 0).any()
