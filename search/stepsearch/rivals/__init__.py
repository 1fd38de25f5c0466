"""Published methods that compute a placement for the model at hand, from their papers' formulas."""

import json

import torch

from stepsampler.errors import UserError
from stepsampler.generate import seeded_noise
from stepsampler.noise import NoiseSchedule
from stepsearch.evaluate import SEARCH, Evaluator, seeds_of
from stepsearch.paths import write_whole
from stepsearch.rivals.dmn import dmn
from stepsearch.rivals.gits import gits
from stepsearch.rivals.oss import oss

IMAGES = {"gits": 32, "oss": 8}  # trajectories they learn from


@torch.inference_mode()
def placement(
    evaluator: Evaluator, name: str, num_steps: int, guidance_scale: float
) -> list[float]:
    """The num_steps + 1 falling sigmas of a rival on the evaluator's model, or recall them.

    Raises:
        UserError: the method does not know this kind of model.
    """
    model = evaluator.model
    if not isinstance(model.noise, NoiseSchedule):
        raise UserError(f"baselines.rivals: {name} is for variance-preserving models only")
    key = f"{name}-{num_steps}-{guidance_scale:g}-{evaluator.identity}"
    path = evaluator.cache / f"{key}.json"
    if not path.exists():
        if name == "dmn":
            sigmas = dmn(num_steps, model.noise)
        else:
            seeds = seeds_of(SEARCH, IMAGES[name])
            latents = seeded_noise(seeds, model.shape).to(model.device)
            cond = model.encode([evaluator.prompt(seed).text for seed in seeds])
            uncond = model.encode([""] * len(seeds), negative=True)
            method = gits if name == "gits" else oss
            denoise = model.denoiser(cond, uncond)
            sigmas = method(num_steps, model.noise, denoise, latents, guidance_scale)
        write_whole(path, lambda p: p.write_text(json.dumps(sigmas)))
    return [float(sigma) for sigma in json.loads(path.read_text())]
