"""A denoiser that nobody trained, as the pipeline that a study names: `second.model:pipeline`.

It is diffusers' DiTPipeline with a network of our own and no autoencoder: a prompt is a letter, and
no prompt is the class «none».
"""

from functools import cache

import torch
from diffusers import DDIMScheduler, DiTPipeline, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor

from second.sprites import LETTERS, SIZE, draw
from stepsampler.models.pixels import to_pixels
from stepsampler.noise import NoiseSchedule

COUNT, AXES, BANDWIDTH = 1000, 512, 0.2  # of the posterior's sprites
NONE = len(LETTERS)


class Posterior(ModelMixin, ConfigMixin):
    """E[x0 | x], exact and without training, where x0 is a sprite of `count`, smoothed.

    That is, a draw from a Gaussian around it that has `BANDWIDTH` of the sprites' own spread along
    each of their `AXES` principal axes, shrunk to have their variance (Silverman 1986, 6.4.1). Of a
    class its sprites alone.
    """

    @register_to_config
    def __init__(
        self, count: int = COUNT, sample_size: int = SIZE, in_channels: int = 3, classes: int = NONE
    ) -> None:
        super().__init__()
        self.register_to_config(num_embeds_ada_norm=classes)
        images, labels = draw(count, 0)
        rows = images.flatten(1).float() / 127.5 - 1
        mean = rows.mean(0)
        _, spread, axes = torch.linalg.svd(rows - mean, full_matrices=False)
        axes, spread = axes[:AXES], spread[:AXES] / count**0.5
        shrunk = (1 + BANDWIDTH**2) ** -0.5
        kinds = torch.arange(classes + 1)[:, None]
        absent = (kinds != labels) & (kinds < classes)
        for name, value in {
            "mean": mean,
            "axes": axes,
            "centres": shrunk * ((rows - mean) @ axes.T),
            "variance": (shrunk * BANDWIDTH * spread) ** 2,
            "absent": torch.where(absent, -torch.inf, 0.0),
        }.items():
            self.register_buffer(name, value)
        self.noise = NoiseSchedule.linear()

    def forward(
        self, x: Tensor, time: Tensor, class_labels: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        sigma = x.new_tensor([self.noise.sigma(t) for t in time.tolist()])[:, None]
        place = (x.flatten(1) * (1 + sigma**2).sqrt() - self.mean) @ self.axes.T
        total = self.variance + sigma**2
        near = (place / total) @ self.centres.T - (self.centres**2 @ (1 / total).T).T / 2
        centre = (near + self.absent[class_labels]).softmax(1) @ self.centres
        found = centre + self.variance / total * (place - centre)
        return ((self.mean + found @ self.axes).view_as(x),)

    def draw(self, count: int, seed: int) -> Tensor:
        """What a perfect sampler makes, uint8 (n, 3, height, width), as many of each class."""
        random = torch.Generator().manual_seed(seed)
        pick = torch.randint(len(self.centres), (count,), generator=random)
        pick = pick - pick % NONE + torch.arange(count) % NONE
        noise = torch.randn(count, AXES, generator=random)
        rows = self.mean + (self.centres[pick] + self.variance.sqrt() * noise) @ self.axes
        return to_pixels(rows.view(count, 3, SIZE, SIZE))


class Pixels(ModelMixin, ConfigMixin):
    """The autoencoder of a model that has none."""

    @register_to_config
    def __init__(self, scaling_factor: float = 1.0, block_out_channels: tuple[int] = (1,)) -> None:
        super().__init__()
        self.register_buffer("nothing", torch.zeros(1))

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (latents,)


@cache
def pipeline() -> DiTPipeline:
    """One of a process."""
    scheduler = DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, clip_sample=False, prediction_type="sample"
    )
    return DiTPipeline(Posterior(), Pixels(), scheduler, dict(enumerate(LETTERS)))
