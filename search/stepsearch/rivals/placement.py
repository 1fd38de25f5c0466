"""Published methods that compute a placement for the model at hand, from their papers' formulas."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from stepsampler.errors import UserError
from stepsampler.generate import fitting, seeded_noise
from stepsampler.models import LatentModel, Model
from stepsampler.noise import NoiseSchedule
from stepsampler.schedule import Step
from stepsearch.config.parts import RIVALS
from stepsearch.metrics.evaluator import SEARCH, Evaluator, seeds_of
from stepsearch.paths import read_json, recall, write_whole
from stepsearch.rivals.amed.predictor import Setting
from stepsearch.rivals.amed.training import AVERAGED, bottleneck, new
from stepsearch.rivals.dmn import dmn
from stepsearch.rivals.gits import POINTS, gits
from stepsearch.rivals.hso import hso
from stepsearch.rivals.ld3 import CHECK, ITERATIONS, ld3
from stepsearch.rivals.live import check_gradients
from stepsearch.rivals.oss import oss
from stepsearch.rivals.teacher import TEACHER_STEPS

ANY_MODEL = ("oss", "ld3")  # the others have formulas for variance-preserving models only
IMAGES = {"gits": 32, "oss": 8, "ld3": 32}  # trajectories they learn from; half of LD3's check it
LEARNING = ("ld3", "amed")  # by gradients
TRAJECTORIES = 320  # that AMED learns from; its authors take 10,000 for a predictor
MOST_STEPS = {"gits": POINTS - 1, "oss": TEACHER_STEPS}
PART = 8  # images of LD3 an iteration


@dataclass(frozen=True)
class Placement:
    """The num_steps + 1 falling sigmas of a rival, and what they cost."""

    sigmas: list[float]
    passes: int  # network passes; one backwards counts as two
    seconds: float
    schedule: str | None = None  # JSON of all that the method says, where that is more


def place(
    model: Model,
    prompts: Sequence[str],
    name: str,
    num_steps: int,
    guidance_scale: float,
    batch_size: int,
    negative_prompt: str = "",
) -> Placement:
    """Compute a rival's placement on a model; image k shows prompt k, the prompts repeat.

    Raises:
        UserError: as `suited`, or a method that does not know so many steps.
    """
    model = suited(model, name)
    noise, started = model.noise, time.perf_counter()
    if name == "amed":
        return _amed(model, prompts, num_steps, guidance_scale, batch_size, negative_prompt)
    most = MOST_STEPS.get(name, num_steps)
    if num_steps > most:
        raise UserError(f"{name} takes {most} of its teacher's steps at most, got {num_steps}")
    parts: list[Counting] = []
    if name in IMAGES:
        seeds = list(seeds_of(SEARCH, IMAGES[name]))
        size = min(batch_size, PART) if name == "ld3" else batch_size
        chunks = [seeds[k : k + size] for k in range(0, len(seeds), size)]
        for chunk in chunks:
            texts = [prompts[seed % len(prompts)] for seed in chunk]
            noises = seeded_noise(chunk, model.shape)
            parts.append(Counting(model, texts, negative_prompt, noises))
    if isinstance(noise, NoiseSchedule) and name in ("dmn", "hso"):
        power = 1.0 if model.spec.family == "unconditional" else 2.0  # those are on pixels
        sigmas = (dmn if name == "dmn" else hso)(num_steps, noise, power)
    elif name == "ld3":
        pairs = [(part, part.latents) for part in parts]
        half = len(pairs) // 2
        sigmas = ld3(num_steps, noise, pairs[:half], pairs[half:], guidance_scale, model.spec)
    else:
        latents = torch.cat([part.latents for part in parts])
        together = _Together(parts)
        if isinstance(noise, NoiseSchedule) and name == "gits":
            sigmas = gits(num_steps, noise, together, latents, guidance_scale)
        else:
            sigmas = oss(num_steps, noise, together, latents, guidance_scale, model=model.spec)
    passes = sum(part.passes for part in parts)
    return Placement(sigmas, passes, time.perf_counter() - started)


def suited(model: Model, name: str) -> LatentModel:
    """The model, if the method can be used on it.

    Raises:
        UserError: an unknown method, or one that does not know this kind of model, its dtype, or
            that learns and has no gradients of the network.
    """
    if name not in RIVALS:
        raise UserError(f"the method must be one of {', '.join(RIVALS)}, got {name!r}")
    if not isinstance(model, LatentModel):
        raise UserError(
            f"{name} looks into the network's predictions, which our own loop alone can show: a "
            f"{type(model.pipeline).__name__} samples itself"
        )
    if not isinstance(model.noise, NoiseSchedule) and name not in ANY_MODEL:
        raise UserError(f"{name} is for variance-preserving models only; take oss or ld3")
    if name in LEARNING:
        check_gradients(model, name)
    return model


def _amed(
    model: LatentModel,
    prompts: Sequence[str],
    calls: int,
    guidance_scale: float,
    batch_size: int,
    negative_prompt: str,
) -> Placement:
    """The averages of a predictor: where it calls the network, without where an analytic step lands
    that an odd number of calls begins with."""
    started = time.perf_counter()
    setting = Setting(calls, guidance_scale, bottleneck(model, prompts[0]))
    training = new(model, setting, prompts, negative_prompt)
    for done in range(0, TRAJECTORIES, min(batch_size, TRAJECTORIES)):
        training.learn(range(SEARCH + done, SEARCH + min(done + batch_size, TRAJECTORIES)))
    plan = training.averages(AVERAGED, batch_size)
    sigmas = [plan.sigmas[0], *plan.sigmas[2:]] if setting.afs else list(plan.sigmas)
    seconds = time.perf_counter() - started
    return Placement(sigmas, training.passes, seconds, plan.to_json())


def most_passes(name: str, num_steps: int, batch_size: int) -> int:
    """What `place` costs at most without guidance; with it, twice as many unless it is distilled.

    An iteration of LD3 looks at each step's prediction, and from the second step on also at the
    nudged one, predicts again and goes backwards.
    """
    images = IMAGES.get(name, 0)
    if name == "gits":
        return images * (POINTS - 1)
    if name == "oss":
        return images * TEACHER_STEPS * (num_steps + 1)
    if name == "ld3":
        size = min(batch_size, PART)
        held_out = images - size * (ceil(images / size) // 2)
        looks = 4 + ceil(ITERATIONS / CHECK)  # at three starts, the best of them, and iterates
        learning = ITERATIONS * size * (1 + 5 * (num_steps - 1))
        return images * TEACHER_STEPS + looks * held_out * num_steps + learning
    if name == "amed":
        steps = num_steps + num_steps % 2
        each = num_steps + steps // 2 * (Setting.between + 1 + 3)  # student; teacher, the rest
        return TRAJECTORIES * each + AVERAGED * num_steps
    return 0


def recall_or_place(
    evaluator: Evaluator, name: str, num_steps: int, guidance_scale: float
) -> Placement:
    """A rival's placement on the evaluator's model and prompts, cached beside its measurements.

    Raises:
        UserError: as `place` does.
    """
    path = _path(evaluator, name, num_steps, guidance_scale)
    found = recall(path, lambda p: Placement(**read_json(p)))
    if found is None:
        prompts = [prompt.text for prompt in evaluator.prompts]
        model = evaluator.in_float32() if name in LEARNING else evaluator.model
        # Finite differences and gradients: of one and the same network, and sizes that only
        # come here are not worth compiling.
        negative = evaluator.negative_prompt

        def do(size: int) -> Placement:
            with fitting(model, size):
                return place(model, prompts, name, num_steps, guidance_scale, size, negative)

        with model.uncompiled():
            found = evaluator.fits.fit(do)
        text = json.dumps(asdict(found))
        write_whole(path, lambda p: p.write_text(text))
    return found


def _path(evaluator: Evaluator, name: str, num_steps: int, guidance_scale: float) -> Path:
    key = f"placement-{name}-{num_steps}-{guidance_scale:g}-{evaluator.identity}"
    return evaluator.cache / f"{key}.json"


class Counting:
    """The model on a few prompts, with the noise of their seeds; counts its network passes."""

    def __init__(
        self,
        model: LatentModel,
        texts: Sequence[str],
        negative: str,
        latents: Tensor,
        boundary: float | None = None,
    ) -> None:
        # Clones: what is made in inference mode takes no part in gradients.
        cond, uncond = model.encode(texts), model.encode([negative] * len(texts), negative=True)
        self.denoise = model.denoiser(
            {k: v.clone() for k, v in cond.items()},
            {k: v.clone() for k, v in uncond.items()},
            boundary,
        )
        self.latents, self.passes = latents.to(model.device), 0
        self.doubled = model.guidance != "distilled"

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        each = 2 if step.guidance_scale != 1 and self.doubled else 1
        self.passes += each * len(x)
        x0 = self.denoise(x, step)
        if x0.requires_grad:
            x0.register_hook(lambda _: self._backwards(2 * each * len(x)))  # type: ignore[no-untyped-call]
        return x0

    def _backwards(self, passes: int) -> None:
        self.passes += passes


class _Together:
    """Several of them as one denoiser, so that no network call is larger than a batch."""

    def __init__(self, parts: "Sequence[Counting]") -> None:
        self.parts, self.sizes = parts, [len(part.latents) for part in parts]

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        rows = torch.split(x, self.sizes)
        return torch.cat([part(row, step) for part, row in zip(self.parts, rows, strict=True)])
