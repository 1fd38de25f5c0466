"""NPNets in files: safetensors with the authors' names of tensors, known by their digest."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from stepsampler.errors import UserError
from stepsampler.npnet.network import Layout, NPNet
from stepsampler.schedule import ModelSpec
from stepsampler.schedule.reading import model_from
from stepsampler.support.checks import ScheduleError, parse
from stepsampler.support.files import replacing
from stepsampler.support.weights import Header, read_header

FORMAT = "stepsample.npnet/1"
BUNDLED = Path(__file__).parents[1] / "bundled" / "npnet"
TOKENS = 77  # of CLIP, which the authors' checkpoints do not say
SWIN = "unet_embedding.swin."
# What transformers calls a part of Swin, now and before its version 5, and what timm does
NAMES = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.", ""),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(o_proj|output\.dense)\.", ".attn.proj."),
    (r"\.attention\.\w+\.relative_position_bias_table", ".attn.relative_position_bias_table"),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
QKV = re.compile(r"\.attention\.(?:self\.)?(?:([qkv])_proj|(query|key|value))\.")
# Of the authors' networks, and without effect: a norm that no forward pass calls, Swin's classifier
UNUSED = re.compile(r"unet_svd\.bn\.|unet_embedding\.swin\.head\.")


def digest_of(path: Path) -> str:
    """The first 16 characters of the SHA-256 of a file, as a schedule names it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def find_npnet(digest: str, given: str | None = None) -> Path:
    """The file of a network that a schedule names: the given one, or one of the package.

    Raises:
        UserError: neither is that network.
    """
    files = [Path(given)] if given else []
    if found := next(
        (f for f in [*files, *sorted(BUNDLED.glob("*"))] if digest_of(f) == digest), None
    ):
        return found
    hint = f"{given!r} is {digest_of(Path(given))}" if given else "give its file (--npnet)"
    raise UserError(f"the golden noise is that of the NPNet {digest}: {hint}")


def read_npnet(path: Path) -> NPNet:
    """The network of a file, in float32 on the CPU, ready to be called.

    Raises:
        UserError: no such file, another kind of file, or weights that are missing or of other
            shapes than the file says.
    """
    header = read_header("NPNet", path)
    layout = read_layout(path, header)
    from safetensors.torch import load_file

    network = NPNet(layout)
    fill(network, load_file(path), f"NPNet {str(path)!r}")
    return network.eval().requires_grad_(False)


def read_layout(path: Path, header: Header) -> Layout:
    """What the metadata of a file says of its network.

    Raises:
        UserError: it is no NPNet of ours.
    """
    place = f"NPNet {str(path)!r}"
    if header.metadata.get("format") != FORMAT:
        holds = f"{header.kind}, as it seems"
        raise UserError(
            f"{place} is no NPNet ({holds}); `stepsample convert-npnet` makes one of the authors' "
            "checkpoint"
        )
    try:
        layout = Layout.from_json(header.metadata["layout"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{place} does not say what it is made for") from error
    for name, shape in layout.large.items():  # before a network of these sizes is made
        if name not in header.tensors:
            raise UserError(f"{place} has no {name}")
        if (got := header.tensors[name][1]) != shape:
            raise UserError(f"{place}: {name} must be of shape {shape}, got {got}")
    return layout


def read_spec(path: Path) -> ModelSpec | None:
    """The kind of model on which a network was trained; None where the file does not say.

    Raises:
        UserError: no such file, another kind of file, or another kind of model than there is.
    """
    said = read_header("NPNet", path).metadata.get("model")
    try:
        return None if said is None else model_from(parse(said))
    except ScheduleError as error:
        raise UserError(f"NPNet {str(path)!r} does not say for which model: {error}") from error


def write_npnet(path: Path, network: NPNet, metadata: Mapping[str, str] | None = None) -> None:
    """Write a file that `read_npnet` reads, whole or not at all; the same again has its digest."""
    from safetensors.torch import save

    tensors = {k: v.detach().cpu().contiguous() for k, v in as_published(network).items()}
    said = {"format": FORMAT, "layout": network.layout.to_json(), **(metadata or {})}
    data = save(tensors, said)
    # safetensors has the keys of metadata in another order each time (findings/)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end]) | {"__metadata__": dict(sorted(said.items()))}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary:
        temporary.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def as_published(network: NPNet) -> dict[str, Tensor]:
    """Its tensors by the authors' names, those of timm within Swin."""
    state = network.state_dict()
    return {
        name: torch.cat([state[k] for k in ours]) if len(ours) > 1 else state[ours[0]]
        for name, ours in _names(network).items()
    }


def fill(network: NPNet, published: Mapping[str, Tensor], place: str) -> None:
    """Load tensors of the authors' names; `place` is named in errors.

    Raises:
        UserError: names the first tensor that is missing, unknown, of another shape or not finite.
    """
    expected = as_published(network)
    known = {k: v for k, v in published.items() if not UNUSED.match(k)}
    for key in sorted(expected.keys() | known.keys()):
        if key not in known:
            raise UserError(f"{place} has no {key}")
        if key not in expected:
            raise UserError(f"{place} has {key}, which no NPNet of this layout has")
        shape, got = tuple(expected[key].shape), tuple(known[key].shape)
        if got != shape:
            raise UserError(f"{place}: {key} must be of shape {shape}, got {got}")
        if not known[key].isfinite().all():
            raise UserError(f"{place}: {key} is not finite")
    state = dict[str, Tensor]()
    for name, ours in _names(network).items():
        state |= zip(ours, known[name].float().chunk(len(ours)), strict=True)
    network.load_state_dict(state, strict=False)  # what is left are constants of transformers


def _names(network: NPNet) -> dict[str, list[str]]:
    """The authors' name of a tensor -> ours: three where queries, keys and values lie together."""
    found = dict[str, list[str]]()
    for key, _ in network.named_parameters():
        name = key.removeprefix(SWIN)
        if name != key:
            for ours, theirs in NAMES:
                name = re.sub(ours, theirs, name)
            name = re.sub(r"^layers\.(\d+)\.downsample", _next, name)
            name = SWIN + QKV.sub(".attn.qkv.", name)
        found.setdefault(name, []).append(key)
    return {name: sorted(keys, key=_order) for name, keys in found.items()}


def _next(found: re.Match[str]) -> str:
    """timm has the merging of patches before a stage, transformers after the one before it."""
    return f"layers.{int(found[1]) + 1}.downsample"


def _order(key: str) -> int:
    found = QKV.search(key)
    return "qkv".index((found[1] or found[2])[0]) if found else 0
