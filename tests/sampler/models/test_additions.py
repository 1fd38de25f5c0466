"""VAEs in single files, and LoRAs of every make: read right, or refused by name."""

import importlib.util

import ldm
import pipelines
import pytest
import torch
from pipelines import PROMPTS
from safetensors.torch import save_file

from stepsampler import Schedule, Step, UserError
from stepsampler.generate import generate
from stepsampler.models import from_pipeline, load

PEFT = importlib.util.find_spec("peft") is not None
HEAD = "first_stage_model."
UNET = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
KOHYA = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v"
TEXT = "text_model.encoder.layers.0.self_attn"


def images(model):
    schedule = Schedule((Step(8.0), Step(4.0)), 0.0, "ddim", model.spec)
    (batch,) = generate(model, schedule, PROMPTS, [0, 1, 2])
    return batch.images.int()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    pipelines.stable_diffusion().save_pretrained(path)
    return str(path)


@pytest.fixture
def file(tmp_path):
    return str(tmp_path / "x.safetensors")


def layouts(pipeline):
    """The VAE of a pipeline under each of the names that such files have."""
    whole = ldm.checkpoint(pipeline)
    ours = {k: v for k, v in whole.items() if k.startswith(HEAD)}
    modern = {k: v.contiguous() for k, v in pipeline.vae.state_dict().items()}
    old = modern
    for new, name in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
        old = {k.replace(new, name): v for k, v in old.items()}
    old = {k.replace("to_out.0", "proj_attn"): v for k, v in old.items()}
    bare = {k.removeprefix(HEAD): v for k, v in ours.items()}
    return {
        "ldm": bare,
        "ldm, with a prefix": ours,
        "ldm, with leftovers of training": bare | {"loss.logvar": torch.zeros(1)},
        "whole checkpoint": whole,
        "diffusers": modern,
        "diffusers before 0.18": old,
        "diffusers, with a prefix": {f"vae.{k}": v for k, v in modern.items()},
        "float16": {k: v.half() for k, v in bare.items()},
    }


@pytest.mark.parametrize("layout", layouts(pipelines.stable_diffusion()))
def test_a_vae_in_a_file_is_that_of_the_folder(layout, folder, file, tmp_path):
    torch.manual_seed(5)
    pipeline = pipelines.stable_diffusion()
    pipeline.register_modules(vae=pipelines.autoencoder().eval())
    if layout == "float16":
        pipeline.vae.half().float()
    save_file(layouts(pipeline)[layout], file)
    model = load(folder, vae=file)
    for key, value in pipeline.vae.state_dict().items():
        assert torch.equal(model.pipeline.vae.state_dict()[key], value), key
    assert torch.equal(images(model), images(from_pipeline(pipeline)))


def test_a_file_that_is_no_vae_of_the_model_is_refused(folder, file, capsys):
    weights = layouts(pipelines.stable_diffusion())["diffusers"]

    def refused(tensors, said):
        save_file(tensors, file)
        with pytest.raises(UserError, match=said):
            load(folder, vae=file)

    gone = {k: v for k, v in weights.items() if k != "decoder.conv_in.bias"}
    refused(gone, "VAE '.*': 1 of its weights .decoder.conv_in.bias. is missing in the file")
    wide = pipelines.autoencoder(latent_channels=8).state_dict()
    refused(wide, "VAE '.*' cannot be loaded: its weights have other shapes than the model")
    refused({"emb_params": torch.zeros(1)}, "VAE '.*' is a textual inversion, not a VAE")
    tiny = {"decoder.layers.1.weight": torch.zeros(1), "decoder.layers.2.bias": torch.zeros(1)}
    refused(tiny, "is a tiny autoencoder .TAESD., not a VAE")
    save_file(weights | {"decoder.mask": torch.zeros(1)}, file)
    load(folder, vae=file)
    said = capsys.readouterr().err
    assert "1 of its tensors (decoder.mask) is not of the model, and left out" in said


def lora(*layers, rank=2):
    """Of peft's names, each layer by name with its factors' widths."""
    made = {}
    for name, width in layers:
        made[f"{name}.lora_A.weight"] = torch.randn(rank, width)
        made[f"{name}.lora_B.weight"] = torch.randn(width, rank)
    return made


def kohya(name, layer, factors=("lora_down", "lora_up")):
    down = torch.randn(2, layer.in_features)
    up = torch.randn(layer.out_features, 2)
    pair = zip(factors, (down, up), strict=True)
    return {f"{name}.{factor}.weight": value for factor, value in pair}


