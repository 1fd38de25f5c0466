"""Pairs of noise and better noise (Zhou et al. 2024, arXiv 2411.09502, sections 3.1 and 3.2).

One step down from the first level under the schedule's guidance and back up under less of it leaves
in the noise what the guidance has put there. A pair counts where the image of the second one has
the higher score.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepsampler.generate import fitting, seeded_noise
from stepsampler.models.base import LatentModel
from stepsampler.sample import Denoiser, sample
from stepsampler.schedule import Schedule, Step
from stepsearch.metrics.alignment import Alignment, ClassAlignment, Prompt
from stepsearch.paths import recall, write_whole

CHUNK = 200  # pairs of a file: what a kill loses at most


def better_noise(
    denoise: Denoiser, noise: Tensor, first: Step, second: float, inversion_scale: float
) -> Tensor:
    """Noise (n, *shape) at unit variance -> the same, after a step of DDIM to the level `second`
    under the guidance of `first`, and one back under `inversion_scale`.

    Of a variance-preserving model, in x = x0 + sigma * noise.
    """
    x = noise * first.sigma
    x0 = denoise(x, first)
    x = x0 + second / first.sigma * (x - x0)
    x0 = denoise(x, replace(first, sigma=second, guidance_scale=inversion_scale))
    back = x0 + first.sigma / second * (x - x0)
    return back / first.sigma


@dataclass(frozen=True)
class Pairs:
    """Noise follows from its seed; `better` is of shape (n, *shape), `scores` (n, 2): before and
    after. Pair k has the prompt k modulo their number."""

    seeds: range
    better: Tensor
    scores: Tensor

    @property
    def kept(self) -> list[int]:
        """Those whose second image is the better one."""
        return [k for k, (before, after) in enumerate(self.scores.tolist()) if after > before]


@dataclass(frozen=True)
class Collector:
    """Makes pairs for a model, and scores their images under a schedule."""

    model: LatentModel
    schedule: Schedule
    prompts: Sequence[Prompt]
    judge: Alignment
    inversion_scale: float
    negative_prompt: str = ""
    batch_size: int = 50

    def collect(self, seeds: range, folder: Path, told: Callable[[int], None]) -> Pairs:
        """Make the pairs of these seeds, or recall those that an earlier call has left in `folder`.

        `told` gets how many there are, after each file.

        Raises:
            UserError: a batch does not fit into the device's memory.
            NotFiniteError: an image is not finite.
        """
        parts = []
        for start in range(seeds.start, seeds.stop, CHUNK):
            path = folder / f"pairs-{start:08d}.safetensors"
            part = range(start, min(start + CHUNK, seeds.stop))
            known = recall(path, load_file)
            if known is None or len(known["scores"]) != len(part):
                known = self._made(part)
                write_whole(path, partial(save_file, known))
            parts.append(known)
            told(part.stop - seeds.start)
        better, scores = (torch.cat([part[k] for part in parts]) for k in ("better", "scores"))
        return Pairs(seeds, better, scores)

    def _made(self, seeds: range) -> dict[str, Tensor]:
        batches = [
            range(start, min(start + self.batch_size, seeds.stop))
            for start in range(seeds.start, seeds.stop, self.batch_size)
        ]
        found = [self._batch(batch) for batch in batches]
        return {k: torch.cat([one[k] for one in found]) for k in ("better", "scores")}

    @torch.inference_mode()
    def _batch(self, seeds: range) -> dict[str, Tensor]:
        model, (first, *_) = self.model, self.schedule.steps
        prompts = [self.prompt(seed) for seed in seeds]
        cond = model.encode([prompt.text for prompt in prompts])
        uncond = model.encode([self.negative_prompt] * len(seeds), True)
        with fitting(model, len(seeds)):
            denoise = model.denoiser(cond, uncond)
            noise = seeded_noise(seeds, model.shape).to(model.device)
            second = self.schedule.sigmas[1]
            better = better_noise(denoise, noise, first, second, self.inversion_scale)
            scores = [
                self._scores(model.decode(sample(denoise, start, self.schedule)), prompts)
                for start in (noise, better)
            ]
        return {"better": better.cpu(), "scores": torch.stack(scores, 1)}

    def prompt(self, seed: int) -> Prompt:
        return self.prompts[seed % len(self.prompts)]

    def _scores(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """float32 (n,): of classes the judge's log-probability, as the class alone seldom turns."""
        if isinstance(self.judge, ClassAlignment):
            logs = self.judge.judge.live(images).log_softmax(1).cpu()
            return logs[range(len(prompts)), [prompt.label for prompt in prompts]]
        return torch.from_numpy(self.judge(images, prompts))

    @property
    def identity(self) -> str:
        """What pairs depend on beside the model and the judge, as JSON."""
        bare = replace(self.schedule, provenance={}).to_json()
        texts = [prompt.text for prompt in self.prompts]
        return json.dumps([bare, texts, self.inversion_scale, self.negative_prompt])
