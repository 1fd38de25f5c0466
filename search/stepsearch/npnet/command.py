"""One call of `stepsearch train-npnet`: pairs, training, and the file of the network."""

import hashlib
import json
import sys
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from stepsampler.errors import UserError
from stepsampler.generate import seeded_noise
from stepsampler.models import open_model
from stepsampler.models.base import LatentModel
from stepsampler.npnet.files import digest_of, read_npnet, write_npnet
from stepsampler.npnet.network import Layout, NPNet, Swin
from stepsampler.presets import open_schedule
from stepsampler.schedule import Schedule
from stepsampler.support.options import ModelOptions
from stepsampler.support.weights import SUFFIX
from stepsearch.metrics.alignment import Alignment, Prompt, load_alignment, load_prompts
from stepsearch.metrics.evaluator import (
    SEARCH,
    additions_digest,
    check_negative_prompt,
    model_digest,
    seeds_of,
)
from stepsearch.npnet.pairs import Collector, Pairs
from stepsearch.npnet.training import Epoch, Settings, Trainer

# Of latents that are smaller than those of Stable Diffusion, for which Swin-T is far too large
SMALL = Swin(32, 2, 4, 48, (2, 2), (3, 6))
SMALLEST_LARGE = 64
FEWEST = 20  # kept pairs


@dataclass(frozen=True)
class Asked:
    """The options of the command, less those of the model and of training."""

    schedule: Path
    out: Path
    pairs: int
    inversion_scale: float
    score: str
    prompts: str
    negative_prompt: str
    start: Path | None
    batch_size: int
    cache: Path
    device: str


def train(asked: Asked, options: ModelOptions, settings: Settings) -> None:
    """Say what it costs, collect, train, and write the file.

    Raises:
        UserError: what the schedule, the model and the options refuse; too few pairs are kept.
    """
    if asked.out.suffix != SUFFIX:
        raise UserError(f"--out must name a {SUFFIX} file, got {str(asked.out)!r}")
    numbers = {"--inversion-scale": asked.inversion_scale, "--rate": settings.rate}
    for name, value in numbers.items():
        if not isfinite(value):
            raise UserError(f"{name} must be finite, got {value}")
    plan = replace(open_schedule(asked.schedule), golden_noise=None)
    model = open_model(options, asked.device)
    _check(model, plan, asked)
    assert isinstance(model, LatentModel)
    prompts = load_prompts(asked.prompts)
    judge = load_alignment(asked.score, prompts, asked.device)
    if judge is None:
        raise UserError(
            f"--score {asked.score}: the prompts of {asked.prompts!r} have no classes that a judge "
            "could find; --score clip:MODEL judges any"
        )
    network = _network(model, prompts, asked.start)
    collector = Collector(
        model, plan, prompts, judge, asked.inversion_scale, asked.negative_prompt, asked.batch_size
    )
    additions = additions_digest(
        model, options.loras, options.textual_inversions, asked.negative_prompt
    )
    folder = asked.cache / _key(collector, model, judge, additions)
    width = None if sys.stdout.isatty() else 110
    # names of files are as they are: no markup
    console = Console(soft_wrap=True, width=width, highlight=False, markup=False, emoji=False)
    each = 2 * plan.passes + _pair_passes(plan, asked.inversion_scale)
    console.print(
        f"{asked.pairs:,} pairs of {each} passes, {each * asked.pairs:,} network passes; then "
        f"{settings.epochs} epochs of {_millions(network)} million parameters; kept in {folder}"
    )
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("collecting pairs", total=asked.pairs)
        pairs = collector.collect(
            seeds_of(SEARCH, asked.pairs), folder, lambda n: progress.update(task, completed=n)
        )
        if len(pairs.kept) < FEWEST:
            raise UserError(
                f"--pairs: the score rose in {len(pairs.kept)} of {asked.pairs}, and at least "
                f"{FEWEST} must be kept; give more"
            )
        rose = f"the score rose in {len(pairs.kept):,} of {asked.pairs:,} pairs, which are kept"
        progress.console.print(rose)
        task = progress.add_task("training", total=settings.epochs)

        def show(epoch: Epoch) -> None:
            progress.update(task, completed=epoch.done)
            progress.console.print(
                f"epoch {epoch.done:3d}: squared error {epoch.training:.5f}, held out "
                f"{epoch.held_out:.5f} (noise as it was {epoch.still:.5f})"
            )

        said = json.dumps([vars(settings), asked.pairs, _started(asked.start)])
        state = hashlib.sha256(said.encode()).hexdigest()[:8]
        trainer = _trainer(network.to(model.device), model, collector, pairs, settings)
        error = trainer.run(folder / f"state-{state}{SUFFIX}", show)
        if not isfinite(error):
            raise UserError(f"--rate {settings.rate:g}: no epoch ended with finite weights")
    told = {
        "model": json.dumps(model.spec.__dict__),
        "training": json.dumps(
            {
                "pairs": asked.pairs,
                "kept": len(pairs.kept),
                "inversion_scale": asked.inversion_scale,
                "score": asked.score,
                "schedule": json.loads(plan.to_json()),
                "held_out_error": error,
                **vars(settings),
            }
        ),
    }
    write_npnet(asked.out, network.cpu(), told)
    console.print(f"{asked.out}: {digest_of(asked.out)}, held-out error {error:.5f}")


