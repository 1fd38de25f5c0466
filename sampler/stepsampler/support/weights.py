"""What a file of weights is and says, from its header: no tensor is read, no pickle opened."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stepsampler.errors import UserError
from stepsampler.support.files import meant

SUFFIX = ".safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
OTHERS = {".gguf": "a GGUF file", ".onnx": "an ONNX file", ".zip": "a zip", ".tar": "a tar archive"}
EPSILON, V = "epsilon", "v_prediction"

# How other things than safetensors begin, where they bear that name
_BEGINNINGS = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the weights: run git lfs pull",
    ),
    (b"GGUF", "a GGUF file"),
    (b"PK\x03\x04", "a pickle of PyTorch or a zip, not safetensors"),
    (b"\x80", "a pickle, not safetensors"),
    (b"<", "a web page, not weights: download the file itself"),
    (b"{", "JSON, not weights: download the file itself"),
)
# Adapters that are no plain LoRA, by a part of their keys
_ADAPTERS = (
    (r"\.hada_", "a LoHa"),
    (
        r"^\w+:\d+:(up|down)$",
        "a LoRA of cloneofsimo's package, whose layers have no names",
    ),
    (r"\.lokr_", "a LoKr"),
    (r"\.dora_scale$|\.lora_magnitude_vector", "a DoRA"),
    (r"\.(oft_|boft_)", "an OFT"),
    (r"\.[ab][12]\.weight$", "a GLoRA"),
    (r"\.on_input$|\.ia3_l", "an (IA)³"),
    (r"\.lora_mid\.", "a LoCon with Tucker decomposition"),
    (r"\.(diff|diff_b|w_norm|b_norm)$", "an adapter with whole differences of weights"),
)
_LORA = re.compile(r"[._](lora_(down|up|A|B)|lora\.(down|up)|lora_linear_layer\.(down|up))\b")
_QUANTISED = re.compile(
    r"(^|\.)(scaled_fp8|comfy_quant)$|\.quant_state\.|\.weight\._(data|scale)$"
    r"|\.(scale_weight|weight_scale|scale_input|absmax|qweight|wscales|SCB)$"
)
_CHECKPOINT = ("model.diffusion_model.", "cond_stage_model.", "conditioner.embedders.")
VAE_PREFIXES = ("first_stage_model.", "vae.")
# Names of the prediction type in metadata, by what writes them: the specification and kohya's
# scripts, ComfyUI, kohya's scripts
_PREDICTIONS = ("modelspec.prediction_type", "modelspec.predict_key", "ss_v_parameterization")
_SAID = {
    "epsilon": EPSILON,
    "eps": EPSILON,
    "v": V,
    "v_pred": V,
    "v_prediction": V,
    "v-prediction": V,
}


@dataclass(frozen=True)
class Header:
    """Of a safetensors file: (dtype, shape) by the tensor's name, and its metadata."""

    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    metadata: Mapping[str, str]

    @cached_property
    def adapter(self) -> str | None:
        """What kind of adapter other than a plain LoRA this is, such as «a LoHa»."""
        for pattern, name in _ADAPTERS:
            if any(re.search(pattern, key) for key in self.tensors):
                return name
        return None

    @cached_property
    def kind(self) -> str:
        """What the file holds, as far as its keys tell."""
        keys = self.tensors
        if any(key.startswith(_CHECKPOINT) and not _LORA.search(key) for key in keys):
            return "a whole checkpoint"
        if any(_LORA.search(key) for key in keys):
            return self.adapter or "a LoRA"
        if self.adapter and not any(re.match(r"(en|de)coder\.", key) for key in keys):
            return self.adapter
        if any(key.startswith(("control_model.", "controlnet_")) for key in keys):
            return "a ControlNet"
        if "emb_params" in keys or set(keys) == {"clip_l", "clip_g"} or len(keys) == 1:
            return "a textual inversion"
        if any(re.search(r"(^|\.)decoder\.(layers\.)?1\.", key) for key in keys):
            return "a tiny autoencoder (TAESD)"
        if any(re.search(r"(^|\.)decoder\.(mid|up|conv_in)", key) for key in keys):
            return "a VAE"
        if any(re.match(r"(transformer\.)?(text_model|encoder\.block)\.", key) for key in keys):
            return "a text encoder"
        blocks = ("input_blocks.", "down_blocks.", "double_blocks.", "joint_blocks.", "blocks.")
        if any(key.startswith((*blocks, "transformer_blocks.", "net.")) for key in keys):
            return "a U-Net or transformer alone"
        return "something unknown"

    @cached_property
    def has_vae(self) -> bool:
        return any(key.startswith(VAE_PREFIXES) for key in self.tensors)

    @cached_property
    def input_channels(self) -> int | None:
        """Of the U-Net of a whole checkpoint of Stable Diffusion."""
        found = self.tensors.get("model.diffusion_model.input_blocks.0.0.weight")
        return found[1][1] if found and len(found[1]) == 4 else None

    @cached_property
    def is_sd2(self) -> bool:
        """Whether this is Stable Diffusion 2.x: its text encoder is 1,024 wide."""
        place = "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
        found = self.tensors.get(f"model.diffusion_model.{place}")
        return found is not None and found[1][-1] == 1024

    @cached_property
    def predictions(self) -> dict[str, str]:
        """Prediction type by the marker that states it; an unknown one stays as it is.

        `v_pred` is an empty tensor, and the architecture of the model specification names the two
        kinds of Stable Diffusion 2.x. ComfyUI reads `v_pred`, for SDXL alone; diffusers reads none.
        """
        found = {k: V for k in ("v_pred", "edm_vpred.sigma_max") if k in self.tensors}
        for name in _PREDICTIONS:
            said = self.metadata.get(name, "").strip().lower()
            if name == "ss_v_parameterization":
                said = {"true": V, "false": EPSILON}.get(said, "")
            if said not in ("", "none"):
                found[name] = _SAID.get(said, said)
        architecture = self.metadata.get("modelspec.architecture", "").split("/")[0]
        kinds = {"stable-diffusion-v2-512": EPSILON, "stable-diffusion-v2-768-v": V}
        if architecture in kinds:
            found["modelspec.architecture"] = kinds[architecture]
        return found

    @cached_property
    def zero_snr(self) -> dict[str, bool]:
        """Whether the model was trained to zero terminal SNR, by the marker that states it.

        `ztsnr` is an empty tensor, which ComfyUI reads beside `v_pred`; diffusers reads none.
        """
        found = {"ztsnr": True} if "ztsnr" in self.tensors else {}
        said = self.metadata.get("ss_zero_terminal_snr", "").strip().lower()
        if said in ("true", "false"):
            found["ss_zero_terminal_snr"] = said == "true"
        return found

    @cached_property
    def edm(self) -> str | None:
        """The marker that says EDM's preconditioning, as ComfyUI reads it."""
        for name in ("edm_mean", "edm_vpred.sigma_max"):
            if name in self.tensors:
                return name
        return None

    @cached_property
    def unsupported(self) -> str | None:
        """Numbers of weights that are not supported."""
        for name, (dtype, _) in self.tensors.items():
            if _QUANTISED.search(name) or dtype in ("F4", "F8_E8M0"):
                return (
                    f"its weights are quantised (the tensor {name}), which is not supported; take "
                    "a file in float32, float16, bfloat16 or plain float8"
                )
        return None


