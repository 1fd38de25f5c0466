"""Extractors with weights of the user's: official Inception, CLIP, DINOv2; and the CLIP score.

clean-fid needs torchvision and comes with the extra `fid`; transformers is there anyway. Weights
come from a local path, or are downloaded by these libraries where there is a network. They are
read as safetensors, apart from Inception's TorchScript, which must have the known SHA-256.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepsampler.errors import UserError
from stepsampler.models.texts import Limit, Reading, cut_sentences
from stepsampler.support.sizes import Size, sides

INCEPTION_FILE = "inception-2015-12-05.pt"
NO_SETTINGS = ("transformers_version", "dtype", "torch_dtype")
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"


def load_pretrained(name: str, source: str, device: torch.device) -> "Inception | Transformer":
    """Load "inception", "clip" or "dinov2" from `source`.

    Raises:
        UserError: weights that are missing or others than expected.
    """
    if name == "inception":
        return Inception(source, device)
    if not source:
        raise UserError(f"extractor {name!r}: say which model, {name}:FOLDER or {name}:OWNER/NAME")
    return Transformer(name, source, device)


class Inception:
    """The official Inception of FID, 2,048 features, with clean-fid's network and resizing."""

    name = "inception"
    resizing = "clean-fid's: each channel by PIL's bicubic to 299 pixels, clipped, not quantised"
    axes: int | None = None

    def __init__(self, source: str, device: torch.device) -> None:
        try:
            from cleanfid.downloads_helper import check_download_inception
            from cleanfid.inception_torchscript import InceptionV3W
            from cleanfid.resize import build_resizer
        except (ImportError, RuntimeError) as error:  # torchvision beside another torch
            reason = str(error).splitlines()[0]
            raise UserError(
                f"extractor 'inception' needs clean-fid, pip install 'stepsearch[fid]' ({reason})"
            ) from error
        folder = Path(source) if source else Path(tempfile.gettempdir())
        if folder.name == INCEPTION_FILE:
            folder = folder.parent
        path = folder / INCEPTION_FILE
        if not path.exists():
            if source:
                raise UserError(f"extractor 'inception': no {INCEPTION_FILE} at {source}")
            try:
                check_download_inception(fpath=str(folder))
            except OSError as error:
                raise UserError(
                    f"extractor 'inception': {INCEPTION_FILE} cannot be downloaded ({error}); "
                    "give its place as inception:PATH"
                ) from error
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != INCEPTION_SHA256:
            raise UserError(
                f"{path}: not the official weights: SHA-256 {found[:12]}…, "
                f"expected {INCEPTION_SHA256[:12]}…"
            )
        self.net = InceptionV3W(str(folder), download=False).to(device)
        self.resize = build_resizer("clean")
        self.device = device
        self.digest = f"{found[:16]}-clean299"

    def prepare(self, images: Tensor) -> Tensor:
        rows = [self.resize(image.permute(1, 2, 0).numpy()) for image in images.cpu()]
        return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).to(self.device)

    @torch.inference_mode()
    def features(self, prepared: Tensor) -> Tensor:
        return self.net(prepared).float().cpu()  # type: ignore[no-any-return]

    def __call__(self, images: Tensor) -> Tensor:
        return self.features(self.prepare(images))


class Transformer:
    """CLIP's projected image features, or DINOv2's class token, of a transformers model.

    Images are prepared by the model's own processor, on PIL images.
    """

    axes: int | None = None
    resizing = "the model's own processor"

    def __init__(self, name: str, source: str, device: torch.device) -> None:
        self.name, self.device = name, device
        self.net = _load(name, source, device)
        self.processor = _processor(name, source)
        settings = settings_of(self.net) + settings_of(self.processor)
        self.digest = f"{_weights_digest(self.net)}-{_short(settings)}"

    def prepare(self, images: Tensor) -> Tensor:
        x = self.processor(images=list(images.cpu()), return_tensors="pt")["pixel_values"]
        return x.to(self.device, self.net.dtype)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def features(self, prepared: Tensor) -> Tensor:
        clip = self.name == "clip"
        output = self.net.get_image_features(prepared) if clip else self.net(prepared)
        return _pooled(output).float().cpu()

    def __call__(self, images: Tensor) -> Tensor:
        return self.features(self.prepare(images))


