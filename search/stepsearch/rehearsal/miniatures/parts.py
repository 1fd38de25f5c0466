"""What the miniatures are made of, beside networks and texts."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch


def fresh(build: Callable[..., Any]) -> Callable[..., Any]:
    """Call `build` once per arguments and hand out copies of what it made."""

    @functools.cache
    def cached(*args: Any, **options: Any) -> Any:
        state = torch.get_rng_state()
        torch.manual_seed(0)
        pipeline = build(*args, **options)
        torch.set_rng_state(state)
        pipeline.set_progress_bar_config(disable=True)
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        return pipeline

    @functools.wraps(build)
    def builder(*args: Any, **options: Any) -> Any:
        return copy.deepcopy(cached(*args, **options))

    return builder


def autoencoder(blocks: int = 2, **options: Any) -> Any:
    """Images twice as wide as their latents, or 2 ** (blocks - 1) times."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        norm_num_groups=4,
        sample_size=32,
        **options,
    )


def spread(transformer: Any, gain: float = 1.0) -> None:
    """Random weights where transformers start at zero, so that conditions show in the output.

    With a `gain` of all weights also those show that are a few words of a long text.
    """
    for parameter in transformer.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
        parameter.data *= gain