def _check(model: object, plan: Schedule, asked: Asked) -> None:
    if not isinstance(model, LatentModel):
        raise UserError("an NPNet is trained for a model that our own loop samples")
    model.check(plan)
    check_negative_prompt(model, asked.negative_prompt)
    if plan.flow or plan.steps[0].analytic is not None or plan.steps[0].sigma > 1000:
        raise UserError(
            f"{asked.schedule}: the first step must call the network, at a finite level of a "
            "variance-preserving model"
        )
    if any(step.churn for step in plan.steps):
        raise UserError(f"{asked.schedule}: churn would blur what the noise decides")
    if plan.sigmas[1] == 0:
        raise UserError(f"{asked.schedule}: a schedule of one step has no second level")
    if plan.steps[0].guidance_scale == asked.inversion_scale:
        raise UserError(
            f"--inversion-scale must differ from the first step's {asked.inversion_scale:g}: "
            "the noise would come back as it was"
        )


def _network(model: LatentModel, prompts: list[Prompt], start: Path | None) -> NPNet:
    states = model.encode([prompts[0].text]).get("encoder_hidden_states")
    if states is None or states.ndim != 3:
        raise UserError("an NPNet is for models whose network reads a text")
    channels, side, _ = model.shape
    if start is not None:
        network = read_npnet(start).train().requires_grad_(True)
    else:
        swin = SMALL if side < SMALLEST_LARGE else Swin()
        torch.manual_seed(0)
        network = NPNet(Layout(side, states.shape[1], states.shape[2], channels, swin))
    reason = network.layout.refusal(model.shape, tuple(states.shape[1:]))
    if reason:
        raise UserError(f"{f'--start {start}' if start else 'the NPNet'} does not fit: {reason}")
    return network


def _trainer(
    network: NPNet, model: LatentModel, collector: Collector, pairs: Pairs, settings: Settings
) -> Trainer:
    kept = pairs.kept
    seeds = [pairs.seeds[k] for k in kept]
    noise = seeded_noise(seeds, model.shape)
    texts = [collector.prompt(seed).text for seed in seeds]
    places = {text: k for k, text in enumerate(dict.fromkeys(texts))}
    states = model.encode(list(places))["encoder_hidden_states"].float().clone()
    at = torch.tensor([places[text] for text in texts])

    def here(x: Tensor) -> Tensor:
        return x.to(model.device)

    chosen = here(noise), here(pairs.better[kept])
    return Trainer(network, chosen, here(states), here(at), settings)


def _key(collector: Collector, model: LatentModel, judge: Alignment, additions: list[str]) -> str:
    parts = [collector.identity, model_digest(model), judge.digest, str(model.shape), *additions]
    return hashlib.sha256("\n".join([*parts, str(collector.batch_size)]).encode()).hexdigest()[:16]


def _pair_passes(plan: Schedule, inversion_scale: float) -> int:
    first = plan.steps[0]
    first = replace(first, repeats=0)
    return sum(map(plan.passes_of, (first, replace(first, guidance_scale=inversion_scale))))


def _started(start: Path | None) -> str:
    return "" if start is None else digest_of(start)


def _millions(network: NPNet) -> str:
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f}"
