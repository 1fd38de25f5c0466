"""`stepsearch check` names what the model refuses, from its configs alone."""

import re

import pipelines
import pytest
import torch

from stepsampler.support.pictures import save_png
from stepsearch.config import StudyConfig
from stepsearch.rehearsal.check import missing


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    for name in ("stable-diffusion", "sd3", "flux-schnell"):
        pipelines.FAMILIES[name]().save_pretrained(path / name)
    (path / "p.txt").write_text("a fox\n")
    for k in range(2):
        save_png(torch.full((3, 40, 40), k, dtype=torch.uint8), path / "r" / f"{k}.png")
    return path


def studied(place, kind, extractor="lite0", reference=None, search=None, rivals=(), **model):
    evaluation = {"prompts": str(place / "p.txt"), "extractor": extractor}
    data = {
        "name": "x",
        "model": {"id": str(place / kind), **model},
        "space": {"num_steps": 2, "passes": 4},
        "evaluation": {**evaluation, "reference": reference or str(place / "r")},
        "search": search or {},
        "baselines": {"rivals": rivals},
    }
    return StudyConfig.model_validate(data)


def lacking(*given, **options):
    return missing(studied(*given, **options))


@pytest.mark.parametrize(
    ("kind", "model", "message"),
    [
        ("stable-diffusion", {"clip_skip": 9}, "model.clip_skip must be 1 to 1, got 9"),
        ("stable-diffusion", {"size": 33}, "size must be a multiple of 2 pixels, got 33: the near"),
        ("sd3", {"size": "32x2000"}, "size must be at most [0-9,]+ pixels a side, got 32x2000"),
        ("sd3", {"long_prompts": "chunk"}, 'model.long_prompts = "chunk" is not for a StableDiff'),
        ("stable-diffusion", {"zero_snr": True}, "zero terminal SNR does not go with a model that"),
        ("sd3", {"rivals": ["oss", "amed"]}, "': amed is for variance-preserving models only"),
        ("flux-schnell", {"clip_skip": 1}, "model.clip_skip is not for a FluxPipeline"),
        ("stable-diffusion", {"size": 64, "extractor": "texture"}, "is for images of 32 x 32"),
        ("sd3", {"size": 64, "reference": "fashion-mnist"}, "is of 32 pixels, images are 64"),
    ],
)
def test_what_the_model_refuses_is_missing(place, kind, model, message):
    (sentence,) = lacking(place, kind, **model)
    assert re.search(message, sentence)


def test_what_the_model_takes_lacks_nothing(place):
    some = ["gits", "amed"]
    assert lacking(place, "stable-diffusion", clip_skip=1, size="32x48", rivals=some) == []
    assert lacking(place, "stable-diffusion", "texture", "fashion-mnist", size=32) == []
    assert lacking(place, "sd3", size="64x32", rivals=["oss", "ld3"]) == []
    assert lacking(place, "stable-diffusion", prediction_type="v_prediction", zero_snr=True) == []


def test_an_earlier_run_that_is_gone_is_missing(place):
    absent = lacking(place, "stable-diffusion", search={"start_from": "runs/gone"})
    assert absent == ["search.start_from: runs/gone: no finished run; `stepsearch run` makes one"]
