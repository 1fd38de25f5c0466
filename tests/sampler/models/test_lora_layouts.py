"""LoRAs of a U-Net under many tools' names: the numbers arrive, or a sentence names the layout."""

import pipelines
import pytest
import torch
from safetensors.torch import save_file

from stepsampler import UserError
from stepsampler.models.additions import add_loras

pytest.importorskip("peft")

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2"
COMPVIS = "middle_block.1.transformer_blocks.0.attn2"
KOHYA = f"lora_unet_{LAYER.replace('.', '_')}"
READ = {
    "diffusers": f"unet.{LAYER}.to_v.lora_A.weight",
    "peft, with the name of its adapter": f"unet.{LAYER}.to_v.lora_A.default.weight",
    "diffusers 0.17": f"unet.{LAYER}.processor.to_v_lora.down.weight",
    "diffusers 0.14": f"{LAYER}.processor.to_v_lora.down.weight",
    "diffusers 0.22": f"unet.{LAYER}.to_v.lora_linear_layer.down.weight",
    "without the network": f"{LAYER}.to_v.lora_A.weight",
    "without the network, dots": f"{LAYER}.to_v.lora.down.weight",
    "ComfyUI": f"diffusion_model.{LAYER}.to_v.lora_down.weight",
    "ComfyUI, A and B": f"diffusion_model.{LAYER}.to_v.lora_A.weight",
    "kohya": f"{KOHYA}_to_v.lora_down.weight",
}
REFUSED = {
    f"diffusion_model.{COMPVIS}.to_v.lora_A.weight": "as its layers have CompVis' names",
    f"model.diffusion_model.{COMPVIS}.to_v.lora_down.weight": "as its layers have CompVis' names",
    f"lora_unet_{COMPVIS.replace('.', '_')}_to_v.lora_down.weight": "has, as its layers have CompV",
    f"lycoris_{LAYER.replace('.', '_')}_to_v.lora_down.weight": "have LyCORIS' own names",
    "unet:0:down": "is a LoRA of cloneofsimo's package, whose layers have no names",
}


def saved(path, name):
    torch.manual_seed(2)
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    first, other = ("lora_A", "lora_B") if "lora_A" in name else ("down", "up")
    second = other.join(name.rsplit(first, 1))
    save_file({name: down, second: up}, path)
    return up @ down


@pytest.mark.parametrize("layout", READ)
def test_the_numbers_arrive(layout, tmp_path):
    file = tmp_path / "x.safetensors"
    expected = saved(file, READ[layout])
    pipeline = pipelines.stable_diffusion()
    add_loras(pipeline, [f"{file}:0.5"])
    layer = pipeline.unet.get_submodule(f"{LAYER}.to_v")
    torch.testing.assert_close(layer.get_delta_weight("lora0"), 0.5 * expected)


@pytest.mark.parametrize(("name", "message"), REFUSED.items())
def test_a_layout_that_is_not_read_is_named(name, message, tmp_path):
    file = tmp_path / "x.safetensors"
    saved(file, name)
    with pytest.raises(UserError, match=message):
        add_loras(pipelines.stable_diffusion(), [str(file)])


def test_weights_that_diffusers_drops_are_not_taken_for_added(tmp_path, monkeypatch):
    """As it does with names of adapters; whatever the next kind is."""
    monkeypatch.setattr("stepsampler.models.lora_layouts._placed", lambda _, key: key)
    file = tmp_path / "x.safetensors"
    saved(file, READ["peft, with the name of its adapter"])
    with pytest.raises(UserError, match="makes its layers, but puts no weights into them"):
        add_loras(pipelines.stable_diffusion(), [str(file)])
