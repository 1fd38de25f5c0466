"""Contenders that are more than a schedule: the judged best of some, and cached features."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from diffusers.hooks import HookRegistry, TaylorSeerCacheConfig, apply_taylorseer_cache
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stepsampler.schedule import Schedule
from stepsearch.compare.contenders import OnSchedule
from stepsearch.metrics.alignment import Prompt
from stepsearch.metrics.features import Judge

DRAWS = 10**12  # between the seeds of two draws: no range of seeds is so long


class Remembering(OnSchedule):
    """What all ask of the network at its highest level is asked once; the images are the same."""

    def batches(self, seeds: range, prompts: list[Prompt], batch_size: int) -> Iterator[Tensor]:
        with self.model.remembering():
            yield from super().batches(seeds, prompts, batch_size)


class BestOf(Remembering):
    """Of `count` images of a seed's prompt that which most probably shows it, says the judge.

    The first is of the seed itself.
    """

    count = 2

    def __init__(self, *made: Any) -> None:
        super().__init__(*made)
        self.judge = Judge()
        self.identity = _digest(f"{self.identity} best of {self.count} {self.judge.digest}")
        self.passes = self.count * self.passes

    @torch.inference_mode()
    def batches(self, seeds: range, prompts: list[Prompt], batch_size: int) -> Iterator[Tensor]:
        draws = [
            super(BestOf, self).batches(
                range(seeds.start + k * DRAWS, seeds.stop + k * DRAWS), prompts, batch_size
            )
            for k in range(self.count)
        ]
        done, passes = 0, self.passes
        for images in zip(*draws, strict=True):
            self.passes = passes  # `OnSchedule` says those of one
            count = len(images[0])
            labels = torch.tensor([prompt.label for prompt in prompts[done : done + count]])
            sure = [self.judge.live(each).softmax(1).gather(1, labels[:, None]) for each in images]
            best = torch.cat(sure, 1).argmax(1)
            yield torch.stack(images)[best, torch.arange(count)]
            done += count


# Of the bundled U-Net, as DeepCache (arXiv 2312.00858) has it: the last block runs, fed by what
# TaylorSeer makes of the block before; what leads there is skipped.
CACHED = [r"up_blocks\.1"]
SKIPPED = [r"up_blocks\.0", "mid_block", r"down_blocks\.[12]\.(resnets|downsamplers)\.\d"]
SKIPPED += [r"down_blocks\.2\.attentions\.0\.(proj_in|proj_out|transformer_blocks\.0)"]
WARM, EVERY = 2, 3  # steps before the cache, and from one whole step to the next


class Seen(OnSchedule):
    """TaylorSeer by diffusers' hooks: its passes are the network's operations, counted.

    `enable_cache` is for transformers; of a U-Net the hooks are put on by name, and the context
    that they ask for is set by hand.
    """

    def __init__(self, *made: Any) -> None:
        super().__init__(*made)
        self.identity = _digest(f"{self.identity} taylorseer {CACHED} {SKIPPED} {WARM} {EVERY}")
        self.passes = passes_of(self.model.nets[0], self.schedule)

    def batches(self, seeds: range, prompts: list[Prompt], batch_size: int) -> Iterator[Tensor]:
        passes = self.passes
        for k in range(0, len(seeds), batch_size):  # each with a memory of its own
            part = seeds[k : k + batch_size], prompts[k : k + batch_size], batch_size
            with cached(self.model.nets[0]):
                yield from super().batches(*part)
            self.passes = passes


@contextmanager
def cached(net: torch.nn.Module) -> Iterator[None]:
    """The U-Net with hooks, for one trajectory."""
    options = {"cache_identifiers": CACHED, "skip_predict_identifiers": SKIPPED}
    options |= {"cache_interval": EVERY, "disable_cache_before_step": WARM}
    options |= {"taylor_factors_dtype": torch.float32}
    apply_taylorseer_cache(net, TaylorSeerCacheConfig(**options))
    try:
        with CacheMixin.cache_context(net, "both"):
            yield
    finally:
        HookRegistry.check_if_exists_or_initialize(net).remove_hook("taylorseer_cache")


@cache
def shares(net: torch.nn.Module, steps: int) -> list[float]:
    """Of the operations of a whole call, for each of so many steps."""
    size, width = net.config.sample_size, net.config.cross_attention_dim
    inputs = (torch.zeros(1, net.config.in_channels, size, size), 0, torch.zeros(1, 1, width))
    found = []
    with torch.no_grad(), cached(net):
        for _ in range(steps):
            with FlopCounterMode(display=False) as counter:
                net(*inputs)
            found.append(counter.get_total_flops())
    return [each / found[0] for each in found]


def passes_of(net: torch.nn.Module, schedule: Schedule) -> float:
    each = shares(net, schedule.num_steps)
    guided = [2 if step.guidance_scale != 1 else 1 for step in schedule.steps]
    return sum(share * count for share, count in zip(each, guided, strict=True))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
