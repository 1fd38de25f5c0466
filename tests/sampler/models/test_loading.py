"""Models from folders and single files, and what is added to them."""

import importlib.util
import json

import ldm
import pipelines
import pytest
import torch
from pipelines import FAMILIES, PROMPTS
from safetensors.torch import save_file

from stepsampler import Schedule, Step, UserError
from stepsampler.generate import generate
from stepsampler.models import from_pipeline, load

PIXELS = ("ddpm", "ddim")
PEFT = importlib.util.find_spec("peft") is not None


def images(model, prompts=PROMPTS):
    first = 1.0 if model.prediction_type == "flow_prediction" else 8.0
    steps = tuple(Step(first * part) for part in (1.0, 0.5))
    schedule = Schedule(steps, 0.0, "ddim", model.spec, guidance=model.guidance)
    (batch,) = generate(model, schedule, prompts, [0, 1, 2])
    return batch.images.int()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    pipelines.stable_diffusion().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def expected():
    return images(from_pipeline(pipelines.stable_diffusion()))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_pipeline_is_loaded_as_it_was(name, tmp_path):
    pipeline = FAMILIES[name]()
    pipeline.save_pretrained(tmp_path)
    size = None if name in PIXELS else pipelines.SIZE
    frames = 5 if name in pipelines.MOVING else None
    model = load(str(tmp_path), size=size, frames=frames)
    prompts = [""] * 3 if name in PIXELS else ["1", "2", "3"]
    again = from_pipeline(pipeline, size, frames=frames)
    assert torch.equal(images(model, prompts), images(again, prompts))
    assert model.size == (size or 16)


def test_a_single_file_is_the_same_model(folder, expected, tmp_path):
    save_file(ldm.checkpoint(pipelines.stable_diffusion()), tmp_path / "x.safetensors")
    config = tmp_path / "config"
    pipelines.stable_diffusion().save_pretrained(config)
    for weights in config.rglob("*.safetensors"):  # nothing may come from there but configs
        weights.unlink()
    model = load(str(tmp_path / "x.safetensors"), config=str(config))
    assert torch.equal(images(model), expected)
    half = load(str(tmp_path / "x.safetensors"), dtype="bfloat16", config=str(config))
    assert half.dtype == half.pipeline.vae.dtype == torch.bfloat16


def test_what_is_no_single_file_is_refused(folder, tmp_path):
    for suffix in ("ckpt", "pt", "bin"):
        with pytest.raises(UserError, match=rf"x.{suffix}' is a pickle, which can run code: con"):
            load(str(tmp_path / f"x.{suffix}"))
    with pytest.raises(UserError, match="absent.safetensors': no such file"):
        load(str(tmp_path / "absent.safetensors"))
    with pytest.raises(UserError, match="a config goes with a single .safetensors file, not with"):
        load("tiny", config="tiny")
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, other)
    with pytest.raises(UserError, match="other.safetensors' cannot be loaded: "):
        load(str(other), config=str(folder))
    with pytest.raises(UserError, match="config './absent': no such folder; give a diffusers fold"):
        load(str(other), config="./absent")
    weights = ldm.checkpoint(pipelines.stable_diffusion())
    gaps = {name: value for name, value in weights.items() if "middle_block" not in name}
    save_file(gaps, other)
    with pytest.raises(UserError, match="cannot be loaded: some of its weights are missing"):
        load(str(other), config=str(folder))
    other.write_bytes(b"{}")
    with pytest.raises(UserError, match="other.safetensors' is JSON, not weights: download"):
        load(str(other), config=str(folder))


def test_a_pickle_in_a_folder_is_never_read(folder, tmp_path):
    pipelines.stable_diffusion().save_pretrained(tmp_path, safe_serialization=False)
    assert not list((tmp_path / "unet").glob("*.safetensors"))
    with pytest.raises(UserError, match="no .safetensors file: .*.bin is a pickle, which can run"):
        load(str(tmp_path))
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, file)
    with pytest.raises(UserError, match=r"config '.*': .*\.bin is a pickle, which can run code"):
        load(str(file), config=str(tmp_path))


def test_another_vae_of_a_pipeline_or_alone(folder, expected, tmp_path):
    torch.manual_seed(5)
    vae = pipelines.autoencoder()
    vae.save_pretrained(tmp_path / "alone")
    pipeline = pipelines.stable_diffusion()
    pipeline.vae = vae
    pipeline.save_pretrained(tmp_path / "pipeline")
    ours = [images(load(str(folder), vae=str(tmp_path / n))) for n in ("alone", "pipeline")]
    assert torch.equal(*ours)
    assert (ours[0] - expected).abs().max() > 3
    model = load(str(folder), dtype="bfloat16", vae=str(tmp_path / "alone"))
    assert model.pipeline.vae.dtype == torch.bfloat16


def test_a_vae_that_does_not_fit_is_refused(folder, tmp_path):
    pipelines.autoencoder(latent_channels=8).save_pretrained(tmp_path / "wide")
    with pytest.raises(UserError, match="has latent_channels 8, but the model needs 4"):
        load(str(folder), vae=str(tmp_path / "wide"))
    with pytest.raises(UserError, match="VAE '.*absent': no such folder"):
        load(str(folder), vae=str(tmp_path / "absent"))
    pipelines.ddpm().save_pretrained(tmp_path / "ddpm")
    with pytest.raises(UserError, match="model '.*' has no vae that could be rep"):
        load(str(tmp_path / "ddpm"), vae=str(tmp_path / "wide"))


