"""The objective of a search with its gradient: how good is a schedule, and which way is better.

Two passes over the images. First all of them are made as ever, and their features give mean and
covariance, and with these the gradient of the distance with respect to each image's features.
Then, batch by batch, that is pulled back through extractor, decoder, network and solver. So of one
batch, and of that one network call, memory holds what a gradient needs; of all images it holds the
features, and the network's predictions, so that they are not made again. Of a large network a call
keeps the inputs of its blocks alone, which are then computed again (diffusers' gradient
checkpointing).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepsampler.errors import NotFiniteError, UserError
from stepsampler.generate import BatchSize, fitting, noise_source
from stepsampler.models import LatentModel, Model
from stepsampler.sample import Denoiser, execute
from stepsampler.schedule import Step
from stepsampler.solvers import Row
from stepsearch.config.measuring import EvaluationConfig
from stepsearch.metrics.alignment import ClassAlignment
from stepsearch.metrics.distance import Moments
from stepsearch.metrics.evaluator import Evaluator
from stepsearch.metrics.features import EXTRACTORS, WHOLE, Extractor, Live, Together, each
from stepsearch.polish.knobs import Knobs
from stepsearch.rivals.live import Following, LiveTableau, check_networks
from stepsearch.rivals.placement import Counting

# Of a sigma. Networks answer to the time roughly from timestep to timestep; over this much their
# slope is that of the objective over steps as large as those of a polish.
NUDGE = 0.03
PIECES = 4  # of a batch, whose gradients are taken in turn: one keeps several times a call's memory
LARGE = 10**7  # parameters: a call of Stable Diffusion's U-Net would keep 8 GiB for one image
PENALTY = 1.0  # a hundredth of alignment is worth a hundredth of FD


@dataclass(frozen=True)
class Look:
    """The objective at some parameters on some seeds, and its gradient."""

    value: float
    gradient: Tensor  # (parameters,)
    distance: float  # geometric mean of FD over the extractors
    aligned: float  # mean probability that an image shows its class; NaN if nothing judges it
    passes: int


class Objective:
    """log FD, its mean over the extractors, plus `penalty` times the share not aligned.

    Alignment counts where the judge of the bundled classes says it; other judges have no gradient.

    Raises:
        UserError: nothing that a gradient flows through (`check_gradients`).
    """

    def __init__(self, evaluator: Evaluator, penalty: float = PENALTY) -> None:
        check_gradients(evaluator)
        self.evaluator, self.penalty = evaluator, penalty
        self.model: LatentModel = evaluator.in_float32()  # type: ignore[assignment]
        self.extractors = _live(evaluator.extractor)
        self.references = evaluator.reference.parts or (evaluator.reference,)
        judge = evaluator.judge
        self.judge = judge.judge if isinstance(judge, ClassAlignment) else None
        size = -(-evaluator.batch_size // PIECES)
        self.pieces = BatchSize(size, lambda _: None)  # halved for good where memory runs out

    def __call__(
        self, knobs: Knobs, parameters: Tensor, seeds: range, pulled: int | None = None
    ) -> Look:
        """Value with n = len(seeds) images, and the gradient of it by the first `pulled` of them.

        That is all of them if not said; of fewer it is an estimate of the same gradient.

        Raises:
            NotFiniteError: the images are not finite.
        """
        size, count = self.evaluator.batch_size, pulled or len(seeds)
        first, others = (_batches(self, knobs, s, size) for s in (seeds[:count], seeds[count:]))
        tableau = LiveTableau(knobs.schedule, parameters)
        leaf = parameters.detach().clone().requires_grad_()
        with self.model.uncompiled():
            seen = torch.cat([batch.first(tableau.rows) for batch in first])
            values = [batch.first(tableau.rows, keep=False) for batch in others]
            seen = torch.cat([seen, *values])
            if not seen.isfinite().all():
                raise NotFiniteError("the images of the polish are not finite")
            value, distance, share, pull = self._value(seen)
            found, passes = torch.zeros_like(leaf), sum(b.passes for b in (*first, *others))
            pull = pull[:count] * (len(seeds) / count)
            with recomputing(self.model):
                for batch, part in zip(first, torch.split(pull, size), strict=True):

                    def pull_back(n: int, batch: _Batch = batch, part: Tensor = part) -> _Pulled:
                        return batch.pulled(tableau, leaf, part, n)

                    gradient, more = self.pieces.fit(pull_back)
                    found, passes = found + gradient, passes + more
        return Look(value, found, distance, share, passes)

    def see(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """What the objective is made of, (n, features of all extractors, and a probability)."""
        columns = [extractor.live(images).double() for extractor in self.extractors]
        if self.judge is not None and labels is not None:
            shown = self.judge.live(images).double().softmax(1)
            columns.append(shown.gather(1, labels.to(shown.device)[:, None]))
        return torch.cat(columns, 1)

    def _value(self, seen: Tensor) -> tuple[float, float, float, Tensor]:
        """The objective, FD, alignment, and the gradient of the first with respect to `seen`."""
        widths = [reference.width for reference in self.references]
        *columns, rest = torch.split(seen, [*widths, seen.shape[1] - sum(widths)], 1)
        logs, pulls = [], []
        for reference, x in zip(self.references, columns, strict=True):
            found, gradient = log_frechet(reference.project(x.numpy()), reference.search)
            if reference.basis is not None:
                gradient = gradient @ reference.basis.T
            logs.append(found)
            pulls.append(torch.from_numpy(gradient) / len(self.references))
        value = float(np.mean(logs))
        share, penalty = float("nan"), 0.0
        if rest.shape[1]:
            share = float(rest.mean())
            penalty = self.penalty * (1 - share)
            pulls.append(torch.full_like(rest, -self.penalty / len(rest)))
        return value + penalty, float(np.exp(value)), share, torch.cat(pulls, 1)


def check_gradients(evaluator: Evaluator) -> None:
    """Refuse what no gradient flows through.

    Raises:
        UserError: an extractor without gradients, and what `check_sampling` refuses.
    """
    check_sampling(evaluator.model, evaluator.frames)
    _live(evaluator.extractor)


def check_sampling(model: Model, frames: int) -> None:
    """Refuse a model or frames of its videos that no gradient flows through.

    Raises:
        UserError: a pipeline that samples itself, frames of videos, and what `check_networks` says.
    """
    name = type(model.pipeline).__name__
    if not isinstance(model, LatentModel):
        raise UserError(f"a {name} samples itself, and no gradient flows through it")
    if frames > 1:
        raise UserError(
            f"a gradient sees the middle frame of a video, and evaluation.video_frames is {frames}"
        )
    check_networks(model)


def without_gradients(options: EvaluationConfig) -> str | None:
    """A sentence if what a study measures by has none, as far as its name tells."""
    if options.metric is not None:
        return _none_of(f"evaluation.metric {options.metric}")
    for name in each(options.extractor):
        if not hasattr(EXTRACTORS.get(name.removesuffix(WHOLE)), "live"):
            return _none_of(name)
    return None


def _none_of(name: str) -> str:
    known = ", ".join(name for name, kind in EXTRACTORS.items() if hasattr(kind, "live"))
    return f"{known} have gradients, {name} has none here"


@contextmanager
def recomputing(model: LatentModel) -> Iterator[None]:
    """The model's large networks keep less for a gradient, and compute it again."""
    with ExitStack() as after:
        for net in (*model.nets, model.pipeline.vae):
            large = sum(weights.numel() for weights in net.parameters()) >= LARGE
            able = getattr(net, "_supports_gradient_checkpointing", False)
            if large and able and not net.is_gradient_checkpointing:
                net.enable_gradient_checkpointing()
                after.callback(net.disable_gradient_checkpointing)
        yield


