"""Folders of modular pipelines: the images of the pipeline they were saved from, or a sentence."""

import json
import shutil

import diffusers
import models_page
import pipelines
import pytest
import torch
from families import our_images
from pipelines import PROMPTS
from typer.testing import CliRunner

from stepsampler import UserError
from stepsampler.cli.app import app
from stepsampler.cli.stock import describe_run
from stepsampler.grids import from_sigmas
from stepsampler.models import ModelOptions, from_pipeline, load, outline
from stepsampler.models.stock.run import run_stock
from stepsearch.rehearsal.dryrun import as_modular
from stepsearch.rehearsal.miniatures import FAMILIES

INDEX = "modular_model_index.json"


def modular(name):
    return as_modular(FAMILIES[models_page.MODULAR[name]](), getattr(diffusers, name))


def schedule_of(model):
    first = model.noise.sigma_max
    return from_sigmas([first, 0.4 * first], 0.0, [4.0, 1.0], 1, "ddim", model.spec)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modular") / "model"
    pipeline = modular("ZImageModularPipeline")
    pipeline.save_pretrained(str(folder), overwrite_modular_index=True)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy, whose index still points to where it was saved."""
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


def edited(folder, **changes):
    """Entries of the index, or what an entry's last part says."""
    index = json.loads((folder / INDEX).read_text())
    for key, value in changes.items():
        if isinstance(value, dict) and key in index:
            index[key][2] |= value
        else:
            index[key] = value
    (folder / INDEX).write_text(json.dumps(index))
    return str(folder)


@pytest.mark.parametrize("name", ["StableDiffusionXLModularPipeline", "ZImageModularPipeline"])
def test_a_folder_makes_the_images_of_the_pipeline_that_it_was_saved_from(name, tmp_path):
    pipeline = modular(name)
    own = from_pipeline(pipeline, pipelines.SIZE)
    plan = schedule_of(own)
    wanted = our_images(own, plan, PROMPTS)
    pipeline.save_pretrained(str(tmp_path / "there"), overwrite_modular_index=True)
    shutil.move(tmp_path / "there", tmp_path / "here")
    model = load(str(tmp_path / "here"), size=pipelines.SIZE)
    assert type(model.pipeline).__name__ == name
    assert torch.equal(our_images(model, plan, PROMPTS), wanted)
    bare = outline(ModelOptions(str(tmp_path / "here"), size=pipelines.SIZE), tmp_path / "here")
    assert (bare.spec, bare.shape) == (model.spec, model.shape)


@pytest.mark.parametrize("name", ["StableDiffusionXLModularPipeline", "ZImageModularPipeline"])
def test_show_prints_the_steps_of_the_plain_pipeline(name, tmp_path):
    modular(name).save_pretrained(str(tmp_path), overwrite_modular_index=True)
    plain = run_stock(FAMILIES[models_page.MODULAR[name]](), 3, size=pipelines.SIZE)
    result = CliRunner().invoke(app, ["show", str(tmp_path), "--steps", "3", "--size", "32"])
    first, _, *lines = result.stdout.splitlines()
    assert first.startswith(f"{name} with {plain.scheduler}: 3 steps, ")
    _, _, *wanted = describe_run(plain).splitlines()
    assert [line.split()[:5] for line in lines[:3]] == [line.split()[:5] for line in wanted[:3]]


def test_a_component_may_lie_in_another_folder(folder, saved, tmp_path):
    shutil.move(folder / "vae", tmp_path / "elsewhere" / "vae")
    edited(folder, vae={"pretrained_model_name_or_path": str(tmp_path / "elsewhere")})
    assert load(str(folder)).pipeline.vae.config.latent_channels == 4


def test_what_a_folder_cannot_be_loaded_with_is_one_sentence(folder, saved, monkeypatch):
    """diffusers takes other blocks, goes on without a component, or asks whether to run code."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    whole = (folder / INDEX).read_text()
    for changes, said in (
        ({"_blocks_class_name": "MyBlocks"}, "its blocks are 'MyBlocks', which diffusers 0"),
        ({"_blocks_class_name": "SequentialPipelineBlocks"}, "its blocks are 'SequentialPipeli"),
        ({"_class_name": "FoxModularPipeline"}, "must name a pipeline class of diffusers as its"),
        ({"_class_name": "ZImagePipeline"}, "must name a modular pipeline as its _class_name, g"),
        ({"_class_name": "QwenImageEditModularPipeline"}, "its blocks are|no pipeline from texts"),
        ({"auto_map": {"ModularPipelineBlocks": "b.B"}}, "brings blocks of its own as code .auto_"),
        ({"vae": {"type_hint": ["fox", "Vae"]}}, "its vae is a Vae, of the library 'fox', whose"),
        ({"vae": {"type_hint": ["diffusers", "Vae"]}}, "its vae is a Vae, which diffusers 0.* do"),
        ({"vae": {"pretrained_model_name_or_path": None, "subfolder": "x"}}, "it lacks the vae"),
        (
            {"vae": {"pretrained_model_name_or_path": "fox/vae", "subfolder": "x"}},
            "its vae lies in 'fox/vae', which is no folder here, nor in the local cache, and the h",
        ),
        (
            {"vae": {"pretrained_model_name_or_path": "/a/b.safetensors", "subfolder": ""}},
            "its vae is '/a/b.safetensors', not a folder or hub id",
        ),
    ):
        (folder / INDEX).write_text(whole)
        with pytest.raises(UserError, match=said):
            load(edited(folder, **changes))
    for text, said in (
        ("{", "is no JSON, or cut off"),
        ("[]", "is not JSON as expected"),
        ("[" * 100_000, ": its lists and objects are nested too deep"),
    ):
        (folder / INDEX).write_text(text)
        with pytest.raises(UserError, match=f"{INDEX} ?{said}"):
            load(str(folder))


def test_code_that_a_component_brings_is_not_run(folder):
    """A class that the config names is taken from the library itself, or not at all."""
    edited(folder, transformer={"type_hint": ["diffusers", "AutoModel"]})
    assert type(load(str(folder)).net).__name__ == "ZImageTransformer2DModel"
    file = folder / "transformer" / "config.json"
    own = json.loads(file.read_text())
    file.write_text(json.dumps(own | {"auto_map": {"AutoModel": "fox.Fox"}}))
    with pytest.raises(UserError, match="its transformer brings code of its own .auto_map in con"):
        load(str(folder))
    (folder / "modular_config.json").write_text('{"auto_map": {}}')
    with pytest.raises(UserError, match="brings blocks of its own as code"):
        load(str(folder))


def test_weights_are_looked_at_as_in_other_folders(folder):
    file = next((folder / "transformer").glob("*.safetensors"))
    kept = file.read_bytes()
    file.unlink()
    (folder / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="transformer holds no .safetensors file: .* is a pickle"):
        load(str(folder))
    file.write_bytes(kept[:-8])
    with pytest.raises(UserError, match="transformer: .* is cut off"):
        load(str(folder))
    file.write_bytes(kept)
    with pytest.raises(UserError, match="has no weights of the variant fp16"):
        load(str(folder), variant="fp16")
