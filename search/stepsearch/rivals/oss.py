"""OSS: the levels at which a first-order student stays nearest to the teacher's states."""

import numpy as np
import torch
from torch import Tensor

from stepsampler.noise import Noise, timesteps_to_sigmas
from stepsampler.sample import Denoiser
from stepsampler.schedule import ModelSpec, Step
from stepsearch.rivals.teacher import TEACHER_STEPS, teacher_states


@torch.inference_mode()
def oss(
    num_steps: int,
    noise: Noise,
    denoise: Denoiser,
    latents: Tensor,
    guidance_scale: float = 1.0,
    teacher_steps: int = TEACHER_STEPS,
    model: ModelSpec | None = None,
) -> list[float]:
    """The num_steps + 1 falling sigmas of Pei et al. 2025 (Optimal Stepsize, algorithm 1).

    Dynamic programming over the student's own states, image by image, then the median over images.
    `latents` is standard normal noise of shape (n, ...). Costs `teacher_steps` * (num_steps + 1)
    calls of the denoiser.
    """
    levels = np.linspace(noise.last, 0, teacher_steps + 1)
    sigmas = timesteps_to_sigmas(noise, levels)
    teacher, _ = teacher_states(denoise, latents, sigmas, guidance_scale, "ddim", 1, model)
    count, last = latents.shape[0], teacher_steps
    error = torch.full((last + 1, count), torch.inf)
    error[0] = 0
    before = torch.zeros((num_steps, last + 1, count), dtype=torch.long)  # where each jump began
    states = teacher.clone()
    reached = torch.zeros(last + 1, dtype=torch.bool)
    reached[0] = True
    for k in range(num_steps):
        best = torch.full((last + 1, count), torch.inf)
        landed = states.clone()
        for i in reached.nonzero().flatten().tolist():
            if i == last:
                continue
            x0 = denoise(states[i], Step(sigmas[i], guidance_scale))
            direction = (states[i] - x0) / sigmas[i]
            for j in range(i + 1, last + 1):
                x = states[i] + (sigmas[j] - sigmas[i]) * direction
                distance = (x - teacher[j]).flatten(1).square().mean(1).cpu()
                better = (distance < best[j]) & error[i].isfinite()
                best[j] = torch.where(better, distance, best[j])
                before[k, j] = torch.where(better, i, before[k, j])
                landed[j][better.to(x.device)] = x[better.to(x.device)]
        error, states, reached = best, landed, best.isfinite().any(1)
    paths = []
    for image in range(count):
        path = [last]
        for k in reversed(range(num_steps)):
            path.append(int(before[k, path[-1], image]))
        paths.append(path[::-1])
    middle = np.median(np.array(paths), axis=0)  # rising, as every path is
    return timesteps_to_sigmas(noise, np.interp(middle, np.arange(last + 1), levels))
