"""Do images show what was asked? By a classifier of the bundled data's classes, or by CLIP."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from stepsampler.errors import UserError
from stepsampler.models import Model
from stepsampler.models.pixels import stills, strips
from stepsampler.support.captions import read_captions
from stepsearch.config.measuring import CLIP, NONE
from stepsearch.metrics.features import Judge, Own
from stepsearch.metrics.pretrained import ClipScore
from stepsearch.paths import bundled

SHEET = 10  # images on a sheet: one of each class of the bundled prompts


@dataclass(frozen=True)
class Prompt:
    """A prompt and, where the data has classes, the class that it asks for."""

    text: str
    label: int | None = None


def load_prompts(source: str, held_out: bool = False) -> list[Prompt]:
    """Bundled prompts by the name of their data, a caption file (`captions.read_captions`), or
    "none": the empty prompt. A file has no held-out part: both calls return all of it.
    """
    if source == NONE:
        return [Prompt("")]
    path = bundled(f"{source}-prompts.json")
    if path.exists():
        data = json.loads(path.read_text(encoding="utf-8"))
        return [Prompt(text, label) for text, label in data["held_out" if held_out else "train"]]
    if not Path(source).exists():
        raise UserError(f"prompts {source!r}: neither bundled nor a file or folder of captions")
    return [Prompt(caption.text) for caption in read_captions(Path(source))]


View = Callable[[torch.Tensor, Sequence[Prompt]], NDArray[np.float32]]


class Alignment(Protocol):
    """How well each image (n, 3, height, width) shows its prompt, float32 (n,) in 0..1."""

    digest: str
    notes: list[str]  # what a user should know of how the prompts are read

    @property
    def views(self) -> Sequence[View]:
        """What is said of images: this first, and last the same without jumps, which changes with
        whatever changes an image."""

    def __call__(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> NDArray[np.float32]: ...


class ClassAlignment:
    """1 where the judge finds the prompted class, else 0."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.judge = Judge(device)
        self.digest, self.notes = self.judge.digest, list[str]()

    @property
    def views(self) -> Sequence[View]:
        return self, self.certainty

    def __call__(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        labels = np.array([prompt.label for prompt in prompts])
        return np.asarray(self.judge(images).numpy() == labels, np.float32)

    def certainty(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """The judge's probability of the prompted class."""
        with torch.inference_mode():
            every = self.judge.live(images).softmax(1).cpu()
        return every[range(len(prompts)), [prompt.label for prompt in prompts]].numpy()


class ClipAlignment:
    """CLIP's cosine of image and prompt, at least 0: a hundredth of the CLIP score."""

    def __init__(
        self,
        source: str,
        prompts: Sequence[Prompt],
        device: str | torch.device = "cpu",
        long_prompts: str = "cut",
    ) -> None:
        self.clip = ClipScore(source, device, long_prompts)
        texts = [prompt.text for prompt in prompts]
        self.digest, self.notes = self.clip.digest_for(texts), self.clip.cuts(texts)

    @property
    def views(self) -> Sequence[View]:
        return (self,)  # which has no jumps, and is asked once

    def __call__(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        scores = self.clip(images, [prompt.text for prompt in prompts])
        return (scores / 100).astype(np.float32)


def load_alignment(
    spec: str,
    prompts: Sequence[Prompt],
    device: str | torch.device = "cpu",
    long_prompts: str = "cut",
) -> Alignment | None:
    """By "classes", which is None where the prompts have none, or "clip:MODEL".

    `long_prompts` of CLIP: "cut" or "chunk" (`ClipScore`).

    Raises:
        UserError: the CLIP model cannot be loaded, or the prompts are classes by number.
    """
    if spec.startswith(CLIP):
        if all(prompt.text.isdigit() for prompt in prompts):
            raise UserError(
                f"alignment {spec!r}: the prompts are numbers, of which CLIP knows none"
            )
        return ClipAlignment(spec.removeprefix(CLIP), prompts, device, long_prompts)
    return ClassAlignment(device) if prompts[0].label is not None else None


def observe(
    batches: Iterable[torch.Tensor],
    extractors: Sequence[Callable[[torch.Tensor], torch.Tensor]],
    judges: Sequence[View],
    prompts: Sequence[Prompt],
    frames: int = 1,
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]], torch.Tensor]:
    """Features under every extractor, what every judge says, and the first images for a sheet.

    Prompts are as many as there are images, at least one. Of
    videos, (n, frames, 3, height, width), each batch has features (n, axes) of the middle frames,
    or with `frames` above 1 (n, frames, axes) of so many (`stills`); alignment is their mean.
    """
    features: list[list[NDArray[np.float32]]] = [[] for _ in extractors]
    judged: list[list[NDArray[np.float32]]] = [[] for _ in judges]
    done, first = 0, None
    for made in batches:
        first = strips(made[:SHEET]) if first is None else first
        n, images = len(made), stills(made, frames).flatten(0, 1) if made.ndim == 5 else made
        for rows, extractor in zip(features, extractors, strict=True):
            if isinstance(extractor, Own):
                texts = [prompt.text for prompt in prompts[done : done + n]]
                extractor.prompts = [text for text in texts for _ in range(frames)]
            found = extractor(images).numpy()
            rows.append(found.reshape(n, frames, -1) if frames > 1 else found)
        asked = [prompt for prompt in prompts[done : done + n] for _ in range(frames)]
        for rows, judge in zip(judged, judges, strict=True):
            rows.append(judge(images, asked).reshape(n, frames).mean(1))
        done += n
    assert first is not None
    whole = [[np.concatenate(rows) for rows in made] for made in (features, judged)]
    return whole[0], whole[1], first


def check_frames(model: Model, frames: int) -> None:
    """Refuse to measure more frames of a video than it has.

    Raises:
        UserError: names both numbers.
    """
    if frames == 1 or (model.videos and model.frames is not None and frames <= model.frames):
        return
    has = f"a video has {model.frames or 'an unknown number of'} frames: give [model] frames"
    raise UserError(
        f"evaluation.video_frames is {frames}, but "
        + (has if model.videos else "the model makes pictures")
    )


def frames_note(frames: int) -> str:
    """What is measured of a video."""
    if frames == 1:
        return "an image is the middle frame of its video"
    return (
        f"of each video {frames} frames are measured, the middles of as many equal parts; the "
        "distance is the mean of theirs"
    )
