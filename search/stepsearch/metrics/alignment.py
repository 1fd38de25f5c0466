"""Do images show what was asked? By a classifier of the bundled data's classes, or by CLIP."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from stepsampler.errors import UserError
from stepsearch.config.measuring import CLIP
from stepsearch.metrics.features import Judge
from stepsearch.metrics.pretrained import ClipScore


@dataclass(frozen=True)
class Prompt:
    """A prompt and, where the data has classes, the class that it asks for."""

    text: str
    label: int | None = None


class Alignment(Protocol):
    """How well each image (n, 3, height, width) shows its prompt, float32 (n,) in 0..1."""

    digest: str
    notes: list[str]  # what a user should know of how the prompts are read

    def __call__(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> NDArray[np.float32]: ...


class ClassAlignment:
    """1 where the judge finds the prompted class, else 0."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.judge = Judge(device)
        self.digest, self.notes = self.judge.digest, list[str]()

    def __call__(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        labels = np.array([prompt.label for prompt in prompts])
        return np.asarray(self.judge(images).numpy() == labels, np.float32)


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
