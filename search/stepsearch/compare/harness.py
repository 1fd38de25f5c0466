"""Images of any contender -> features under several extractors, and alignment; cached on disk.

Each quantity has a file of its own, by contender, seeds and metric: a killed evaluation resumes, a
further contender costs what is new, a further extractor the images once more.
"""

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor

from stepsampler.errors import NotFiniteError, UserError
from stepsampler.models import Model
from stepsearch.compare.contenders import Contender
from stepsearch.metrics.alignment import Alignment, Prompt, observe
from stepsearch.metrics.evaluator import Measurement, Metric
from stepsearch.metrics.features import Extractor
from stepsearch.metrics.pretrained import ClipScore
from stepsearch.metrics.protocol import Progress, measure_all
from stepsearch.paths import recall, write_whole

ALIGNED, CLIP = "aligned", "clip"


@dataclass
class Clock:
    """Wall seconds inside each kind of network; `total` is all of `evaluate`, distances too."""

    device: torch.device
    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    total: float = 0.0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def watch(self, model: Model) -> None:
        """Time the denoiser, the VAE's decoder and the text encoders, as far as there are any."""
        parts = [("denoiser", net) for net in model.nets]
        if "vae" in model.pipeline.components:
            parts.append(("VAE", model.pipeline.vae.decoder))
        for name, part in model.pipeline.components.items():
            if name.startswith("text_encoder") and part is not None:
                parts.append((name.replace("_", " "), part))
        for name, part in parts:
            started: list[float] = []
            part.register_forward_pre_hook(lambda *_, s=started: s.append(self.now()))
            part.register_forward_hook(
                lambda *_, s=started, n=name: self._add(n, self.now() - s.pop())
            )

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*inputs: Any) -> Any:
            started = self.now()
            result = call(*inputs)
            self._add(name, self.now() - started)
            return result

        return wrapped

    @property
    def share(self) -> float:
        """Of the total that passed inside networks."""
        return sum(self.spent.values()) / self.total if self.total else float("nan")

    def _add(self, name: str, seconds: float) -> None:
        self.spent[name] += seconds


def _values(path: Path) -> tuple[NDArray[np.float32], float]:
    """A quantity of some images, and the passes that each took."""
    found = load_file(path)
    return found["values"], float(found["passes"][0])


