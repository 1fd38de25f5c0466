"""Single files: what they say of themselves, and what they lack."""

import re

import ldm
import pipelines
import pytest
import torch
from pipelines import PROMPTS
from safetensors.torch import save_file

from stepsampler import Schedule, Step, UserError
from stepsampler.generate import generate
from stepsampler.models import from_pipeline, load

V = "v_prediction"
HEAD = "first_stage_model."


def images(model):
    schedule = Schedule((Step(8.0), Step(4.0)), 0.0, "ddim", model.spec)
    (batch,) = generate(model, schedule, PROMPTS, [0, 1, 2])
    return batch.images.int()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    for kind in ("epsilon", V):
        pipelines.stable_diffusion(kind).save_pretrained(path / kind)
    return path


@pytest.fixture(scope="module")
def weights():
    return ldm.checkpoint(pipelines.stable_diffusion())


@pytest.fixture
def file(tmp_path):
    return str(tmp_path / "x.safetensors")


def test_a_marker_of_v_is_read(folders, weights, file):
    """As ComfyUI reads it. The config's word is another: one of them has to be overruled."""
    expected = images(from_pipeline(pipelines.stable_diffusion(V)))
    epsilon, v = str(folders / "epsilon"), str(folders / V)
    save_file(weights | {"v_pred": torch.zeros(0)}, file)
    assert torch.equal(images(load(file, config=v)), expected)
    said = "marker v_pred says v_prediction, but the config '.*' says epsilon: give --prediction-ty"
    with pytest.raises(UserError, match=said):
        load(file, config=epsilon)
    asked = load(file, config=epsilon, prediction_type=V)
    assert asked.spec.prediction_type == V
    assert torch.equal(images(asked), expected)
    save_file(weights, file, {"modelspec.prediction_type": "epsilon"})
    with pytest.raises(UserError, match="modelspec.prediction_type says epsilon, but the config"):
        load(file, config=v)


def test_a_marker_overrules_the_config_that_diffusers_guesses(folders, weights, file, monkeypatch):
    from diffusers.loaders import single_file_utils

    known = {"v1": {"pretrained_model_name_or_path": str(folders / "epsilon")}}
    monkeypatch.setattr(single_file_utils, "DIFFUSERS_DEFAULT_PIPELINE_PATHS", known)
    save_file(weights | {"v_pred": torch.zeros(0)}, file)
    expected = images(from_pipeline(pipelines.stable_diffusion(V)))
    assert torch.equal(images(load(file)), expected)


@pytest.mark.parametrize(
    ("tensors", "metadata", "said"),
    [
        ({"edm_vpred.sigma_max": 1}, {}, "edm_vpred.sigma_max says a model with EDM's precond"),
        ({"edm_mean": 4, "edm_std": 4}, {}, "edm_mean says a model with EDM's preconditioning"),
        ({"v_pred": 0}, {"modelspec.predict_key": "epsilon"}, "contradicts itself: v_pred says v"),
        ({}, {"modelspec.prediction_type": "x0?"}, "says 'x0\\?', which is unknown"),
        ({"scaled_fp8": 1}, {}, "quantised .the tensor scaled_fp8., which is not supported"),
    ],
)
def test_markers_that_cannot_be_followed_are_refused(
    tensors, metadata, said, folders, weights, file
):
    save_file(weights | {key: torch.zeros(n) for key, n in tensors.items()}, file, metadata)
    with pytest.raises(UserError, match=said):
        load(file, config=str(folders / "epsilon"))


def test_the_prediction_type_of_stable_diffusion_2_is_asked_for(file):
    """diffusers takes each for v-prediction; 2-base and 2.1-base predict epsilon."""
    key = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
    tensors = {key: torch.zeros(2, 1024), "cond_stage_model.model.a": torch.zeros(1)}
    save_file(tensors, file)
    with pytest.raises(UserError, match="give --prediction-type epsilon .2-base, 2.1-base: 512"):
        load(file)
    for asked, repository in (("epsilon", "2-1-base has"), (V, "2-1 has")):
        with pytest.raises(UserError, match=f"stabilityai/stable-diffusion-{repository} no model_"):
            load(file, prediction_type=asked)
    save_file(tensors, file, {"modelspec.architecture": "stable-diffusion-v2-512"})
    with pytest.raises(UserError, match="stabilityai/stable-diffusion-2-1-base has no model_index"):
        load(file)


def test_the_prediction_type_of_a_folder_can_be_overruled(folders, tmp_path):
    asked = load(str(folders / "epsilon"), prediction_type=V)
    assert torch.equal(images(asked), images(from_pipeline(pipelines.stable_diffusion(V))))
    assert asked.pipeline.scheduler.config.prediction_type == V
    with pytest.raises(UserError, match="must be one of epsilon, v_prediction, sample, got 'v'"):
        load(str(folders / V), prediction_type="v")
    pipelines.sd3().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is not of flow models"):
        load(str(tmp_path), prediction_type=V)