@pytest.mark.skipif(not PEFT, reason="peft is not installed")
def test_a_lora_of_kohya_is_added_to_the_text_encoder_too(folder, file):
    """Its alpha of 1 halves a LoRA of rank 2."""
    pipeline = pipelines.stable_diffusion()
    encoder = pipeline.text_encoder.get_submodule(TEXT.removeprefix("text_model."))
    made = kohya(KOHYA, pipeline.unet.get_submodule(UNET.removeprefix("unet.")))
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        made |= kohya(f"lora_te_{TEXT.replace('.', '_')}_{name}", encoder.get_submodule(name))
    made |= {k.replace("lora_up.weight", "alpha"): torch.tensor(1.0) for k in made if "up" in k}
    save_file(made, file)
    targets = {KOHYA: pipeline.unet.get_submodule(UNET.removeprefix("unet."))}
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        targets[f"lora_te_{TEXT.replace('.', '_')}_{name}"] = encoder.get_submodule(name)
    for name, layer in targets.items():
        layer.weight.data += made[f"{name}.lora_up.weight"] @ made[f"{name}.lora_down.weight"] / 2
    difference = images(load(folder, loras=[file])) - images(from_pipeline(pipeline))
    assert difference.abs().max() <= 1


@pytest.mark.skipif(not PEFT, reason="peft is not installed")
@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (("unet.mid_block.attentions.7.to_v", 32), "unet.mid_block.attentions.7.to_v"),
        (("transformer.x.attn.to_v", 32), "transformer.x.attn.to_v"),
        ((f"text_encoder_2.{TEXT}.q_proj", 32), f"text_encoder_2.{TEXT}.q_proj"),
    ],
)
def test_layers_that_find_none_are_counted_and_named(extra, named, folder, file, capsys):
    save_file(lora((UNET, 32), extra), file)
    load(folder, loras=[file])
    said = f"1 of its layers ({named}) is not of the model, and left out; 1 of 2 were added"
    assert said in capsys.readouterr().err
    save_file(lora((UNET, 32)), file)
    load(folder, loras=[file])
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not PEFT, reason="peft is not installed")
def test_layers_of_sdxl_under_kohyas_names_of_blocks_are_counted(tmp_path, file, capsys):
    pipeline = pipelines.sdxl()
    pipeline.save_pretrained(tmp_path / "model")
    layer = pipeline.unet.get_submodule(UNET.removeprefix("unet."))
    name = "lora_unet_middle_block_1_transformer_blocks_{}_attn2_to_v"
    capsys.readouterr()
    for blocks, lost in (([0], ""), ([0, 7], "transformer_blocks.7")):
        save_file({k: v for b in blocks for k, v in kohya(name.format(b), layer).items()}, file)
        load(str(tmp_path / "model"), loras=[file])
        said = capsys.readouterr().err
        assert (lost in said and "transformer_blocks.0" not in said) if lost else said == ""


@pytest.mark.skipif(not PEFT, reason="peft is not installed")
@pytest.mark.parametrize(
    ("tensors", "metadata", "said"),
    [
        ({f"{KOHYA}.hada_w1_a": (32, 2)}, {}, "is a LoHa, which is not supported here: only plain"),
        ({f"{KOHYA}.lokr_w1": (4, 4), f"{KOHYA}.lokr_w2": (8, 8)}, {}, "is a LoKr"),
        (
            {
                f"{KOHYA}.lora_down.weight": (2, 32),
                f"{KOHYA}.lora_up.weight": (32, 2),
                f"{KOHYA}.dora_scale": (32, 1),
            },
            {},
            "is a DoRA",
        ),
        ({f"{KOHYA}.oft_blocks": (2, 4, 4)}, {}, "is an OFT"),
        ({"model.diffusion_model.out.0.bias": (1,)}, {}, "is a whole checkpoint"),
        ({f"{KOHYA}.lora_down.weight": (2, 32)}, {}, "is there by one factor of two"),
        (
            {f"{KOHYA}.lora_down.weight": (2, 64), f"{KOHYA}.lora_up.weight": (64, 2)},
            {"ss_base_model_version": "sdxl_base_v1-0"},
            r"does not fit the model .it was made for sdxl_base_v1-0.: its weights have other sha",
        ),
        (
            {"transformer.a.lora_A.weight": (2, 4), "transformer.a.lora_B.weight": (4, 2)},
            {},
            "it has no weights of a network that the model has; one of its 1 layers is transf",
        ),
    ],
)
def test_a_lora_that_cannot_be_added_is_named(tensors, metadata, said, folder, file):
    save_file({key: torch.randn(shape) for key, shape in tensors.items()}, file, metadata)
    with pytest.raises(UserError, match=f"LoRA '.*'.*{said}"):
        load(folder, loras=[file])


