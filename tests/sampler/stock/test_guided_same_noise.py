"""Two images of the same noise look like the two halves of a doubled batch, and are none."""

from dataclasses import replace

import pipelines
import pytest
import torch

from stepsampler import Schedule, Step, UserError
from stepsampler.guided import guided


@pytest.mark.parametrize("scales", [(3.0, 1.0), (1.0, 1.0)])
def test_two_images_of_the_same_noise_are_no_doubled_batch(scales):
    """PixArt does not say whether it guides: unguided, its batch of two looks like two halves."""
    pipe = pipelines.pixart_sigma()
    steps = (Step(10.0), Step(1.0))
    steps = tuple(replace(s, guidance_scale=w) for s, w in zip(steps, scales, strict=True))
    schedule = Schedule(steps, 0.0, "ddim")
    noise = torch.randn(1, 4, 16, 16).repeat(2, 1, 1, 1)
    options = {"num_inference_steps": 2, "latents": noise, "output_type": "latent"}
    options |= {"guidance_scale": 1.0, **pipelines.CALL["pixart-sigma"]}
    with pytest.raises(UserError, match="without an unconditional half"), guided(pipe, schedule):
        pipe(["a", "b"], **options)


def test_two_classes_of_the_same_noise_are_no_doubled_batch_of_dit():
    pipe = pipelines.dit()
    schedule = Schedule((Step(10.0), Step(1.0)), 0.0, "ddim")

    def call(labels, scale):
        generator = [torch.Generator().manual_seed(1) for _ in labels]
        options = {"num_inference_steps": 2, "output_type": "np", "generator": generator}
        return torch.tensor(pipe(labels, guidance_scale=scale, **options).images)

    with guided(pipe, schedule):
        apart = torch.cat([call([label], 4.0) for label in (0, 2)])
        for scale in (1.0, 4.0):
            assert torch.allclose(call([0, 2], scale), apart, atol=1e-3)