@pytest.mark.parametrize(
    ("channels", "kind"), [(9, "inpainting"), (8, "edits images"), (5, "depth"), (6, "more than")]
)
def test_a_network_that_wants_more_than_a_latent_is_refused(channels, kind, tmp_path, weights):
    pipeline = pipelines.stable_diffusion()
    own = {k: v for k, v in pipeline.unet.config.items() if not k.startswith("_")}
    pipeline.register_modules(unet=type(pipeline.unet)(**own | {"in_channels": channels}))
    said = rf"takes {channels} channels where latents have 4: .*{kind}.*; only models from texts"
    with pytest.raises(UserError, match=rf"^the StableDiffusionPipeline cannot .* {said}"):
        from_pipeline(pipeline)
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=rf"^model '{tmp_path}/model': .* {said}"):
        load(str(tmp_path / "model"))
    if channels != 6:
        file = str(tmp_path / "x.safetensors")
        save_file(ldm.checkpoint(pipeline), file)
        with pytest.raises(UserError, match=said):
            load(file, config=str(tmp_path / "model"))


def test_a_transformer_that_wants_more_than_a_latent_is_refused():
    pipeline = pipelines.flux()
    own = {k: v for k, v in pipeline.transformer.config.items() if not k.startswith("_")}
    wide = type(pipeline.transformer)(**own | {"in_channels": 32})  # as FLUX's control models
    pipeline.register_modules(transformer=wide)
    with pytest.raises(UserError, match="takes 8 channels where latents have 4"):
        from_pipeline(pipeline)


def test_a_checkpoint_without_vae_takes_another(folders, weights, file, tmp_path):
    config = str(folders / "epsilon")
    save_file({k: v for k, v in weights.items() if not k.startswith(HEAD)}, file)
    with pytest.raises(UserError, match="it holds no AutoencoderKL: give one with --vae"):
        load(file, config=config)
    expected = images(from_pipeline(pipelines.stable_diffusion()))
    assert torch.equal(images(load(file, config=config, vae=config)), expected)
    alone = str(tmp_path / "vae.safetensors")
    save_file({k.removeprefix(HEAD): v for k, v in weights.items() if k.startswith(HEAD)}, alone)
    assert torch.equal(images(load(file, config=config, vae=alone)), expected)


def test_plain_float8_is_read_and_scaled_float8_refused(folders, weights, file):
    small = {k: v.to(torch.float8_e4m3fn) if v.ndim > 1 else v for k, v in weights.items()}
    save_file(small, file)
    model = load(file, config=str(folders / "epsilon"))
    own = pipelines.stable_diffusion().unet.conv_in.weight
    assert torch.equal(model.net.conv_in.weight, own.to(torch.float8_e4m3fn).float())
    save_file(small | {"model.diffusion_model.out.2.scale_weight": torch.ones(1)}, file)
    with pytest.raises(UserError, match="weights are quantised .the tensor .*scale_weight"):
        load(file, config=str(folders / "epsilon"))


def test_what_is_no_model_is_named(folders, file):
    for tensors, said in (
        ({"a.lora_A.weight": 1, "a.lora_B.weight": 1}, "is a LoRA: give it with --lora, beside a"),
        ({"emb_params": 1}, "is a textual inversion: give it with --textual-inversion"),
        ({"encoder.conv_in.bias": 1, "decoder.conv_in.bias": 1}, "is a VAE: give it with --vae"),
        (
            {"double_blocks.0.a": 1, "img_in.bias": 1},
            "is a U-Net or transformer alone: which is no",
        ),
        ({"lora_unet_a.hada_w1_a": 1, "b": 1}, "is a LoHa: which is not supported as a model"),
    ):
        save_file({key: torch.zeros(n) for key, n in tensors.items()}, file)
        with pytest.raises(UserError, match=re.escape(said)):
            load(file, config=str(folders / "epsilon"))
    with pytest.raises(UserError, match="a variant goes with a folder or hub id, not with the fi"):
        load(file, variant="fp16")


def test_tensors_that_are_not_of_the_model_are_counted_and_named(folders, weights, file, capsys):
    """diffusers drops them in silence, among them whole layers that a smaller config lacks."""
    config = str(folders / "epsilon")
    buffers = {"betas": torch.ones(9), "model_ema.decay": torch.ones(())}
    save_file(weights | buffers, file)
    load(file, config=config)
    assert "left out" not in capsys.readouterr().err
    more = ("model.diffusion_model.middle_block.9.bias", HEAD + "decoder.a", "lora_unet_b.alpha")
    save_file(weights | {key: torch.ones(1) for key in more}, file)
    load(file, config=config)
    assert f"3 of its tensors ({', '.join(sorted(more))}) are not of the model, and left out" in (
        capsys.readouterr().err
    )


def test_a_text_encoder_with_gaps_is_refused(folders, weights, file):
    key = "encoder.layers.0.mlp.fc1.bias"
    head = "cond_stage_model.transformer.text_model."
    save_file({k: v for k, v in weights.items() if k != head + key}, file)
    said = rf"text_encoder: 1 of its weights .*{re.escape(key)}. is missing"
    with pytest.raises(UserError, match=said):
        load(file, config=str(folders / "epsilon"))