def _kind(first: bytes) -> str | None:
    start = first.lstrip(b"\xef\xbb\xbf \r\n\t")
    return next((kind for head, kind in _BEGINNINGS if start.startswith(head)), None)


def beginning(path: Path) -> str | None:
    """What a file of text is instead: a Git LFS pointer or a web page."""
    with path.open("rb") as file:
        first = file.read(64)
    return None if first.lstrip().startswith((b"{", b"<|")) else _kind(first)


def is_weights_file(name: str) -> bool:
    """Whether this names a .safetensors file, and not a folder or a hub id.

    Raises:
        UserError: another kind of file, or none.
    """
    path = Path(name)
    suffix = path.suffix.lower()
    if path.is_dir():
        return False
    if suffix in PICKLES:
        raise UserError(f"{name!r} is a pickle, which can run code: convert it to {SUFFIX}")
    if suffix in OTHERS:
        raise UserError(f"{name!r} is {OTHERS[suffix]}, which is not supported: take a {SUFFIX}")
    if suffix == SUFFIX and not path.is_file():
        raise UserError(f"{name!r}: no such file{meant(path)}")
    if path.is_file() and path.suffix != SUFFIX:
        raise UserError(f"{name!r} must be a {SUFFIX} file, by that name")
    return suffix == SUFFIX


def read_header(what: str, name: str | Path) -> Header:
    """The header of a .safetensors file. `what` is named in errors, such as «LoRA».

    Raises:
        UserError: another kind of file, or one that is cut off.
    """
    path, place = Path(name), f"{what} {str(name)!r}"
    if path.suffix.lower() == SUFFIX and not path.exists():
        raise UserError(f"{place}: no such file{meant(path)}")
    if not is_weights_file(str(name)):
        files = sorted(path.glob(f"*{SUFFIX}"))
        hint = f"; in that folder there is {str(files[0])!r}" if files else ""
        raise UserError(f"{place} must be a {SUFFIX} file{hint}")
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(64)
        length = int.from_bytes(first[:8], "little")
        text = b""
        if first[8:9] == b"{" and length <= size - 8:
            file.seek(8)
            text = file.read(length)
    if not size:
        raise UserError(f"{place} is an empty file")
    try:
        data = json.loads(text)
        metadata = data.pop("__metadata__", {})
        tensors = {k: (str(v["dtype"]), tuple(map(int, v["shape"]))) for k, v in data.items()}
        end = max((int(v["data_offsets"][1]) for v in data.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if kind := _kind(first):
            raise UserError(f"{place} is {kind}; only {SUFFIX} files are supported") from error
        cut = first[8:9] == b"{" and size - 8 < length < 10**8
        reason = "is cut off: download it again" if cut else "is not a safetensors file"
        raise UserError(f"{place} {reason}") from error
    if size < 8 + length + end:
        raise UserError(
            f"{place} is cut off: {size:,} of {8 + length + end:,} bytes; download it again"
        )
    if not tensors:
        raise UserError(f"{place} holds no weights")
    return Header(tensors, {str(k): str(v) for k, v in metadata.items()})
