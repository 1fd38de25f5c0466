"""Folders: variants, shards, and files that are broken."""

import json
import shutil

import diffusers
import pipelines
import pytest
import torch
from pipelines import PROMPTS
from safetensors.torch import load_file, save_file

from stepsampler import Schedule, Step, UserError
from stepsampler.generate import generate
from stepsampler.models import from_pipeline, load

UNET = "unet/diffusion_pytorch_model.safetensors"


def images(model):
    schedule = Schedule((Step(8.0), Step(4.0)), 0.0, "ddim", model.spec)
    (batch,) = generate(model, schedule, PROMPTS, [0, 1, 2])
    return batch.images.int()


@pytest.fixture
def folder(tmp_path):
    pipelines.stable_diffusion().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def half():
    """The images of weights that were rounded to float16."""
    return images(from_pipeline(pipelines.stable_diffusion().to(torch.float16).to(torch.float32)))


def test_a_folder_with_one_variant_alone_is_read(tmp_path, half):
    pipelines.stable_diffusion().to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    for variant in (None, "fp16"):
        assert torch.equal(images(load(str(tmp_path), variant=variant)), half)
    with pytest.raises(UserError, match="holds its weights as the variants fp16 but not bf16"):
        load(str(tmp_path), variant="bf16")
    vae = pipelines.stable_diffusion().vae
    vae.save_pretrained(tmp_path / "vae", variant="bf16")
    with pytest.raises(UserError, match="vae holds its weights as the variants bf16, fp16: choose"):
        load(str(tmp_path))


def test_a_folder_with_both_gives_the_plain_weights_unless_asked(folder, half):
    pipelines.stable_diffusion().to(torch.float16).save_pretrained(folder, variant="fp16")
    plain = images(from_pipeline(pipelines.stable_diffusion()))
    assert torch.equal(images(load(str(folder))), plain)
    assert torch.equal(images(load(str(folder), variant="fp16")), half)
    with pytest.raises(UserError, match="has no weights of the variant bf16"):
        load(str(folder), variant="bf16")


def test_one_part_may_have_a_variant_alone(folder):
    """The U-Net keeps its float32 weights, though the VAE has none."""
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
    pipelines.stable_diffusion().vae.half().save_pretrained(folder / "vae", variant="fp16")
    model = load(str(folder))
    own = pipelines.stable_diffusion()
    assert torch.equal(model.net.conv_in.weight, own.unet.conv_in.weight)
    rounded = own.vae.decoder.conv_in.weight.half().float()
    assert torch.equal(model.pipeline.vae.decoder.conv_in.weight, rounded)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_read_and_a_missing_one_is_named(folder, variant, half):
    shutil.rmtree(folder / "unet")
    pipeline = pipelines.stable_diffusion()
    unet = pipeline.unet.half() if variant else pipeline.unet
    unet.save_pretrained(folder / "unet", max_shard_size="40KB", variant=variant)
    model = load(str(folder))
    for key, value in model.net.state_dict().items():
        assert torch.equal(value, unet.float().state_dict()[key])
    shard = sorted((folder / "unet").glob("*-of-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=f"unet: 1 of its shards .{shard.name}. is missing"):
        load(str(folder))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"<html>", "is a web page"),
        (b"", "is an empty file"),
    ],
)
def test_a_file_of_a_folder_that_is_no_weights_is_named(folder, content, said):
    (folder / UNET).write_bytes(content)
    with pytest.raises(UserError, match=f"unet: .*{UNET}' {said}"):
        load(str(folder))


def test_weights_that_are_missing_are_counted_and_named(folder, capsys):
    """diffusers would fill them with random numbers, and go on."""
    weights = load_file(folder / UNET)
    save_file(weights | {"mask": torch.zeros(1)}, folder / UNET, {"format": "pt"})
    load(str(folder))
    assert "unet: 1 of its tensors (mask) is not of the model, and left out" in (
        capsys.readouterr().err
    )
    for key in ("conv_in.bias", "conv_out.bias"):
        del weights[key]
    save_file(weights, folder / UNET, {"format": "pt"})
    said = r"unet: 2 of its weights .conv_in.bias, conv_out.bias. are missing in the files"
    with pytest.raises(UserError, match=said):
        load(str(folder))


def test_what_is_no_pipeline_folder_is_said(folder):
    (folder / UNET).unlink()
    with pytest.raises(UserError, match="unet holds no .safetensors file: no weights"):
        load(str(folder))
    with pytest.raises(UserError, match="cannot be loaded: no model_index.json in the folder"):
        load(str(folder / "unet"))
    with pytest.raises(UserError, match="for a single file, give '.*vae/diffusion_.*' itself"):
        load(str(folder / "vae"))
    (folder / "model_index.json").write_text("[]")
    with pytest.raises(UserError, match="model_index.json is not JSON as expected"):
        load(str(folder))


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors.index.json",
    ],
)
def test_json_that_is_nested_too_deep_is_named(folder, name):
    if "index" in name and name.startswith("unet"):
        (folder / UNET).unlink()
    (folder / name).write_text('{"a": ' * 100_000)
    with pytest.raises(UserError) as caught:
        load(str(folder))
    assert str(caught.value) == f"{folder / name}: its lists and objects are nested too deep"