@dataclass
class Harness:
    """Measures contenders; every quantity comes from the same images."""

    metrics: Sequence[Metric]
    prompts: Sequence[Prompt]
    batch_size: int
    cache: Path
    clock: Clock
    judge: Alignment | None = None
    clip: ClipScore | None = None

    @property
    def prompts_digest(self) -> str:
        """Of their content, whatever file they are from."""
        texts = "\n".join(prompt.text for prompt in self.prompts)
        return hashlib.sha256(texts.encode()).hexdigest()[:16]

    def measure(
        self, quantity: str | Metric, jobs: Sequence[tuple[Contender, range]]
    ) -> Iterator[tuple[int, Measurement]]:
        """(place, measurement) of each job; "clip" yields CLIP scores as features (n, 1)."""
        for place, (contender, seeds) in enumerate(jobs):
            keys = self._keys(contender, seeds)
            files = {key: self.cache / f"{key}.safetensors" for key in keys}
            known = {key: recall(file, _values) for key, file in files.items()}
            if None in known.values():
                self._measure(contender, seeds, files)
                known = {key: _values(file) for key, file in files.items()}
            recalled = {key: found for key, found in known.items() if found is not None}
            features, passes = recalled[self._key(quantity, contender, seeds)]
            if contender.passes is None and not np.isnan(passes):
                contender.passes = passes
            unknown = np.full(len(seeds), np.nan, np.float32)
            aligned, _ = recalled.get(self._key(ALIGNED, contender, seeds), (unknown, passes))
            yield place, Measurement(features, aligned)

    def recalls(self, contender: Contender, seeds: range) -> bool:
        """Whether all that is measured of these images is in the cache."""
        keys = self._keys(contender, seeds)
        return all((self.cache / f"{key}.safetensors").exists() for key in keys)

    def finite(
        self, contenders: Sequence[Contender], seeds: range, progress: Progress
    ) -> tuple[list[Contender], list[str]]:
        """Measure all; return those that can be scored, and a sentence for each other one.

        Raises:
            UserError: none can.
        """
        found, others = [], []
        for i, contender in enumerate(contenders):

            def tell(done: int, total: int, before: int = i) -> None:
                progress(before * total + done, len(contenders) * total)

            try:
                for metric in self.metrics:
                    measure = partial(self.measure, metric)
                    (whole,) = measure_all([contender], seeds, self.batch_size, measure, tell)
                    if not whole.finite:
                        raise NotFiniteError(
                            f"{contender.name}: a feature is not finite: its images are broken"
                        )
            except NotFiniteError as error:
                others.append(str(error))
            else:
                found.append(contender)
        if others and not found:
            raise UserError("; ".join(others))
        return found, others

    def _quantities(self, contender: Contender) -> list[str | Metric]:
        found: list[str | Metric] = list(self.metrics)
        if self.judge and contender.prompted:
            found.append(ALIGNED)
        if self.clip and contender.captioned:
            found.append(CLIP)
        return found

    def _keys(self, contender: Contender, seeds: range) -> list[str]:
        return [self._key(q, contender, seeds) for q in self._quantities(contender)]

    def _measure(self, contender: Contender, seeds: range, files: dict[str, Path]) -> None:
        prompts = [self.prompts[seed % len(self.prompts)] for seed in seeds]
        scores: list[NDArray[np.float32]] = []
        clock, clip = self.clock, self.clip
        texts = contender.texts(seeds, prompts) if contender.captioned else []

        def batches() -> Iterator[Tensor]:
            done = 0
            for images in contender.batches(seeds, prompts, self.batch_size):
                if clip and texts:
                    prepared = clip.prepare(images, texts[done : done + len(images)])
                    scores.append(clock.timed("CLIP score", clip.score)(*prepared))
                done += len(images)
                yield images

        def timed(extractor: Extractor) -> Callable[[Tensor], Tensor]:
            """Its network alone: resizing on the CPU is none."""
            network = clock.timed("extractor", extractor.features)
            return lambda images: network(extractor.prepare(images))

        judges = [clock.timed("judge", self.judge)] if self.judge and contender.prompted else []
        extractors = [timed(metric.extractor) for metric in self.metrics]
        try:
            features, judged, _ = observe(batches(), extractors, judges, prompts)
        except NotFiniteError as error:
            raise NotFiniteError(f"{contender.name}: {error}") from error
        values: dict[str | Metric, NDArray[np.float32]] = {
            ALIGNED: judged[0] if judged else np.full(len(prompts), np.nan, np.float32)
        }
        for metric, rows in zip(self.metrics, features, strict=True):
            if len(rows) != len(seeds):
                raise UserError(f"{contender.name}: {len(rows)} images, wanted were {len(seeds)}")
            values[metric] = metric.reference.project(rows).astype(np.float32)
        if scores:
            values[CLIP] = np.concatenate(scores)[:, None]
        for quantity in self._quantities(contender):
            passes = np.nan if contender.passes is None else contender.passes
            tensors = {
                "values": np.ascontiguousarray(values[quantity]),
                "passes": np.array([passes]),
            }
            path = files[self._key(quantity, contender, seeds)]
            write_whole(path, lambda p, tensors=tensors: save_file(tensors, p))  # type: ignore[misc]

    def shown(self, contender: Contender, seeds: range) -> list[str]:
        """What the images of these seeds are to show, for a contender of which that is known."""
        return contender.texts(seeds, [self.prompts[seed % len(self.prompts)] for seed in seeds])

    def clip_digest(self, contender: Contender, seeds: range) -> str:
        """Of CLIP scores of these images."""
        return self.clip.digest_for(self.shown(contender, seeds)) if self.clip else ""

    def _key(self, quantity: str | Metric, contender: Contender, seeds: range) -> str:
        if isinstance(quantity, Metric):
            what = quantity.identity
        else:
            what = f"{quantity} {self.judge.digest if self.judge else ''}"
        texts = [prompt.text for prompt in self.prompts] if contender.prompted else []
        if quantity == CLIP:
            texts = texts or contender.texts(seeds, [])
            what = f"{quantity} {self.clip_digest(contender, seeds)}"
        prompts = "\n".join(texts)
        text = "\n".join(
            [contender.identity, f"{seeds.start} {seeds.stop}", str(self.batch_size), what, prompts]
        )
        return hashlib.sha256(text.encode()).hexdigest()[:24]