def _batches(objective: Objective, knobs: Knobs, seeds: range, size: int) -> list["_Batch"]:
    return [_Batch(objective, knobs, seeds[k : k + size]) for k in range(0, len(seeds), size)]


_Pulled = tuple[Tensor, int]


class _Batch:
    """The images of some seeds, which are made twice."""

    def __init__(self, objective: Objective, knobs: Knobs, seeds: range) -> None:
        self.objective, self.seeds = objective, seeds
        self.knobs = knobs
        self.known: list[Tensor] = []
        self.passes = 0

    @torch.no_grad()
    def first(self, rows: Sequence[Row], keep: bool = True) -> Tensor:
        """What is seen of them; the predictions are kept for a gradient."""

        def recorded(x: Tensor, step: Step) -> Tensor:
            x0 = counting(x, step)
            if keep:
                self.known.append(x0.cpu())
            return x0

        counting = self._counting()
        with fitting(self.objective.model, len(self.seeds)):
            seen = self._seen(rows, recorded)
        self.passes += counting.passes
        return seen.cpu()

    def pulled(self, tableau: LiveTableau, leaf: Tensor, gradient: Tensor, size: int) -> _Pulled:
        """The gradient for what the tableau's numbers follow from, `size` images at a time.

        `gradient` is that for what was seen; the second value is the passes that it took.
        """
        found, passes = torch.zeros_like(leaf), 0
        for k in range(0, len(self.seeds), size):
            piece = _Batch(self.objective, self.knobs, self.seeds[k : k + size])
            piece.known = [x0[k : k + size] for x0 in self.known]
            found += piece._pull(tableau.at(leaf), leaf, gradient[k : k + size])
            passes += piece.passes
        return found, passes

    @torch.enable_grad()
    def _pull(self, rows: Sequence[Row], leaf: Tensor, gradient: Tensor) -> Tensor:
        counting = self._counting()
        with fitting(self.objective.model, len(self.seeds)):
            seen = self._seen(rows, Following(counting, self.known, NUDGE))
            found = torch.zeros_like(leaf)
            if seen.requires_grad:
                whole = (seen * gradient.to(seen.device)).sum()
                (found,) = torch.autograd.grad(whole, leaf)
        self.passes += counting.passes
        return found

    def _counting(self) -> Counting:
        evaluator, model = self.objective.evaluator, self.objective.model
        texts = [evaluator.prompt(seed).text for seed in self.seeds]
        self.draw = noise_source(self.seeds, model.shape, model.device)
        start = self.knobs.start
        noise = model.first_noise(self.draw(), model.encode(texts), start).clone()
        counting = Counting(model, texts, evaluator.negative_prompt, noise, start.boundary)
        self.latents = counting.latents
        return counting

    def _seen(self, rows: Sequence[Row], denoise: Denoiser) -> Tensor:
        objective, sigma = self.objective, self.knobs.start.steps[0].sigma
        *_, latents = execute(denoise, self.latents * sigma, rows, self.draw)
        prompts = [objective.evaluator.prompt(seed) for seed in self.seeds]
        labels = [prompt.label for prompt in prompts if prompt.label is not None]
        known = torch.tensor(labels) if len(labels) == len(prompts) else None
        return objective.see(objective.model.live_images(latents), known)


