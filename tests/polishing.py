"""A model without a network, whose objective is smooth: what polishes are checked on."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import torch

from stepsampler.generate import noise_source
from stepsampler.grids import from_sigmas
from stepsampler.models import LatentModel
from stepsampler.sample import sample
from stepsearch.metrics.distance import Moments, frechet_distance

AXES = 6
SIGMAS = [9.0, 3.0, 1.1, 0.4]
PLAIN = from_sigmas(SIGMAS, 0.1, [2.0, 1.5, 1.0, 1.0], 2)


class ToyModel(LatentModel):
    shape, guidance, dtype = (1, 2, 3), "classifier-free", torch.float64
    device = torch.device("cpu")
    _encode = _call = None

    def __init__(self):
        self.calls, self.nets = [], []
        self.pipeline = SimpleNamespace(vae=torch.nn.Identity())

    def beginning_alike(self, first):
        return nullcontext()

    def encode(self, texts, negative=False):
        return {"text": torch.full((len(texts), 1), 0.0 if negative else 1.0)}

    def denoiser(self, cond, uncond, boundary=None):
        def denoise(x, step):
            self.calls.append(len(x))
            w = step.guidance_scale
            mixed = torch.tanh(1.5 * x / (1 + step.sigma**2)) / (1 + 0.1 * step.sigma)
            return mixed + 0.2 * (w - 1) * torch.cos(x / (1 + step.sigma))

        return denoise

    def pictures(self, latents):
        return torch.sin(latents) + 0.3 * latents

    def check(self, schedule):
        pass


class ToyExtractor:
    name = "toy"

    def __call__(self, images):
        x = images.flatten(1)
        return x + 0.4 * x.roll(1, 1) ** 2


class ToyReference:
    """Of real images that no schedule meets: its features have a covariance and a mean."""

    def __init__(self):
        rows = np.random.default_rng(3).normal(size=(50, AXES)) @ np.diag([2, 1, 1, 0.5, 0.5, 0.2])
        self.search = Moments.of(rows + 0.5)


class ToyEvaluator:
    negative_prompt, judge, identity = "", None, "toy"

    scales, frames = (), 1

    def __init__(self, cache=None, batch_size=4):
        self.model, self.extractor, self.reference = ToyModel(), ToyExtractor(), ToyReference()
        self.batch_size, self.cache = batch_size, cache

    def prompt(self, seed):
        return SimpleNamespace(text="a", label=None)


def features_of(evaluator, schedule, seeds):
    """Of images that `sample` makes, batch by batch."""
    model, size, found = evaluator.model, evaluator.batch_size, []
    for k in range(0, len(seeds), size):
        draw = noise_source(seeds[k : k + size], model.shape)
        latents = sample(model.denoiser(None, None), draw(), schedule, draw)
        found.append(evaluator.extractor(model.pictures(latents)).double().numpy())
    return np.concatenate(found)


def directly(evaluator, schedule, seeds):
    """log FD of these images."""
    found = features_of(evaluator, schedule, seeds)
    return float(np.log(frechet_distance(found, evaluator.reference.search)))