def test_a_vae_of_another_dtype_decodes(expected):
    pipeline = pipelines.stable_diffusion().to(torch.bfloat16)
    pipeline.vae.to(torch.float32)
    ours = images(from_pipeline(pipeline))
    assert (ours - expected).abs().float().mean() < 8, "of 255, after a network in bfloat16"


def test_the_vae_of_sdxl_leaves_float16_unless_it_is_the_fixed_one(tmp_path):
    pipelines.sdxl().save_pretrained(tmp_path)
    assert load(str(tmp_path), dtype="float16").pipeline.vae.dtype == torch.float32
    config = tmp_path / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"force_upcast": False}))
    assert load(str(tmp_path), dtype="float16").pipeline.vae.dtype == torch.float16


@pytest.mark.parametrize("key", ["<hat>", "emb_params"])
def test_a_textual_inversion_adds_a_word(key, folder, tmp_path):
    """Its name is that in the file, or else the file's; two vectors stand for one word."""
    file = tmp_path / "hat.safetensors"
    save_file({key: torch.randn(2, 32, generator=torch.manual_seed(1))}, file)
    model = load(str(folder), textual_inversions=[str(file)])
    word = "<hat>" if key == "<hat>" else "hat"
    stock = pipelines.stable_diffusion()
    stock.load_textual_inversion(str(file), token=word, use_safetensors=True)
    states, _ = stock.encode_prompt([f"a {word}"], "cpu", 1, False)
    ours = model.encode([f"a {word}"])["encoder_hidden_states"]
    torch.testing.assert_close(ours, states)
    plain = load(str(folder)).encode([f"a {word}"])["encoder_hidden_states"]
    assert (ours - plain).abs().max() > 0.1


def test_a_textual_inversion_of_sdxl_has_two_parts(tmp_path):
    pipelines.sdxl().save_pretrained(tmp_path / "model")
    file = tmp_path / "hat.safetensors"
    save_file({"clip_l": torch.randn(1, 32), "clip_g": torch.randn(1, 48)}, file)
    model = load(str(tmp_path / "model"), textual_inversions=[str(file)])
    for tokenizer in (model.pipeline.tokenizer, model.pipeline.tokenizer_2):
        assert "hat" in tokenizer.added_tokens_encoder


def test_a_textual_inversion_that_does_not_fit_is_refused(folder, tmp_path):
    def refused(tensors, message, model=folder):
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(UserError, match=message):
            load(str(model), textual_inversions=[str(tmp_path / "x.safetensors")])

    refused({"<hat>": torch.zeros(1, 31)}, "its vectors have 31 numbers, those of the model 32")
    refused({"a": torch.zeros(1), "b": torch.zeros(1)}, "does not fit .*: it has the tensors a, b")
    pipelines.dit().save_pretrained(tmp_path / "dit")
    refused({"a": torch.zeros(1)}, "a DiTPipeline takes no textual inv", tmp_path / "dit")
    with pytest.raises(UserError, match="is a pickle, which can run code"):
        load(str(folder), textual_inversions=[str(tmp_path / "x.pt")])
    with pytest.raises(UserError, match="'.*x.txt' must be a .safetensors file"):
        load(str(folder), textual_inversions=[str(tmp_path / "x.txt")])


@pytest.mark.skipif(PEFT, reason="peft is installed")
def test_without_peft_a_lora_is_refused_in_one_sentence(folder, tmp_path):
    pipelines.save_lora(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="needs the package peft, which is not installed: pip in"):
        load(str(folder), loras=[str(tmp_path / "x.safetensors")])


@pytest.mark.skipif(not PEFT, reason="peft is not installed")
def test_a_lora_is_added_with_its_weight(folder, tmp_path):
    key, product = pipelines.save_lora(tmp_path / "x.safetensors")
    file = str(tmp_path / "x.safetensors")
    ours = images(load(str(folder), loras=[f"{file}:0.5"]))
    both = images(load(str(folder), loras=[f"{file}:0.2", f"{file}:0.3"]))
    pipeline = pipelines.stable_diffusion()
    pipeline.unet.get_parameter(f"{key}.weight").data += 0.5 * product
    expected = images(from_pipeline(pipeline))
    assert (ours - expected).abs().max() <= 1
    assert (both - expected).abs().max() <= 1
    assert (ours - images(load(str(folder)))).abs().max() > 3
    save_file({f"a.lora_{half}.weight": torch.zeros(2, 2) for half in "AB"}, file)
    with pytest.raises(UserError, match="LoRA '.*' does not fit the model: it has no weights"):
        load(str(folder), loras=[file])


@pytest.mark.skipif(not PEFT, reason="peft is not installed")
def test_the_weight_of_a_lora_is_a_number(folder, tmp_path):
    with pytest.raises(UserError, match="expected FILE or FILE:WEIGHT, such as x.safetensors:0.8"):
        load(str(folder), loras=["x.safetensors:much"])


def test_a_model_that_takes_no_lora_says_so(tmp_path):
    pipelines.dit().save_pretrained(tmp_path / "dit")
    with pytest.raises(UserError, match="a DiTPipeline takes no LoRA"):
        load(str(tmp_path / "dit"), loras=["x.safetensors"])
