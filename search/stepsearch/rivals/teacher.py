"""The teacher's trajectory: what placements that look at the model learn from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stepsampler.grids import from_sigmas
from stepsampler.sample import Denoiser, trajectory
from stepsampler.schedule import ModelSpec, Step

TEACHER_STEPS = 50  # of OSS and LD3; GITS has its own grid


@torch.inference_mode()
def teacher_states(
    denoise: Denoiser,
    noise: Tensor,
    sigmas: Sequence[float],
    guidance_scale: float,
    solver: str,
    order: int,
    model: ModelSpec | None = None,
) -> tuple[Tensor, Tensor]:
    """States at every sigma, (len(sigmas), n, ...), and dx/dsigma at all but the last."""
    directions = []

    def recording(x: Tensor, step: Step) -> Tensor:
        x0 = denoise(x, step)
        directions.append((x - x0) / step.sigma)
        return x0

    *calls, last = sigmas
    schedule = from_sigmas(calls, last, [guidance_scale] * len(calls), order, solver, model)
    states = [noise * sigmas[0], *trajectory(recording, noise, schedule)]
    return torch.stack(states), torch.stack(directions)