@pytest.mark.skipif(not PEFT, reason="peft is not installed")
def test_a_lora_that_was_trained_on_another_prediction_type_says_so(folder, file, capsys):
    save_file(lora((UNET, 32)), file, {"ss_v_parameterization": "True"})
    load(folder, loras=[file])
    said = "was trained on a model that predicts v_prediction (its marker ss_v_parameterization)"
    assert said in capsys.readouterr().err


@pytest.mark.skipif(not PEFT, reason="peft is not installed")
@pytest.mark.parametrize("weight", ["nan", "inf", "", "x"])
def test_a_weight_that_is_no_finite_number_is_refused(weight, folder):
    with pytest.raises(UserError, match="expected FILE or FILE:WEIGHT"):
        load(folder, loras=[f"x.safetensors:{weight}"])


@pytest.mark.parametrize("what", ["model", "vae", "loras", "textual_inversions"])
@pytest.mark.parametrize(
    ("content", "said"), [(b"version https://git-lfs", "Git LFS pointer"), (b"<html>", "web page")]
)
def test_what_is_no_weights_is_named_wherever_it_is_given(what, content, said, folder, file):
    if what == "loras" and not PEFT:
        pytest.skip("peft is not installed")
    with open(file, "wb") as out:
        out.write(content)
    options = {"vae": {"vae": file}, "model": {}}.get(what, {what: [file]})
    with pytest.raises(UserError, match=f"x.safetensors' is a {said}"):
        load(file if what == "model" else folder, **options)


def test_a_textual_inversion_is_no_other_file(folder, file):
    save_file(lora((UNET, 32)), file)
    with pytest.raises(UserError, match="is a LoRA, not a textual inversion"):
        load(folder, textual_inversions=[file])
    save_file({"clip_l": torch.zeros(1, 32), "clip_g": torch.zeros(1, 48)}, file)
    with pytest.raises(UserError, match="it is for two text encoders, and the model has one"):
        load(folder, textual_inversions=[file])
    save_file({"emb_params": torch.zeros(1, 32)}, file)
    with pytest.raises(UserError, match="the model knows the word 'x' already; give the file anot"):
        load(folder, textual_inversions=[file])


def hot():
    """A VAE whose first layer overflows in float16; a group norm follows."""
    pipeline = pipelines.stable_diffusion()
    with torch.no_grad():
        pipeline.vae.decoder.conv_in.weight *= 3e5
    return pipeline


def test_a_vae_that_overflows_in_float16_decodes_in_float32():
    pipeline = hot().to(torch.float16)
    pipeline.vae.decoder.conv_in.weight.data.clamp_(-60000, 60000)
    exact = hot()
    exact.vae.load_state_dict(pipeline.vae.state_dict())
    latents = torch.randn(2, 4, 16, 16)
    model = from_pipeline(pipeline)
    ours = model.decode(latents).int()
    assert (ours - from_pipeline(exact).decode(latents.half().float()).int()).abs().max() <= 1
    assert pipeline.vae.dtype == torch.float16, "the next images that do not overflow stay fast"
    with torch.inference_mode():
        assert torch.equal(model.decode(latents).int(), ours)


def test_only_the_images_that_overflow_are_decoded_again():
    """So that an image does not depend on those that it is batched with."""
    pipeline = pipelines.stable_diffusion().to(torch.float16)
    with torch.no_grad():
        pipeline.vae.decoder.conv_in.weight *= 300
    model = from_pipeline(pipeline)
    cool = torch.randn(1, 4, 16, 16) * 1e-3
    both = torch.cat([cool, torch.randn(1, 4, 16, 16) * 1e3])
    assert not model._decoded(both)[1].isfinite().all()
    assert model._decoded(both)[0].isfinite().all()
    seen = []
    pipeline.vae.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    together = model.decode(both)
    assert [(len(x), x.dtype) for x in seen] == [(2, torch.float16), (1, torch.float32)]
    assert torch.equal(together[:1], model.decode(cool))