def test_another_vae_stands_in_for_one_that_is_missing(folder):
    expected = images(from_pipeline(pipelines.stable_diffusion()))
    shutil.copytree(folder / "vae", folder.parent / "alone")
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="vae holds no .safetensors file"):
        load(str(folder))
    assert torch.equal(images(load(str(folder), vae=str(folder.parent / "alone"))), expected)


def test_a_vae_of_another_class_or_scale_is_refused(folder):
    alone = folder.parent / "alone"
    shutil.copytree(folder / "vae", alone)
    config = json.loads((alone / "config.json").read_text())
    for change, said in (
        ({"_class_name": "AutoencoderTiny"}, "is an AutoencoderTiny, but the model needs an Auto"),
        ({"scaling_factor": 0.13025}, "has scaling_factor 0.13025, but the model needs 0.18215"),
    ):
        (alone / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=said):
            load(str(folder), vae=str(alone))


def edited(folder, file, **changes):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(folder)


def test_parts_that_are_not_sampled_with_may_be_missing(folder):
    """As in folders from which somebody left out what checks images for safety."""
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    processor = ["transformers", "CLIPImageProcessor"]
    listed = {"safety_checker": checker, "feature_extractor": processor}
    model = load(edited(folder, "model_index.json", **listed))
    assert torch.equal(images(model), images(from_pipeline(pipelines.stable_diffusion())))


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("model_index.json", {"_class_name": "X"}, "must name a pipeline class .*, got 'X'"),
        ("model_index.json", {"_class_name": ["a", "B"]}, "must name a pipeline class of diffuse"),
        (
            "model_index.json",
            {"_class_name": "StableDiffusionControlNetPipeline"},
            "a StableDiffusionControlNetPipeline cannot run a schedule: it is no",
        ),
        ("model_index.json", {"unet": [None, None]}, "cannot be loaded: it lacks the unet"),
        ("model_index.json", {"scheduler": ["diffusers", "X"]}, "scheduler is a X, which diffuser"),
        (
            "unet/config.json",
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "unet: its weights are quantised .bitsandbytes., which is not read f",
        ),
        (
            "text_encoder/config.json",
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
            "text_encoder: its weights are quantised .bitsandbytes., which is not read f",
        ),
        ("unet/config.json", {"sample_size": None}, "does not say how large its images are"),
    ],
)
def test_a_folder_that_cannot_be_read_says_why(folder, file, changes, said):
    with pytest.raises(UserError, match=said):
        load(edited(folder, file, **changes))


def test_a_model_that_does_not_state_its_size_takes_another(folder):
    expected = images(from_pipeline(pipelines.stable_diffusion()))
    name = edited(folder, "unet/config.json", sample_size=None)
    assert torch.equal(images(load(name, size=32)), expected)


@pytest.mark.parametrize(
    ("part", "name", "content", "said"),
    [
        ("tokenizer", "tokenizer.json", None, "tokenizer of the .* knows 2 words and its encoder"),
        ("tokenizer", "tokenizer.json", "version https://git-lfs", "tokenizer.json is a Git LFS"),
        ("tokenizer", "merges.txt", "version https://git-lfs", "merges.txt is a Git LFS pointer"),
        ("tokenizer", "tokenizer.json", '{"a":', "tokenizer: tokenizer.json is no JSON, or cut"),
        ("unet", "config.json", None, "unet holds no config.json"),
    ],
)
def test_words_and_configs_that_are_missing_or_broken_are_named(folder, part, name, content, said):
    """Of a folder without words transformers makes a tokenizer without words, and goes on."""
    path = folder / part / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=said):
        load(str(folder))


def test_a_tokenizer_that_states_no_length_has_that_of_its_encoder(folder):
    (folder / "tokenizer/tokenizer_config.json").unlink()
    model = load(str(folder))
    assert model.pipeline.tokenizer.model_max_length == 16
    assert torch.equal(images(model), images(from_pipeline(pipelines.stable_diffusion())))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_class_embeds": 4}, "wants a class .num_class_embeds of its config is 4."),
        (
            {"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 32},
            "an image, as with an IP-Adapter .encoder_hid_dim_type",
        ),
    ],
)
def test_a_network_that_wants_more_than_a_prompt_is_refused(options, said):
    pipe = pipelines.stable_diffusion()
    config = {k: v for k, v in pipe.unet.config.items() if not k.startswith("_")}
    pipe.unet = diffusers.UNet2DConditionModel(**config | options)
    with pytest.raises(UserError, match=said):
        from_pipeline(pipe)
