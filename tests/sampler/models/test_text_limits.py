"""Prompts that a language model does not see the end of are said, and no others."""

from bisect import bisect_left

import pipelines
import pytest
import torch
from pipelines import FAMILIES

from stepsampler.models import from_pipeline

NAMES = ("z-image", "chroma", "qwen-image", "flux2-dev", "flux2-klein", "lumina2", "krea2")
NAMES += ("hunyuan-image", "cogview4", "aura-flow", "hunyuan-dit", "kolors", "ltx", "ltx2")
MOST = 1200  # letters; the miniatures' tokenizers make a token of each


def differ(model, letters, negative):
    """Whether the last of so many letters enters the condition."""
    found = [model.encode(["x" * (letters - 1) + last], negative) for last in "yz"]
    return any(not torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("negative", [False, True])
def test_the_end_of_a_prompt_is_seen_exactly_as_long_as_nothing_is_said(name, negative):
    model = from_pipeline(FAMILIES[name](), 32)

    def said(letters):
        text = ["x" * letters]
        return bool(model.cuts([] if negative else text, text if negative else []))

    first = bisect_left(range(1, MOST), True, key=said) + 1
    assert 1 < first < MOST
    assert differ(model, first - 1, negative)
    assert not differ(model, first, negative)


def test_a_cut_prompt_is_named_with_the_encoder():
    model = from_pipeline(pipelines.z_image(), 32)
    (sentence,) = model.cuts(["x" * 600, "short"])
    assert "1 of 2 prompts are longer than the 512 tokens that QWEN3 takes" in sentence