def test_what_is_not_finite_is_said_to_be_latents_or_vae():
    from stepsampler.errors import NotFiniteError

    model = from_pipeline(pipelines.stable_diffusion())
    with pytest.raises(NotFiniteError, match="latents are not finite: the schedule overflows, or"):
        model.decode(torch.full((1, 4, 16, 16), float("nan")))
    with torch.no_grad():
        model.pipeline.vae.decoder.conv_out.bias.fill_(float("inf"))
    with pytest.raises(NotFiniteError, match="but the latents are: the VAE .AutoencoderKL. overf"):
        model.decode(torch.zeros(1, 4, 16, 16))


def by_hand(scale, down, up):
    """The images of the tiny model with scale * up @ down in one of its projections."""
    pipeline = pipelines.stable_diffusion()
    layer = pipeline.unet.get_submodule(UNET.removeprefix("unet."))
    layer.weight.data += scale * up @ down
    return images(from_pipeline(pipeline))


@pytest.mark.skipif(not PEFT, reason="peft is not installed")
@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 4 / 2**0.5)])
def test_a_lora_as_peft_itself_writes_it_is_read_with_its_alpha(rslora, scale, folder, tmp_path):
    """diffusers finds no layer in it; peft keeps the alpha in another file."""
    from peft import LoraConfig, get_peft_model

    unet = pipelines.stable_diffusion().unet
    name = UNET.removeprefix("unet.")
    settings = LoraConfig(r=2, lora_alpha=4, target_modules=[name], use_rslora=rslora)
    made = get_peft_model(unet, settings)
    layer = made.get_submodule(f"base_model.model.{name}")
    down, up = layer.lora_A.default.weight.data, layer.lora_B.default.weight.data
    up += torch.randn(up.shape, generator=torch.manual_seed(5))
    made.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    difference = images(load(folder, loras=[str(file)])) - by_hand(scale, down, up)
    assert difference.abs().max() <= 1
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(UserError, match=r"with its alpha in adapter_config.json, which is not"):
        load(folder, loras=[str(file)])
    with pytest.raises(UserError, match="must be a .safetensors file; in that folder there is '.*"):
        load(folder, loras=[str(tmp_path)])


@pytest.mark.skipif(not PEFT, reason="peft is not installed")
def test_alphas_of_layers_count_and_tensors_beside_the_factors_are_named(folder, file, capsys):
    """diffusers refuses such a file; its message speaks of the names of LoRA parameters."""
    made = lora((UNET, 32))
    expected = by_hand(2.0, *made.values())
    word = "bundle_emb.word.string_to_param.*"
    save_file(made | {f"{UNET}.alpha": torch.tensor(4.0), word: torch.zeros(1, 32)}, file)
    assert (images(load(folder, loras=[file])) - expected).abs().max() <= 1
    assert f"1 of its tensors ({word}) is no factors" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["clip_l", "string_to_param.*"])
def test_a_textual_inversion_that_names_no_word_has_that_of_its_file(key, folder, tmp_path, capsys):
    file = tmp_path / "hat.safetensors"
    save_file({key: torch.randn(1, 32)}, file)
    assert "hat" in load(folder, textual_inversions=[str(file)]).pipeline.tokenizer.get_vocab()
    assert capsys.readouterr().err == ""
    save_file({"<cap>": torch.randn(1, 32)}, file)
    load(folder, textual_inversions=[str(file)])
    assert "its word in prompts is <cap>" in capsys.readouterr().err


def test_a_textual_inversion_for_one_encoder_of_two_says_so(tmp_path, capsys):
    pipelines.sdxl().save_pretrained(tmp_path / "model")
    file = tmp_path / "hat.safetensors"
    for key, width, number in (("clip_l", 32, ""), ("clip_g", 48, "_2")):
        save_file({key: torch.randn(1, width)}, file)
        capsys.readouterr()
        pipeline = load(str(tmp_path / "model"), textual_inversions=[str(file)]).pipeline
        assert "hat" in getattr(pipeline, f"tokenizer{number}").get_vocab()
        assert "is for one of the two text encoders" in capsys.readouterr().err


def test_a_tokenizer_that_cannot_be_read_is_named():
    from stepsampler.models.parts import reason

    raised = ValueError("`tiktoken` is required to read a `tiktoken` file. Install it with `pip`.")
    assert "no SentencePiece model that can be read" in reason(raised)