def log_frechet(
    features: NDArray[np.floating], reference: Moments
) -> tuple[float, NDArray[np.float64]]:
    """log FD of features (n, d), n >= 2, and its gradient with respect to each of them.

    With the centred features Y / sqrt(n - 1) = Z and L L' the reference's covariance, the trace of
    the root is the nuclear norm of Z L; the gradient of that is the orthogonal factor of the polar
    decomposition.
    """
    x = np.asarray(features, np.float64)
    n = len(x)
    mean, root = x.mean(0), np.sqrt(n - 1)
    centred, shift = (x - mean) / root, mean - reference.mean
    left, values, right = np.linalg.svd(centred @ reference.factor, full_matrices=False)
    kept = values > 1e-10 * values[:1]
    polar = (left * kept) @ right
    distance = shift @ shift + (centred**2).sum() + np.trace(reference.cov) - 2 * values.sum()
    spread = 2 * (centred - polar @ reference.factor.T) / root
    gradient = spread - spread.mean(0) + 2 * shift / n
    return float(np.log(distance)), gradient / distance


def _live(extractor: Extractor) -> list[Live]:
    parts = extractor.parts if isinstance(extractor, Together) else [extractor]
    found: list[Live] = []
    for part in parts:
        if not isinstance(part, Live):
            raise UserError(_none_of(part.name))
        found.append(part)
    return found