class ClipScore:
    """CLIP score of images and their prompts: 100 x cosine, at least 0 (Hessel et al. 2021).

    A prompt beyond the model's length is cut by the tokenizer, which keeps the token at its end,
    where CLIP reads the whole. With `long_prompts` "chunk" the text's direction is the mean of
    those of its parts, each as long as the model takes.
    """

    def __init__(
        self, source: str, device: str | torch.device = "cpu", long_prompts: str = "cut"
    ) -> None:
        from transformers import CLIPTokenizer

        self.device = torch.device(device)
        self.images = Transformer("clip", source, self.device)
        self.tokenizer = CLIPTokenizer.from_pretrained(source)
        words, known = len(self.tokenizer), self.images.net.config.text_config.vocab_size
        if not known // 2 <= words <= known:  # without its files there are two
            raise UserError(
                f"clip model {source!r}: its tokenizer has {words} words, the model {known}"
            )
        self.most = int(self.images.net.config.text_config.max_position_embeddings)
        self.long_prompts = Reading(long_prompts=long_prompts).long_prompts
        self.digest = f"{self.images.digest}-{_short(settings_of(self.tokenizer))}"
        self._long: dict[tuple[str, ...], bool] = {}

    def digest_for(self, prompts: Sequence[str]) -> str:
        """The digest of scores with these prompts; how long ones are read counts if there are any.

        Scores of before cut the token at the end as well: theirs is another digest.
        """
        texts = tuple(prompts)
        if texts not in self._long:
            self._long[texts] = any(n > self.most for n in self._lengths(texts))
        return f"{self.digest}-{self.long_prompts}" if self._long[texts] else self.digest

    def cuts(self, prompts: Sequence[str]) -> list[str]:
        """A sentence if the end of some prompts is not seen."""
        if self.long_prompts == "chunk":
            return []
        limit = Limit("the CLIP of the score", self.most, self._lengths)
        texts = list(dict.fromkeys(prompts))
        return cut_sentences([limit], texts, texts, "captions", "--clip-long-prompts chunk")

    def crops(self, size: Size | None) -> list[str]:
        """A sentence if the ends of images of this size are not seen; None is an unknown size."""
        width, height = sides(size or 1)
        if width == height or not getattr(self.images.processor, "do_center_crop", False):
            return []
        middle = min(width, height)
        return [
            f"the CLIP of the score sees the middle {middle} x {middle} pixels of images of "
            f"{width} x {height}: its processor crops them to squares"
        ]

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        texts = list(texts)
        return [len(ids) for ids in self.tokenizer(texts, verbose=False)["input_ids"]]

    def prepare(
        self, images: Tensor, prompts: Sequence[str]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pixels; tokens and their mask, a row for each part of a prompt; whose part it is."""
        texts, owner = list(prompts), list(range(len(prompts)))
        if self.long_prompts == "chunk":
            parts = [_parts(self.tokenizer, text, self.most - 2) for text in prompts]
            owner = [k for k, found in enumerate(parts) for _ in found]
            words = self.tokenizer.pad(
                {"input_ids": [ids for found in parts for ids in found]}, return_tensors="pt"
            )
        else:
            words = self.tokenizer(
                texts, return_tensors="pt", padding=True, truncation=True, max_length=self.most
            )
        tokens, mask = (words[k].to(self.device) for k in ("input_ids", "attention_mask"))
        return self.images.prepare(images), tokens, mask, torch.tensor(owner)

    @torch.inference_mode()
    def score(
        self, pixels: Tensor, tokens: Tensor, mask: Tensor, owner: Tensor
    ) -> NDArray[np.float32]:
        """One score an image, (n,)."""
        texts = _pooled(self.images.net.get_text_features(tokens, mask)).float().cpu()
        if len(texts) > len(pixels):
            parts = torch.nn.functional.normalize(texts)
            texts = torch.zeros(len(pixels), parts.shape[1]).index_add_(0, owner, parts)
        cosine = torch.nn.functional.cosine_similarity(self.images.features(pixels), texts)
        return (100 * cosine).clamp(min=0).numpy()

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> NDArray[np.float32]:
        return self.score(*self.prepare(images, prompts))


def _parts(tokenizer: Any, text: str, room: int) -> list[list[int]]:
    """The tokens of a text in parts of at most `room`, each with begin and end."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    starts = range(0, max(1, len(ids)), room)
    ends = tokenizer.bos_token_id, tokenizer.eos_token_id
    return [[ends[0], *ids[k : k + room], ends[1]] for k in starts]


def _pooled(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.pooler_output


def _load(name: str, source: str, device: torch.device) -> Any:
    import transformers

    loader = {"clip": transformers.CLIPModel, "dinov2": transformers.Dinov2Model}[name]
    try:
        net = loader.from_pretrained(source, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{name} model {source!r} cannot be loaded: {reason}") from error
    return net.eval().requires_grad_(False).to(device)


def _processor(name: str, source: str) -> Any:
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(source, backend="pil")
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{name} model {source!r} has no image processor: {reason}") from error


def _weights_digest(net: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def settings_of(part: object) -> str:
    """What of a component changes its outputs beside weights and dtype; no path and no version."""
    if (tokenizer := getattr(part, "backend_tokenizer", None)) is not None:
        bare = type(tokenizer).from_str(tokenizer.to_str())
        bare.no_padding()  # both are of the last call, which asks for its own
        bare.no_truncation()
        return str(bare.to_str())
    config = getattr(part, "config", part)
    known = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(known, Mapping):
        return ""
    kept = {k: v for k, v in known.items() if not k.startswith("_") and k not in NO_SETTINGS}
    return json.dumps(kept, sort_keys=True, default=str)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
