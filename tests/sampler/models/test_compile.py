"""A compiled network is the same function, and steps aside where it must not be trusted."""

import shutil

import pytest
import torch
from pipelines import stable_diffusion

from stepsampler import FreeU, Schedule, Step, UserError
from stepsampler.generate import seeded_noise
from stepsampler.models import from_pipeline
from stepsampler.sample import sample

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles with g++")
SIGMAS = (14.0, 3.0, 0.7)
PLAIN = Schedule(tuple(Step(s, w) for s, w in zip(SIGMAS, (3.0, 2.0, 2.0), strict=True)))
FREE_U = Schedule(tuple(Step(s, free_u=FreeU(1.2, 1.3, 0.9, 0.8)) for s in SIGMAS))


@pytest.fixture
def model():
    torch._dynamo.reset()
    return from_pipeline(stable_diffusion())


def latents(model, schedule):
    denoise = model.denoiser(model.encode(["a fox"] * 2), model.encode([""] * 2, True))
    with torch.inference_mode():
        return sample(denoise, seeded_noise(range(2), model.shape), schedule)


@needs_compiler
def test_a_compiled_network_makes_the_same_latents_and_lets_gradients_through(model):
    plain, free_u = latents(model, PLAIN), latents(model, FREE_U)
    x = seeded_noise(range(2), model.shape)

    def slope():
        live = x.clone().requires_grad_()
        denoise = model.denoiser(model.encode(["a fox"] * 2), None)
        denoise(live, Step(2.0)).square().sum().backward()
        return live.grad

    expected = slope()
    model.compile()
    compiled = latents(model, PLAIN)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 0
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(latents(model, FREE_U), free_u)
    assert torch.equal(slope(), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_a_machine_without_a_compiler_says_so(model, monkeypatch):
    import torch._inductor.config as config

    monkeypatch.setattr(config.cpp, "cxx", ("/nowhere/g++",))
    monkeypatch.setattr(config, "force_disable_caches", True)
    model.compile()
    with pytest.raises(UserError, match="torch cannot compile the network: "):
        latents(model, PLAIN)
