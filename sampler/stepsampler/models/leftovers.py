"""What of a single file found no place in the pipeline, and what of the pipeline the file lacks."""

from collections.abc import Callable
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from stepsampler.errors import UserError, note
from stepsampler.models.parts import listed
from stepsampler.noise import NoiseSchedule, is_edm
from stepsampler.support.weights import Header

UNET, VAE = "model.diffusion_model.", "first_stage_model."
ALPHAS = "alphas_cumprod"  # of training; files in float16 and bfloat16 round them
ROUNDED = 2**-7
# Buffers of training that CompVis' files hold; no network has them
# fmt: off
_BUFFERS = (
    "alphas_", "betas", "denoiser.sigmas", "log_one_minus_", "logvar", "loss.",
    "edm_", "model_ema.decay", "model_ema.num_updates", "posterior_", "sqrt_", "v_pred", "ztsnr",
)
# fmt: on


def check_whole(name: str, pipeline: Any) -> None:
    """Refuse a pipeline whose text encoder the file fills in part only.

    diffusers sees this for the U-Net and the VAE, and leaves a text encoder without its weights.

    Raises:
        UserError: names the weights.
    """
    for part, network in pipeline.components.items():
        if isinstance(network, torch.nn.Module):
            lacks = sorted(k for k, v in network.state_dict().items() if v.is_meta)
            if lacks:
                raise UserError(f"model {name!r}: {part}: {listed('weights', lacks)} missing")


def compare_noise(name: str, header: Header, pipeline: Any) -> None:
    """Say where a file's own levels of noise in training are not those of the scheduler."""
    config = pipeline.scheduler.config
    if ALPHAS not in header.tensors or "beta_schedule" not in config or is_edm(config):
        return
    noise = NoiseSchedule.from_scheduler_config(config)
    ours = torch.tensor(noise.alphas_cumprod, dtype=torch.float64)
    with safe_open(name, framework="pt") as file:
        theirs = file.get_tensor(ALPHAS).double().flatten()
    close: dict[str, Any] = {"rtol": ROUNDED, "atol": 1e-6}  # some schedulers have 2^-24 for 0
    if len(theirs) != len(ours) or not torch.allclose(theirs, ours, **close):
        zero = len(theirs) and float(theirs[-1]) == 0
        note(
            f"model {name!r}: its {ALPHAS} are others than those of the scheduler, whose levels of "
            f"noise count: {_ends(theirs)} in the file, {_ends(ours)} there"
            + ("; --zero-snr takes levels that end in pure noise" if zero else "")
        )


def _ends(alphas: Tensor) -> str:
    ends = [f"{float(alphas[k]):.4g}" for k in (0, -1) if len(alphas)]
    return " ".join([f"{len(alphas)} numbers", *(["from", ends[0], "to", ends[1]] if ends else [])])


def note_left_out(name: str, header: Header, pipeline: Any) -> None:
    """Say which tensors of a file in CompVis' names are not of the pipeline; diffusers drops them.

    Which ones its own converters place is seen on tensors without numbers.
    """
    from diffusers.loaders.single_file_utils import (
        convert_ldm_unet_checkpoint,
        convert_ldm_vae_checkpoint,
    )

    if not hasattr(pipeline, "unet"):
        return
    fake = {
        k: torch.empty(shape, device="meta")
        for k, (_, shape) in header.tensors.items()
        if not k.startswith(_BUFFERS)
    }
    lost = _unplaced(fake, UNET, convert_ldm_unet_checkpoint, pipeline.unet)
    if header.has_vae:
        lost |= _unplaced(fake, VAE, convert_ldm_vae_checkpoint, pipeline.vae)
    lost |= {k for k in fake if not k.startswith((UNET, VAE, "cond_stage_model.", "conditioner."))}
    if lost:
        note(f"model {name!r}: {listed('tensors', sorted(lost))} not of the model, and left out")


def _unplaced(
    fake: dict[str, Tensor], head: str, convert: Callable[..., dict[str, Tensor]], network: Any
) -> set[str]:
    """Names under `head` whose tensors the converter puts nowhere in the network."""
    known = network.state_dict()
    placed = convert(dict(fake), network.config).items()
    kept = {id(v if v._base is None else v._base) for k, v in placed if k in known}
    return {k for k, v in fake.items() if k.startswith(head) and id(v) not in kept}
