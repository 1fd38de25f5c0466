"""Statistics of a model for DPM-Solver-v3, from its own trajectories or from images.

Their definitions (Zheng et al. 2023, arXiv 2310.13268, section 3 and appendix C.1) are means over
the model's own states at each level, of y = x / alpha as in `statistics.solver`:

    l = E[1 - diag(dx0 / dy)]
    s = Cov(f, f') / Var(f),  b = E[f'] - s E[f],    f = (1 - l) y - x0,  f' = df / dlambda

for each entry of a latent. The states are those of trajectories over all levels of the grid, solved
to third order. Along one, y' = x0 - y, and x0' is a difference of the predictions at neighbouring
levels: of fourth order inside, so that each state needs one prediction. For l each `EVERY`th level
has one more, a little way along random signs v, as E[v (J v)] is the diagonal of J (Hutchinson);
the first error of that difference vanishes in the mean over v. Sums are streamed, level by level:
memory is that of sampling a batch, and of the sums.

The authors' states are others: latents of images with noise on them. There a derivative is a
difference of the predictions here and a little way on along the differential equation, by a second
call at each level; its first error is measured.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from stepsampler.errors import NotFiniteError, UserError, note
from stepsampler.generate import fitting, noise_source
from stepsampler.models import LatentModel, Model, model_digest
from stepsampler.sample import Denoiser, trajectory
from stepsampler.schedule import MOST_INTERVALS, Schedule, Step
from stepsampler.statistics.file import Statistics, ends_of
from stepsampler.support.files import replacing
from stepsampler.support.images.folder import Pictures
from stepsampler.support.weights import read_header

EVERY = 4  # levels from one diagonal to the next; between them l is linear
NUDGE = 0.03  # of the difference for a diagonal, in deviations of the state
MOMENTS = ("y", "x", "d", "yy", "yx", "xx", "yd", "xd")  # x is x0, d its derivative
AHEAD = 0.01  # in lambda, of the difference for a derivative at the states of images
LEAST = 1e-12  # variance of f below which s is 0


@dataclass
class Sums:
    """Over the samples so far, float64: `moments` (8, levels, *shape), `diagonal` (knots, *shape).

    `errors` are squares for the measured errors: of x0' and of what it is, of J v and of what it
    is.
    """

    moments: Tensor
    diagonal: Tensor
    errors: Tensor
    done: int = 0

    @classmethod
    def none(cls, levels: int, shape: Sequence[int]) -> "Sums":
        double = torch.float64
        return cls(
            torch.zeros(len(MOMENTS), levels, *shape, dtype=double),
            torch.zeros(len(_knots(levels)), *shape, dtype=double),
            torch.zeros(4, dtype=double),
        )


def _knots(levels: int) -> list[int]:
    return sorted({*range(0, levels, EVERY), levels - 1})


def suited(model: Model) -> LatentModel:
    """The model, of which statistics can be made.

    Raises:
        UserError: a pipeline that samples itself, or another kind of noise (`ends_of`).
    """
    if not isinstance(model, LatentModel):
        raise UserError("statistics are of models that our own loop samples, not of this pipeline")
    ends_of(model.noise)
    return model


def passes(
    guidance_scale: float,
    intervals: int,
    samples: int,
    batch_size: int,
    *,
    distilled: bool = False,
    pictures: bool = False,
) -> int:
    """Network passes that `estimate` takes; a guided call has two, unless that is distilled.

    A call a level, with pictures two, and one more at every fourth; in the first batch the errors
    are measured by another one of those that are for differences.
    """
    levels, knots = intervals + 1, len(_knots(intervals + 1))
    differences = knots + levels * pictures
    each = 1 if distilled or guidance_scale == 1 else 2
    return each * (samples * (levels + differences) + min(samples, batch_size) * differences)


def estimate(
    model: LatentModel,
    prompts: Sequence[str],
    guidance_scale: float,
    intervals: int,
    samples: int,
    out: Path,
    *,
    batch_size: int = 16,
    negative_prompt: str = "",
    pictures: Pictures | None = None,
    additions: Mapping[str, Any] | None = None,
) -> Iterator[int]:
    """Write the statistics to `out`; yield how many samples are done, the first time at the start.

    Sample k has seed k, and prompt and picture k modulo their number. Sums are kept beside `out`
    after each batch: the same call goes on with them. `additions` are as of `batch.run_batch`.

    Raises:
        UserError: a model of another kind or dtype, a VAE without an encoder for pictures, or
            samples that are not finite.
    """
    if model.dtype != torch.float32:
        raise UserError(
            "statistics are differences of predictions: the dtype must be float32, "
            f"got {str(model.dtype).removeprefix('torch.')}"
        )
    if guidance_scale != 1 and not model.conditional:
        raise UserError(
            f"guidance_scale is {guidance_scale:g}, but the model is unconditional: it must be 1"
        )
    if not 4 <= intervals <= MOST_INTERVALS or samples < 2:
        raise UserError(
            f"statistics need 4 to {MOST_INTERVALS:,} intervals and at least 2 samples, got "
            f"{intervals:,} and {samples:,}"
        )
    lambdas = np.linspace(*ends_of(model.noise), intervals + 1)
    sigmas = np.exp(-lambdas).tolist()
    steps = [Step(s, guidance_scale, min(3, i + 1)) for i, s in enumerate(sigmas)]
    steps[-1] = Step(sigmas[-1], guidance_scale)
    plan = Schedule(tuple(steps), 0.0, "exact", model.spec, guidance=model.guidance)
    model.check(plan)
    asked = [plan.to_json(), *prompts, negative_prompt, str(model.shape), str(batch_size)]
    asked += [model_digest(model), json.dumps({**(additions or {}), **model.reading.chosen})]
    if pictures:
        asked += [picture.digest for picture in pictures.found]
    key = hashlib.sha256("\n".join(asked).encode()).hexdigest()
    kept = _beside(out)
    sums = _recalled(kept, key) or Sums.none(len(sigmas), model.shape)
    yield min(sums.done, samples)
    while sums.done < samples:
        seeds = range(sums.done, min(sums.done + batch_size, samples))
        with fitting(model, len(seeds)), torch.inference_mode():
            _add(sums, model, plan, lambdas, seeds, prompts, negative_prompt, pictures)
        if not sums.moments.isfinite().all():
            raise NotFiniteError(f"the samples of the seeds {seeds[0]} to {seeds[-1]} overflow")
        sums.done += len(seeds)
        _keep(sums, kept, key)
        yield sums.done
    found = _statistics(sums, lambdas, guidance_scale, model)
    errors = sums.errors.tolist()
    found.save(
        out,
        {
            "family": model.family,
            "states": "images" if pictures else "trajectories",
            "derivative_error": f"{sqrt(errors[0] / max(errors[1], LEAST)):.2g}",
            "diagonal_error": f"{sqrt(errors[2] / max(errors[3], LEAST)):.2g}",
        },
    )
    kept.unlink(missing_ok=True)


def _add(
    sums: Sums,
    model: LatentModel,
    plan: Schedule,
    lambdas: NDArray[np.float64],
    seeds: range,
    prompts: Sequence[str],
    negative_prompt: str,
    pictures: Pictures | None,
) -> None:
    """What the states of some seeds have."""
    draw = noise_source(seeds, model.shape, model.device)
    noise, signs = draw(), draw().sign()
    guided = plan.steps[0].guidance_scale != 1 and model.guidance != "distilled"
    texts = [prompts[seed % len(prompts)] for seed in seeds]
    with _in_threads(model, texts, [negative_prompt] * len(texts) if guided else None) as denoise:
        if pictures:
            latents = model.latents_of(pictures.pixels(seeds, model.size), draw())
            _around(sums, denoise, plan, latents, noise, signs)
        else:
            _along(sums, denoise, plan, float(lambdas[1] - lambdas[0]), noise, signs)


def _along(
    sums: Sums, denoise: Denoiser, plan: Schedule, width: float, noise: Tensor, signs: Tensor
) -> None:
    """States of trajectories, whose levels are `width` apart in lambda."""
    knots, last = _by_level(plan.num_steps), plan.num_steps - 1
    near: deque[tuple[int, Tensor, Tensor]] = deque(maxlen=5)  # level, state and prediction

    def differ(level: int) -> None:
        """Add up what a level has, once the levels are there that its derivative takes."""
        by = {i: (y, x0) for i, y, x0 in near}
        d, coarse = _slopes({i: x0 for i, (_, x0) in by.items()}, level, last, width)
        _sum(sums, level, *by[level], d, coarse)

    def recording(x: Tensor, step: Step) -> Tensor:
        x0 = denoise(x, step)
        level = near[-1][0] + 1 if near else 0
        near.append((level, x, x0))
        if level in knots:
            _diagonal(sums, knots[level], denoise, x, x0, step, signs)
        if level >= 2:
            differ(level - 2)
        if level == last:
            differ(level - 1)
            differ(level)
        return x0

    for _ in trajectory(recording, noise, plan):
        pass


def _around(
    sums: Sums, denoise: Denoiser, plan: Schedule, latents: Tensor, noise: Tensor, signs: Tensor
) -> None:
    """States of latents with noise on them; in the first batch derivatives by half the way too."""
    knots, last = _by_level(plan.num_steps), plan.num_steps - 1
    for level, step in enumerate(plan.steps):
        y = latents + step.sigma * noise
        x0 = denoise(y, step)

        def slope(way: float, y: Tensor = y, x0: Tensor = x0, step: Step = step) -> Tensor:
            there = replace(step, sigma=step.sigma * exp(-way))
            return (denoise(y + way * (x0 - y), there) - x0) / way

        way = -AHEAD if level == last else AHEAD  # beyond the last level there is no time
        _sum(sums, level, y, x0, slope(way), None if sums.done else slope(way / 2))
        if level in knots:
            _diagonal(sums, knots[level], denoise, y, x0, step, signs)


def _sum(sums: Sums, level: int, y: Tensor, x: Tensor, d: Tensor, other: Tensor | None) -> None:
    """Add up what a level has: states, predictions, derivatives, and these by another length."""
    if other is not None:
        sums.errors[0] += (d - other).square().sum().double().cpu()
        sums.errors[1] += d.square().sum().double().cpu()
    for k, moment in enumerate((y, x, d, y * y, y * x, x * x, y * d, x * d)):
        sums.moments[k, level] += moment.double().sum(0).cpu()


def _by_level(levels: int) -> dict[int, int]:
    return {level: k for k, level in enumerate(_knots(levels))}


@contextmanager
def _in_threads(
    model: LatentModel, prompts: Sequence[str], negative_prompts: Sequence[str] | None
) -> Iterator[Denoiser]:
    """The denoiser of a batch; on a CPU each of torch's threads has a part of the batch.

    For its whole call: threads that share each operation of a small network wait for one another
    most of the time.
    """
    count = min(torch.get_num_threads(), len(prompts)) if model.device.type == "cpu" else 1
    cuts = [len(prompts) * k // count for k in range(count + 1)]
    parts = [slice(*pair) for pair in pairwise(cuts)]
    every = [
        model.denoiser(
            model.encode(prompts[part]),
            None if negative_prompts is None else model.encode(negative_prompts[part], True),
        )
        for part in parts
    ]
    if count == 1:
        yield every[0]
        return

    @torch.inference_mode()  # which is of a thread
    def called(denoise: Denoiser, x: Tensor, step: Step) -> Tensor:
        return denoise(x, step)

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:

            def denoise(x: Tensor, step: Step) -> Tensor:
                shares = [x[part] for part in parts]
                return torch.cat(list(pool.map(called, every, shares, [step] * count)))

            yield denoise
    finally:
        torch.set_num_threads(threads)  # a number given in one thread is that of later threads


def _slopes(x0: Mapping[int, Tensor], i: int, last: int, h: float) -> tuple[Tensor, Tensor | None]:
    """dx0 / dlambda at level i of 0 to `last`, and where there is one the same to a lower order."""
    if i in (0, last):
        a, b, c = (x0[abs(i - k)] for k in range(3))
        return (-3 * a + 4 * b - c) / (2 * h) * (-1 if i else 1), None
    near = (x0[i + 1] - x0[i - 1]) / (2 * h)
    if i in (1, last - 1):
        return near, None
    far = (x0[i + 2] - x0[i - 2]) / (4 * h)
    return (4 * near - far) / 3, near


def _diagonal(
    sums: Sums,
    knot: int,
    denoise: Denoiser,
    y: Tensor,
    x0: Tensor,
    step: Step,
    signs: Tensor,
) -> None:
    """v (J v) by a difference; in the first batch also by one of half the length."""
    length = NUDGE * sqrt(1 + step.sigma**2)

    def along(length: float) -> Tensor:
        return (denoise(y + length * signs, step) - x0) / length

    products = along(length)
    sums.diagonal[knot] += (signs * products).double().sum(0).cpu()
    if not sums.done:
        sums.errors[2] += (products - along(length / 2)).square().sum().double().cpu()
        sums.errors[3] += products.square().sum().double().cpu()


def _statistics(
    sums: Sums, lambdas: NDArray[np.float64], guidance_scale: float, model: LatentModel
) -> Statistics:
    knots, n = _knots(len(lambdas)), sums.done
    kept = (sums.diagonal / n).numpy()  # E[diag J] = 1 - l
    place = np.interp(np.arange(len(lambdas)), knots, np.arange(len(knots)))
    below = np.minimum(place.astype(int), len(knots) - 2)
    share = (place - below)[:, None, None, None]
    a = kept[below] + share * (kept[below + 1] - kept[below])
    slope = np.gradient(a, lambdas, axis=0)
    y, x, d, yy, yx, xx, yd, xd = (sums.moments / n).numpy()
    # f = a y - x and f' = a' y + a (x - y) - d, since dy / dlambda = x - y
    mean, mean_slope = a * y - x, slope * y + a * (x - y) - d
    square = a * a * yy - 2 * a * yx + xx
    product = a * (slope * yy + a * (yx - yy) - yd) - (slope * yx + a * (xx - yx) - xd)
    variance = square - mean**2
    cov = product - mean * mean_slope
    s = np.where(variance > LEAST, cov / np.maximum(variance, LEAST), 0.0)
    ends = float(lambdas[0]), float(lambdas[-1])
    noise = model.spec.noise
    return Statistics(1 - a, s, mean_slope - s * mean, ends, guidance_scale, n, "new", noise)


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.sums.safetensors")


def done_of(out: Path) -> int:
    """Samples that are behind a call of `estimate` under way; 0 after its end."""
    try:
        return int(read_header("sums", str(_beside(out))).metadata["done"])
    except (UserError, LookupError, ValueError):
        return 0


def _keep(sums: Sums, path: Path, key: str) -> None:
    tensors = {"moments": sums.moments, "diagonal": sums.diagonal, "errors": sums.errors}
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, {"key": key, "done": str(sums.done)}))


def _recalled(path: Path, key: str) -> Sums | None:
    """Those of an earlier call with the same settings, if there are any."""
    if not path.is_file():
        return None
    try:
        said = read_header("sums", str(path)).metadata
        if said.get("key") != key:
            return None
        return Sums(**load_file(path), done=int(json.loads(said["done"])))
    except (UserError, SafetensorError, ValueError, LookupError, TypeError) as error:
        note(f"{path} is damaged, what it held is made again ({error})")
        return None
