"""Flow models with toy networks: kinds of ComfyUI's, and the same under our loop."""

import engine
import torch

from stepsampler.denoiser import GuidedDenoiser
from stepsampler.generate import seeded_noise
from stepsampler.grids import from_sigmas
from stepsampler.noise import FlowSchedule
from stepsampler.presets import MODELS, preset
from stepsampler.sample import sample

SEED, SHAPE = 3, (4, 8, 8)
TOLERANCE = 5e-6


def toy(x, t, context, guidance):
    """A flow that is linear neither in x nor in time; `t` from 0 to 1."""
    strength = context.mean((1, 2)).view(-1, 1, 1, 1)
    scale = 0.1 if guidance is None else guidance.view(-1, 1, 1, 1) / 10
    return torch.tanh(x * (1 + t.view(-1, 1, 1, 1))) + strength * torch.cos(x) + scale * x


FLOWS = {
    "oss-flux-10": ("FLUX", preset("oss-flux-10").schedule),
    "flux": ("FLUX", from_sigmas([1.0, 0.8, 0.55, 0.3], 0.0, [3.5] * 4, 1, "ddim", MODELS["flux"])),
    "sd3": ("FLOW", from_sigmas([1.0, 0.9, 0.75, 0.5], 0.0, [5.0] * 4, 1, "ddim", MODELS["sd3"])),
    "sd3 heun": (
        "FLOW",
        from_sigmas([1.0, 0.9, 0.75, 0.5], 0.0, [5.0] * 4, 2, "heun", MODELS["sd3"]),
    ),
    "sd3 ipndm": (
        "FLOW",
        from_sigmas([1.0, 0.9, 0.75, 0.5, 0.2], 0.0, [5.0] * 5, 4, "ipndm", MODELS["sd3"]),
    ),
}


def sides():
    """Conditions of a prompt and of none."""
    generator = torch.Generator().manual_seed(SEED)
    return [torch.randn(1, 7, 12, generator=generator) for _ in range(2)]


def model(kind):
    per_time = 1000 if kind == "FLOW" else 1  # of what ComfyUI tells SD3 and FLUX
    settings = {"shift": 3.0 if kind == "FLOW" else 1.15}
    return engine.patcher(
        lambda x, t, context, guidance: toy(x, t / per_time, context, guidance),
        kind,
        settings,
        engine.comfy.latent_formats.LatentFormat,
    )


def latents(schedule):
    cond, uncond = sides()

    def network(x, time, condition):
        at = torch.full((len(x),), time / 1000)
        return toy(x, at, condition["context"], condition.get("guidance"))

    denoise = GuidedDenoiser(
        network,
        FlowSchedule(),
        "flow_prediction",
        {"context": cond},
        {"context": uncond},
        schedule.guidance == "distilled",
    )
    return sample(denoise, seeded_noise([SEED], SHAPE), schedule)
