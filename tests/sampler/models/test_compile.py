"""A compiled network is the same function, and steps aside where it must not be trusted."""

import shutil
from dataclasses import replace

import pytest
import torch
from pipelines import stable_diffusion

from stepsampler import FreeU, Schedule, Step, UserError
from stepsampler.generate import generate, seeded_noise
from stepsampler.models import from_pipeline
from stepsampler.sample import sample

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles with g++")
SIGMAS = (14.0, 3.0, 0.7)
PLAIN = Schedule(tuple(Step(s, w) for s, w in zip(SIGMAS, (3.0, 2.0, 2.0), strict=True)))
FREE_U = Schedule(tuple(Step(s, free_u=FreeU(1.2, 1.3, 0.9, 0.8)) for s in SIGMAS))


@pytest.fixture
def model():
    """Its U-Net has one block down and one up, and no middle: a compiler takes its time."""
    from diffusers import UNet2DConditionModel

    torch._dynamo.reset()
    torch.manual_seed(0)
    pipeline = stable_diffusion()
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        attention_head_dim=4,
        norm_num_groups=8,
        cross_attention_dim=32,
    )
    pipeline.register_modules(unet=unet)
    return from_pipeline(pipeline)


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


def test_schedules_are_data_to_a_compiled_network(model, monkeypatch):
    """After the first trial of a search nothing is compiled again, whatever the next ones are."""
    monkeypatch.setattr(torch.nn.Module, "compile", plainly)
    model.compile()
    counted = torch._dynamo.utils.counters["stats"]

    def images(schedule, seeds=range(5)):
        prompts = [["a fox", "a bag"][seed % 2] for seed in seeds]
        for _ in generate(model, schedule, prompts, seeds, batch_size=3):
            pass
        return counted["unique_graphs"], counted["calls_captured"]

    first = images(some([14.0, 3.0, 0.7], [3.0, 2.0, 1.0]))
    assert first[0] > 0
    later = [
        some([14.0, 3.0, 0.7], [2.5, 1.7, 1.0]),
        some([13.0, 9.0, 2.0, 0.3], [1.0, 1.0, 4.0, 2.0], "unipc-bh2"),
        some([14.6, 1.0], [7.0, 7.0], "deis"),
        some([12.0, 5.0, 1.0, 0.5, 0.1], [1.0] * 5, order=1),
        replace(some([14.0, 3.0], [3.0, 2.0]), final_sigma=0.05),
        PLAIN,
    ]
    assert [images(schedule, range(k, k + 5)) for k, schedule in enumerate(later)] == [first] * 6


def some(sigmas, scales, solver="dpmpp-midpoint", order=2):
    steps = zip(sigmas, scales, (1, *[order] * (len(sigmas) - 2), 1), strict=True)
    return Schedule(tuple(Step(s, w, order=n) for s, w, n in steps), solver=solver)


compiled_by_torch = torch.nn.Module.compile


def plainly(self, **_):
    """Graphs are looked for as ever, and run as they are."""
    compiled_by_torch(self, backend="eager")


def test_a_machine_without_a_compiler_says_so(model, monkeypatch):
    import torch._inductor.config as config

    monkeypatch.setattr(config.cpp, "cxx", ("/nowhere/g++",))
    monkeypatch.setattr(config, "force_disable_caches", True)
    model.compile()
    with pytest.raises(UserError, match="torch cannot compile the network: "):
        latents(model, PLAIN)
