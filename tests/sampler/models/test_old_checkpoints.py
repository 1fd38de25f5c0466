"""Single files of old days: names of CLIP without text_model, and levels of noise in the file."""

import ldm
import pipelines
import pytest
import torch
from safetensors.torch import save_file

from stepsampler import Schedule, Step, UserError
from stepsampler.generate import generate
from stepsampler.models import from_pipeline, load

CLIP = "cond_stage_model.transformer."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sd")
    pipelines.stable_diffusion().save_pretrained(path)
    return path


def loaded(folder, tmp_path, weights, **options):
    file = tmp_path / "x.safetensors"
    save_file({k: v.contiguous().clone() for k, v in weights.items()}, file)
    return load(str(file), config=str(folder), **options)


def images(model):
    plan = Schedule((Step(8.0, 3.0), Step(4.0, 3.0)), 0.0, "ddim", model.spec)
    (batch,) = generate(model, plan, pipelines.PROMPTS, [0, 1, 2])
    return batch.images


def test_the_text_encoder_is_read_under_its_old_names(folder, tmp_path):
    pipeline = pipelines.stable_diffusion()
    weights = ldm.checkpoint(pipeline)
    weights = {k.replace(f"{CLIP}text_model.", CLIP): v for k, v in weights.items()}
    weights[f"{CLIP}embeddings.position_ids"] = torch.arange(16)[None]
    assert torch.equal(images(loaded(folder, tmp_path, weights)), images(from_pipeline(pipeline)))
    half = loaded(folder, tmp_path, weights, dtype="float16")
    assert half.pipeline.text_encoder.dtype == torch.float16
    del weights[f"{CLIP}encoder.layers.0.mlp.fc1.weight"]
    with pytest.raises(UserError, match="text_encoder: 1 of its weights .*fc1.weight. is missing"):
        loaded(folder, tmp_path, weights)


@pytest.mark.parametrize("kind", ["same", "half", "bfloat16", "other", "short", "empty", "zero"])
def test_levels_of_noise_in_the_file_are_compared(kind, folder, tmp_path, capsys):
    pipeline = pipelines.stable_diffusion()
    ours = pipeline.scheduler.alphas_cumprod
    theirs = {
        "same": ours,
        "half": ours.half(),
        "bfloat16": ours.bfloat16(),
        "other": ours**1.1,
        "short": ours[:100],
        "empty": ours[:0],
        "zero": torch.cat([ours[:-1], torch.zeros(1)]),
    }[kind]
    weights = ldm.checkpoint(pipeline) | {"alphas_cumprod": theirs}
    loaded(folder, tmp_path, weights)
    said = capsys.readouterr().err
    assert ("its alphas_cumprod are others than those" in said) == (
        kind in ("other", "short", "empty", "zero")
    )
    assert ("--zero-snr takes levels that end in pure noise" in said) == (kind == "zero")
    assert kind != "other" or "1000 numbers from 0.9991 to 0.002724 in the file, 1000" in said
