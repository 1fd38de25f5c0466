"""What weight files are and say, from their headers."""

import re

import pytest
import torch
from safetensors.torch import save_file

from stepsampler import UserError
from stepsampler.support.weights import read_header

ONE = {"w": torch.zeros(4)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "a Git LFS pointer",
        ),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page, not weights"),
        (b'{"error": "Repository not found"}', "JSON, not weights"),
        (b"GGUF\x03\x00\x00\x00" + bytes(64), "a GGUF file"),
        (b"PK\x03\x04" + bytes(64), "a pickle of PyTorch or a zip"),
        (b"\x80\x02}q\x00." + bytes(64), "a pickle, not safetensors"),
        (b"", "an empty file"),
        (b"\x00" * 100, "not a safetensors file"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00{", "cut off: download it again"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00{}", "holds no weights"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00[]", "not a safetensors file"),
    ],
)
def test_what_is_no_safetensors_file_is_named(content, said, tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"^LoRA '.*x\.safetensors'.* {said}"):
        read_header("LoRA", file)


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file(ONE, file)
    whole = file.read_bytes()
    assert read_header("LoRA", file).tensors == {"w": ("F32", (4,))}
    file.write_bytes(whole[:-1])
    said = f"is cut off: {len(whole) - 1} of {len(whole)} bytes"
    with pytest.raises(UserError, match=said):
        read_header("LoRA", file)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x.gguf", "is a GGUF file, which is not supported"),
        ("x.onnx", "is an ONNX file"),
        ("x.ckpt", "is a pickle, which can run code"),
        ("x.SAFETENSORS", "must be a .safetensors file, by that name"),
        ("x.sft", "must be a .safetensors file, by that name"),
        ("x", "must be a .safetensors file, by that name"),
    ],
)
def test_another_kind_of_file_is_named(name, said, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=re.escape(said)):
        read_header("LoRA", tmp_path / name)


def header(tmp_path, *keys, metadata=None):
    tensors = {key: torch.zeros(2, 2, dtype=torch.float16) for key in keys}
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    return read_header("file", tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["lora_unet_a.lora_down.weight", "lora_unet_a.lora_up.weight"], "a LoRA"),
        (["unet.a.lora_A.weight", "unet.a.lora_B.weight"], "a LoRA"),
        (["unet.a.processor.to_q_lora.down.weight"], "a LoRA"),
        (["lora_unet_a.hada_w1_a", "lora_unet_a.hada_w1_b"], "a LoHa"),
        (["lora_unet_a.lokr_w1", "lora_unet_a.lokr_w2"], "a LoKr"),
        (["a.lora_down.weight", "a.lora_up.weight", "a.dora_scale"], "a DoRA"),
        (["a.oft_blocks", "a.alpha"], "an OFT"),
        (["lora_unet_a.on_input", "lora_unet_a.weight"], "an (IA)³"),
        (["emb_params"], "a textual inversion"),
        (["clip_l", "clip_g"], "a textual inversion"),
        (["model.diffusion_model.out.0.bias", "x.lora_A.weight"], "a whole checkpoint"),
        (["control_model.a", "control_model.b"], "a ControlNet"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], "a VAE"),
        (["first_stage_model.decoder.mid.attn_1.k.bias", "b"], "a VAE"),
        (["decoder.layers.1.weight", "decoder.layers.3.conv.0.bias"], "a tiny autoencoder (TAESD)"),
        (["double_blocks.0.a", "single_blocks.0.b"], "a U-Net or transformer alone"),
        (["text_model.a", "text_model.b"], "a text encoder"),
    ],
)
def test_the_kind_of_a_file_is_told_by_its_keys(keys, kind, tmp_path):
    assert header(tmp_path, *keys).kind == kind


@pytest.mark.parametrize(
    ("keys", "metadata", "stated"),
    [
        (["v_pred"], {}, {"v_prediction"}),
        (["a"], {"modelspec.prediction_type": "v"}, {"v_prediction"}),
        (["a"], {"modelspec.prediction_type": "epsilon"}, {"epsilon"}),
        (["a"], {"modelspec.predict_key": "v"}, {"v_prediction"}),
        (["a"], {"ss_v_parameterization": "True"}, {"v_prediction"}),
        (["a"], {"ss_v_parameterization": "None"}, set()),
        (["a"], {"modelspec.architecture": "stable-diffusion-v2-768-v"}, {"v_prediction"}),
        (["a"], {"modelspec.architecture": "stable-diffusion-v2-512/lora"}, {"epsilon"}),
        (["a"], {"modelspec.architecture": "stable-diffusion-xl-v1-base"}, set()),
        (["v_pred"], {"ss_v_parameterization": "False"}, {"v_prediction", "epsilon"}),
        (["a"], {"modelspec.prediction_type": "Mystery"}, {"mystery"}),
    ],
)
def test_markers_of_the_prediction_type(keys, metadata, stated, tmp_path):
    assert set(header(tmp_path, *keys, metadata=metadata).predictions.values()) == stated


@pytest.mark.parametrize(
    ("key", "metadata", "said"),
    [
        ("scaled_fp8", {}, "are quantised"),
        ("model.diffusion_model.a.scale_weight", {}, "are quantised"),
        ("model.diffusion_model.a.comfy_quant", {}, "are quantised"),
        ("a.weight.quant_state.bitsandbytes__nf4", {}, "are quantised"),
        ("a.SCB", {}, "are quantised"),
        ("a.weight.absmax", {}, "are quantised"),
        ("transformer_blocks.0.qkv_proj.qweight", {}, "are quantised"),
        ("transformer_blocks.0.qkv_proj.wscales", {}, "are quantised"),
        ("a.weight._data", {}, "are quantised"),
        ("a.weight._scale", {}, "are quantised"),
    ],
)
def test_what_is_not_supported_is_said(key, metadata, said, tmp_path):
    assert said in header(tmp_path, key, metadata=metadata).unsupported


@pytest.mark.parametrize(
    ("keys", "metadata", "zero", "edm"),
    [
        (["v_pred", "ztsnr"], {}, {"ztsnr": True}, None),
        (["a"], {"ss_zero_terminal_snr": "True"}, {"ss_zero_terminal_snr": True}, None),
        (["a"], {"ss_zero_terminal_snr": "False"}, {"ss_zero_terminal_snr": False}, None),
        (["a"], {"ss_zero_terminal_snr": "None"}, {}, None),
        (["edm_vpred.sigma_max"], {}, {}, "edm_vpred.sigma_max"),
        (["edm_mean", "edm_std"], {}, {}, "edm_mean"),
        (["a"], {}, {}, None),
    ],
)
def test_markers_of_the_noise(keys, metadata, zero, edm, tmp_path):
    found = header(tmp_path, *keys, metadata=metadata)
    assert (found.zero_snr, found.edm, found.unsupported) == (zero, edm, None)
